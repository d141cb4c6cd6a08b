"""The captions of a sample: those of each output, and the references."""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from caprl_ray.errors import RecipeError
from caprl_ray.evaluate.answers import ALT_TEXT, EMPTY, PREVIOUS, SWAPPED
from caprl_ray.evaluate.sample import Drawn
from caprl_ray.output.scan import Tell, silent
from caprl_ray.report.facts import Facts
from caprl_ray.report.sample import tables
from caprl_ray.report.strata import Row
from caprl_ray.storage import Stored
from caprl_ray.storage.prefetch import prefetched

LONGEST = 65_536  # characters of a reference: the limit of a caption
OLD = "previous"  # the column of captions that --again has replaced
COLUMNS = ("id", "caption", OLD)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Place = tuple[str, str]  # a way and an image


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Captions by way and image. `outputs` and `references` are the ways, in order."""

    outputs: tuple[str, ...]
    references: tuple[str, ...]
    texts: Mapping[Place, str]

    def short(self, way: str) -> str:
        """The letter of an output, without its path, which may change; or the name of a reference."""
        return way.partition(":")[0] if way in self.outputs else way


def ways(paths: Sequence[str]) -> tuple[str, ...]:
    """The names of outputs: "A: path", and so on."""
    if len(paths) > len(LETTERS):
        raise RecipeError(f"OUT: {len(paths)} outputs are too many; evaluate at most {len(LETTERS)} together.")
    return tuple(f"{letter}: {path}" for letter, path in zip(LETTERS, paths, strict=False))


def captions(
    outputs: Sequence[Facts],
    drawn: Sequence[Drawn],
    seed: int,
    *,
    old_column: str | None = None,
    tell: Tell = silent,
) -> Captions:
    """Read the captions of a sample from all outputs, and make the references. Raises RecipeError if the first output
    lacks the requested column of old texts, SystemFailure if an object cannot be read."""
    named, old = ways([facts.path for facts in outputs]), outputs[0].old_text(old_column)
    texts: dict[Place, str] = {}
    for number, (way, facts) in enumerate(zip(named, outputs, strict=True)):
        found = _read(facts, [one.rows[number] for one in drawn], old if number == 0 else None, tell)
        for one in drawn:
            row = found[one.rows[number]["id"]]
            texts[way, one.image.key] = row["caption"] or ""
            for reference, text in _before(row, old) if number == 0 else ():
                texts[reference, one.image.key] = text[:LONGEST]
    for one in drawn:
        texts[EMPTY, one.image.key] = ""
    for key, other in swapped(drawn, seed).items():
        texts[SWAPPED, key] = texts[named[0], other]
    there = {way for way, _ in texts}
    references = tuple(way for way in (EMPTY, SWAPPED, ALT_TEXT, PREVIOUS) if way in there)
    return Captions(outputs=named, references=references, texts=texts)


def swapped(drawn: Sequence[Drawn], seed: int) -> dict[str, str]:
    """Choose for each image another image, whose caption it gets. Each image is chosen once, if possible of the same
    kind and resolution. A single image has none."""
    strata = defaultdict[tuple[str, int], list[str]](list)
    for one in drawn:
        strata[one.stratum].append(one.image.key)
    alone = [of[0] for of in strata.values() if len(of) == 1]
    groups = [sorted(of) for of in strata.values() if len(of) > 1]
    if len(alone) == 1 and groups:  # it joins the largest group
        max(groups, key=lambda of: (len(of), of)).extend(alone)
    elif len(alone) > 1:
        groups.append(sorted(alone))
    found: dict[str, str] = {}
    for group in groups:
        random.Random(f"{seed} {group[0]}").shuffle(group)
        found |= dict(zip(group, [*group[1:], group[0]], strict=True))
    return found


def _before(row: Row, old: str | None) -> Iterator[tuple[str, str]]:
    """The old texts of a row: the source's own, and the caption that --again replaced."""
    text = row.get("old_text")
    name = PREVIOUS if old and "caption" in old.lower() else ALT_TEXT
    told = isinstance(text, str) and bool(text.strip())
    if told:
        yield name, str(text)
    if row.get(OLD) and not (told and name == PREVIOUS):
        yield PREVIOUS, str(row[OLD])


def _read(facts: Facts, rows: Sequence[Row], old: str | None, tell: Tell) -> dict[str, Row]:
    """The captions of rows by id, with the old text."""
    wanted = defaultdict[str, set[str]](set)
    objects: dict[str, Stored] = {}
    for row in rows:
        objects[row["object"].path] = row["object"]
        wanted[row["object"].path].add(row["id"])
    found: dict[str, Row] = {}
    read = prefetched(lambda path: _in(facts, objects[path], wanted[path], old), sorted(objects))
    for done, some in enumerate(read, 1):
        found |= {row["id"]: row for row in some}
        tell("reading captions", done, len(objects))
    return found


def _in(facts: Facts, stored: Stored, ids: set[str], old: str | None) -> list[Row]:
    return [
        row
        for table in tables(facts, stored, COLUMNS, old)
        for row in table.filter([one in ids for one in table["id"].to_pylist()]).to_pylist()
    ]
