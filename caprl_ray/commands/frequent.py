"""`caprl-ray plan --duplicates`: find images that are often repeated in the input, from a sample.

A site's placeholder for missing images may be in a dataset thousands of times. The command reads the sample's bytes,
without decoding, engine or Ray, and writes nothing. The same recipe gives the same sample.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import Any

from pyroaring import BitMap

from caprl_ray import plan, sources
from caprl_ray.commands.sample import SEED, chosen_units, shared_out, wanted
from caprl_ray.errors import RecipeError, RowFailure, SystemFailure
from caprl_ray.plan import Unit
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.recipe.sections import Recipe
from caprl_ray.sources import placeholders
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.source import Access
from caprl_ray.storage.prefetch import prefetched
from caprl_ray.text import plain

SAMPLE = 10_000
SHOWN, EXAMPLES = 20, 3

Place = tuple[str, str]  # source and key of a row


@dataclass
class Frequent:
    """The images of a sample by the SHA-256 of their bytes.

    `listed` counts rows that are in input.placeholders already, `without` rows that have no image or cannot be read.
    `given` is input.placeholders itself.
    """

    given: list[str] | str
    rows: int = 0
    listed: int = 0
    without: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    places: defaultdict[str, list[Place]] = field(default_factory=lambda: defaultdict(list))

    def add(self, digest: str, place: Place) -> None:
        """Count one image."""
        self.counts[digest] += 1
        if len(self.places[digest]) < EXAMPLES:
            self.places[digest].append(place)

    @property
    def most(self) -> list[tuple[str, int]]:
        """The repeated hashes, the most frequent first."""
        return [(digest, count) for digest, count in self.counts.most_common(SHOWN) if count > 1]

    def report(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        return {
            "rows": self.rows,
            "without_image": self.without,
            "placeholders": self.listed,
            "different": len(self.counts),
            "most_frequent": [
                {
                    "sha256": digest,
                    "count": count,
                    "examples": [{"source": source, "key": key} for source, key in self.places[digest]],
                }
                for digest, count in self.most
            ],
            "override": self.override(),
        }

    def override(self) -> str | None:
        """An override that also leaves out the most frequent images; None if there are none."""
        before = self.given if isinstance(self.given, list) else []
        found = [digest for digest, _ in self.most]
        return f"input.placeholders=[{','.join([*before, *found])}]" if found else None

    def summary(self) -> str:
        """Return text for people. It ends with the override, or with lines for the recipe's own file."""
        said = [f"{self.rows:,} rows were read: {len(self.counts):,} different images"]
        said += [f"{self.listed:,} rows that input.placeholders lists"] * bool(self.listed)
        said += [f"{self.without:,} rows without an image"] * bool(self.without)
        lines = [", ".join(said)]
        for digest, count in self.most:
            lines += [f"  {count:,} x {digest}", *(f"      {_shown(place)}" for place in self.places[digest])]
        if not self.most:
            return "\n".join([*lines, "no image stands there twice"])
        lines.append("Look at them. Those that stand for a missing image need no caption:")
        if isinstance(self.given, str):
            return "\n".join([*lines, f"add their lines to {self.given}", *(digest for digest, _ in self.most)])
        return "\n".join([*lines, f"'{self.override()}'"])


def frequent(recipe: Recipe, sample: int = SAMPLE) -> Frequent:
    """Read about `sample` rows, spread over the units of the stored plan or else of the input.

    Raises RecipeError if the input has nothing to read, SystemFailure if storage fails.
    """
    access = Access.of(recipe)
    known = placeholders.load(access.storage, recipe.input)
    found = Frequent(given=recipe.input.placeholders)
    stored = plan.load(access.storage, recipe.output.path)
    chosen = chosen_units(access.storage, stored, sources.plan_units(access), sample)
    if not chosen:
        raise RecipeError(f"input.paths: no image was found in {', '.join(recipe.input.paths)}.")
    shares = shared_out([unit.rows for unit in chosen], sample)
    works = enumerate(zip(chosen, shares, strict=True))
    for rows in prefetched(lambda work: _read(work[0], *work[1], access), works):
        for digest, place in rows:
            found.rows += 1
            if digest is None:
                found.without += 1
            elif digest in known:
                found.listed += 1
            else:
                found.add(digest.hex(), place)
    return found


def _read(number: int, unit: Unit, rows: int, access: Access) -> list[tuple[bytes | None, Place]]:
    """The digests of `rows` rows of a unit. From a shard, whose length is not known, the first ones."""
    chosen = wanted(unit, rows, random.Random(f"{SEED} {number}"))
    done = BitMap() if chosen is None else BitMap(range(unit.rows or 0)) - chosen
    found: list[tuple[bytes | None, Place]] = []
    try:
        with closing(_samples(unit, done, access)) as samples:
            for sample in islice((s for s in samples if s), rows):
                digest = sha256(sample.image).digest() if sample.image and not sample.failure else None
                found.append((digest, (sample.source, sample.key)))
    except RowFailure:
        found.append((None, (unit.entries[0].stored.path, "")))
    except OSError as error:
        path = unit.entries[0].stored.path
        raise SystemFailure(f"{path}: cannot be read ({error.strerror or type(error).__name__}).") from error
    return found


def _samples(unit: Unit, done: BitMap, access: Access) -> Generator[Sample | None]:
    yield from sources.read_unit(unit, done, access, LeftOut())


def _shown(place: Place) -> str:
    source, key = place
    return plain(source if source.endswith(key) else f"{source} {key}").replace("\n", " ")
