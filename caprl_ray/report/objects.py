"""Choose the objects of an output that are read for a page: a bounded, seeded choice that covers every flag and code.

The sums in the objects' footers (output/counts.py) tell which objects have a rare flag, so it is found among millions
of rows without reading them.
"""

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from caprl_ray.output.committed import opened
from caprl_ray.output.counts import Counts
from caprl_ray.output.objects import WRITTEN
from caprl_ray.output.scan import Tell, silent
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.prefetch import prefetched

SEED = 0
MTIME = "mtime:"  # how the version of a local file begins: nanoseconds since 1970
# Footers that are looked at, and rows that are read, of each folder.
MOST_FOOTERS, MOST_ROWS = 4096, 200_000


@dataclass(frozen=True, kw_only=True)
class Footer:
    """The sums in an object's footer, and its time in seconds since 1970, None if unknown."""

    stored: Stored
    rows: int
    counts: Counts
    written: float | None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The objects that are read, in the order of their paths, and whether these are all. `footers` are all those that
    were looked at."""

    objects: list[Stored]
    all: bool
    footers: list[Footer]


def chosen(storage: Storage, found: Sequence[Stored], tell: Tell = silent, most_rows: int = MOST_ROWS) -> Chosen:
    """Choose objects of about `most_rows` rows, and for each flag and code the object that has most of it."""
    shuffled = random.Random(SEED).sample(list(found), min(len(found), MOST_FOOTERS))
    footers = []
    for footer in prefetched(lambda stored: _footer(storage, stored), shuffled):
        footers.append(footer)
        tell("looking for flags and failures", len(footers), len(shuffled))
    best: dict[str, Footer] = {}
    for footer in footers:
        for name, count in _kinds(footer).items():
            if name not in best or count > _kinds(best[name])[name]:
                best[name] = footer
    taken = {footer.stored.path: footer.stored for footer in best.values()}
    rows = sum(footer.rows for footer in footers if footer.stored.path in taken)
    for footer in footers:
        if rows < most_rows and footer.stored.path not in taken:
            taken[footer.stored.path] = footer.stored
            rows += footer.rows
    return Chosen(objects=[taken[path] for path in sorted(taken)], all=len(taken) == len(found), footers=footers)


def _footer(storage: Storage, stored: Stored) -> Footer:
    with opened(storage, stored) as file:
        told = file.metadata.metadata or {}
        return Footer(
            stored=stored, rows=file.metadata.num_rows, counts=Counts.load(told), written=_written(stored, told)
        )


def _written(stored: Stored, told: Mapping[bytes, bytes]) -> float | None:
    """From the footer, or from the file's time for objects of older versions."""
    for text, unit in ((told.get(WRITTEN, b"").decode(), 1.0), (stored.version.removeprefix(MTIME), 1e-9)):
        with suppress(ValueError):
            return float(text) * unit
    return None


def _kinds(footer: Footer) -> dict[str, int]:
    return {**footer.counts.flags, **footer.counts.codes}
