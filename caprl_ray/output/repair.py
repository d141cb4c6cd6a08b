"""Repair: remove superseded rows, so that every row stands in the output once (docs/design.md, D7).

A finished row supersedes a failed one, then the highest `attempts` counts, then the first object by name. Every object
is replaced completely, so that an interrupted repair loses nothing and can run again.
"""

import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from caprl_ray.output.commit import DATA, parquet_bytes
from caprl_ray.output.committed import Committed, identity_columns
from caprl_ray.output.fence import committed_objects
from caprl_ray.storage import Storage, Stored


@dataclass(frozen=True)
class _Standing:
    """One of several rows with the same identity: its place and its rank."""

    stored: Stored
    position: int
    finished: bool
    attempts: int

    @property
    def rank(self) -> tuple[bool, int]:
        return self.finished, self.attempts


def repair(storage: Storage, output: str, units: Mapping[int, Committed]) -> int:
    """Remove superseded rows; returns their number. Raises SystemFailure or OSError as reading and writing do."""
    extra = {number: unit.extra for number, unit in units.items() if unit.extra}
    if not extra:
        return 0
    rows: dict[tuple[int, int], list[_Standing]] = defaultdict(list)
    for folder, objects in committed_objects(storage, output).items():
        for stored in objects:
            for identity, standing in _standing(storage, stored, extra, finished=folder == DATA):
                rows[identity].append(standing)
    superseded: dict[Stored, list[int]] = defaultdict(list)
    for several in rows.values():
        kept = max(several, key=lambda standing: standing.rank)  # the first among equals
        for standing in several:
            if standing is not kept:
                superseded[standing.stored].append(standing.position)
    for stored, positions in superseded.items():
        _remove(storage, stored, positions)
    return sum(map(len, superseded.values()))


def _standing(
    storage: Storage, stored: Stored, extra: Mapping[int, BitMap], *, finished: bool
) -> Iterator[tuple[tuple[int, int], _Standing]]:
    """The rows of an object whose identities stand more than once."""
    table = identity_columns(storage, stored, ["unit", "index", "attempts"])
    numbers = table["unit"].to_numpy()
    for position in np.flatnonzero(np.isin(numbers, list(extra))).tolist():
        number, index = int(numbers[position]), table["index"][position].as_py()
        if index in extra[number]:
            attempts = table["attempts"][position].as_py() or 0
            yield (number, index), _Standing(stored, position, finished, attempts)


def _remove(storage: Storage, stored: Stored, positions: list[int]) -> None:
    with storage.open(stored) as stream:
        table = pq.read_table(io.BytesIO(stream.read()))
    keep = np.ones(table.num_rows, dtype=bool)
    keep[positions] = False
    if keep.any():
        storage.put(stored.path, parquet_bytes(table.filter(pa.array(keep))))
    else:
        storage.delete(stored.path)
