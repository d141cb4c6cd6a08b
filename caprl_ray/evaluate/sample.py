"""The images of an evaluation: a seeded sample of those that all outputs have captioned, by kind and resolution.

An image is the SHA-256 of its bytes. Only the hash, the seed and the other images decide whether it is drawn, not
objects, order or names. So the order of the outputs' rows does not matter, and a smaller sample is mostly part of a
larger one.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from caprl_ray.errors import RecipeError
from caprl_ray.evaluate.answers import EVERY, Image
from caprl_ray.evaluate.kinds import frequent, image_kinds
from caprl_ray.output.objects import DATA
from caprl_ray.output.scan import Tell, silent
from caprl_ray.report.facts import Facts
from caprl_ray.report.sample import tables
from caprl_ray.report.strata import PIXELS, Row, mixed
from caprl_ray.storage import Stored
from caprl_ray.storage.prefetch import prefetched

# The largest number of candidates. If an output has more images, only every n-th is a candidate, the same ones in all
# outputs. A row takes about a KiB in memory.
MOST_CANDIDATES = 100_000
SPARSE = 256  # if one of this many rows is a candidate, most objects have none, and need no further reads
COLUMNS = ("id", "unit", "index", "source", "key", "sha256", "width", "height")
STEP = "looking for images"

Wanted = Callable[[pa.Table], pa.Table]
Check = Callable[[Sequence["Drawn"]], None]


class NothingDrawn(RecipeError):
    """There is no image to draw."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """An image of the sample with its row of each output. `object` in a row is its object."""

    image: Image
    rows: tuple[Row, ...]

    @property
    def stratum(self) -> tuple[str, int]:
        """Its stratum: the kind and the range of pixels."""
        return self.image.kind, resolution(self.image.width, self.image.height)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The drawn images, in the order of their keys. `common`: the number of candidates. `every`: every n-th image was a
    candidate."""

    drawn: Sequence[Drawn]
    common: int
    every: int


def resolution(width: int, height: int) -> int:
    """The range of a number of pixels."""
    return int(np.searchsorted(PIXELS, width * height, side="right")) - 1


def sample(
    outputs: Sequence[Facts],
    size: int,
    seed: int,
    *,
    column: str | None = None,
    wanted: Wanted | None = None,
    most: int | None = None,
    check: Check | None = None,
    tell: Tell = silent,
) -> Sample:
    """Draw a sample.

    Args:
        column: a column of the first output's source that names the kind of an image.
        wanted: selects the rows of a table of the first output that may be drawn.
        most: the largest number of such images, if known.
        check: is called with all candidates of the first output, without their kinds, before one is drawn.

    Raises RecipeError if the outputs have no image in common, SystemFailure for what cannot be read.
    """
    if column and column not in outputs[0].plan.columns.names:
        there = ", ".join(outputs[0].plan.columns.names) or "none"
        raise RecipeError(f"--by: {outputs[0].path} has no column {column} of its source; it has {there}.")
    # The output with the fewest candidates is read first, so that only its images are kept of the others. That is the
    # first output if only some of its images may be drawn, otherwise the smallest.
    order = sorted(range(len(outputs)), key=lambda number: 0 if wanted else outputs[number].ledger.finished)
    candidates = outputs[order[0]].ledger.finished
    every = max(1, math.ceil(min(candidates, candidates if most is None else most) / MOST_CANDIDATES))
    scan, found, among = _Scan(seed=seed, every=every, tell=tell), dict[int, dict[str, Row]](), None
    for number in order:
        of_first = (column, wanted) if number == 0 else (None, None)
        found[number] = scan.rows(outputs[number], *of_first, among)
        among = found[number].keys()
    if check:
        check([Drawn(image=_image(key, EVERY, row), rows=(row,)) for key, row in found[0].items()])
    common = sorted(among or ())
    if not common:
        raise NothingDrawn(_nothing(outputs, found))
    kinds = _kinds(outputs[0], column, [found[0][key] for key in common])
    drawn = [
        Drawn(image=_image(key, kind, found[0][key]), rows=tuple(found[number][key] for number in range(len(outputs))))
        for key, kind in zip(common, kinds, strict=True)
    ]
    return Sample(drawn=stratified(drawn, size, seed), common=len(common), every=every)


def stratified(images: Sequence[Drawn], size: int, seed: int) -> list[Drawn]:
    """At most `size` images, in proportion to the strata. In each stratum, the images with the lowest numbers are
    taken."""
    strata = defaultdict[tuple[str, int], list[Drawn]](list)
    for one in images:
        strata[one.stratum].append(one)
    shares = shared({name: len(of) for name, of in strata.items()}, size)
    keys = [one.image.key for one in images]
    number = dict(zip(keys, numbers(keys, seed).tolist(), strict=True))
    taken = [
        one
        for name, of in strata.items()
        for one in sorted(of, key=lambda one: (number[one.image.key], one.image.key))[: shares[name]]
    ]
    return sorted(taken, key=lambda one: one.image.key)


def shared(counts: Mapping[tuple[str, int], int], size: int) -> dict[tuple[str, int], int]:
    """The number of images per stratum: proportional, by the largest remainders."""
    total = sum(counts.values())
    if total <= size:
        return dict(counts)
    exact = {name: size * count / total for name, count in counts.items()}
    shares = {name: int(value) for name, value in exact.items()}
    left = size - sum(shares.values())
    for name in sorted(exact, key=lambda name: (shares[name] - exact[name], name))[:left]:
        shares[name] += 1
    return shares


def numbers(keys: Sequence[str], seed: int) -> np.ndarray:
    """A number for each image, derived from its SHA-256 in hex and the seed."""
    first = np.frombuffer(bytes.fromhex("".join(keys)), ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)
    return mixed(first ^ mixed(np.array([seed % 2**64], np.uint64)))


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """Reads the identities of an output's captioned rows."""

    seed: int
    every: int
    tell: Tell

    def rows(
        self,
        facts: Facts,
        column: str | None = None,
        wanted: Wanted | None = None,
        among: Collection[str] | None = None,
    ) -> dict[str, Row]:
        """The candidate rows by image; the first row of a duplicate image."""
        objects, found = facts.objects[DATA], dict[str, Row]()
        read = prefetched(lambda stored: list(self._of(facts, stored, column, wanted)), objects)
        for done, rows in enumerate(read, 1):
            for row in rows:
                key = row["sha256"]
                if among is not None and key not in among:
                    continue
                if key not in found or row["id"] < found[key]["id"]:
                    found[key] = row
            self.tell(STEP, done, len(objects))
        return found

    def _of(self, facts: Facts, stored: Stored, column: str | None, wanted: Wanted | None) -> Iterator[Row]:
        if self.every > SPARSE and not any(map(len, map(self._some, tables(facts, stored, ("sha256",), None)))):
            return
        for table in tables(facts, stored, COLUMNS, column):
            some = self._some(table)
            for row in (wanted(some) if wanted else some).to_pylist():
                yield {**row, "object": stored}

    def _some(self, table: pa.Table) -> pa.Table:
        """Every n-th row."""
        there = table.filter(table["sha256"].is_valid())
        return there.filter(pa.array(numbers(there["sha256"].to_pylist(), self.seed) % self.every == 0))


def _kinds(facts: Facts, column: str | None, rows: Sequence[Row]) -> list[str]:
    kinds = list(map(image_kinds(facts, column), rows))
    named = frequent(kinds)
    return list(map(named, kinds))


def _image(key: str, kind: str, row: Row) -> Image:
    source, name = row["source"] or "", row["key"] or ""
    place = source if not name or source.endswith(name) else f"{source}#{name}"
    return Image(key=key, source=place, kind=kind, width=row["width"] or 0, height=row["height"] or 0)


def _nothing(outputs: Sequence[Facts], found: Mapping[int, Mapping[str, Row]]) -> str:
    first = next(iter(found))  # that was read
    if not found[first]:
        return f"{outputs[first].path}: no captioned image of it can be drawn; give an output with captions."
    paths = " and ".join(facts.path for facts in outputs)
    return (
        f"{paths} have no captioned image in common, by the SHA-256 of its bytes; evaluate outputs of the same input, "
        "or each by itself."
    )
