"""The finished and failed rows of an output, read from its own objects (docs/design.md, D3): two bitmaps per unit.

Only the identity columns are read, in Ray tasks if there are many objects. Time and memory grow with the number of
objects and one bit a row. No id is held.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from caprl_ray.cluster import session
from caprl_ray.errors import SystemFailure
from caprl_ray.output.commit import DATA, FAILED
from caprl_ray.output.fence import committed_objects
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.prefetch import prefetched

COLUMNS = ["unit", "index", "unit_rows"]
# Objects per Ray task: seconds of waiting for a bucket, fractions of a second on a disk. Up to this many are read here,
# without Ray.
OBJECTS_PER_TASK = 1000
# Identities held in memory, 8 bytes each, before they become bitmaps.
ROWS_AT_ONCE = 2**22
# Bytes per request: a footer, or the few columns that stand together before the captions.
PIECE = 64 * 1024


@dataclass
class Committed:
    """The rows of one unit in the output.

    A row in `data` and in `failed` counts as finished; among failed rows the highest `attempts` counts (docs/design.md,
    D7). `extra` are the indices that stand more than once. `rows` is the unit's length if a row gives it; a later row
    may give a larger length than an earlier run could read.
    """

    finished: BitMap = field(default_factory=BitMap)
    failed: BitMap = field(default_factory=BitMap)
    extra: BitMap = field(default_factory=BitMap)
    rows: int | None = None

    @property
    def done(self) -> BitMap:
        """The indices that need no more work."""
        return self.finished | self.failed

    def settle(self) -> None:
        """Leave each index in one bitmap, after all objects are read."""
        if self.rows is not None and self.done and self.done.max() >= self.rows:
            self.rows = None  # a row beyond the end: an earlier run could not read as far, so the length is not known
        both = self.finished & self.failed
        self.extra |= both
        self.failed -= both
        for rows in (self.finished, self.failed, self.extra):
            rows.run_optimize()


@dataclass(frozen=True)
class Part:
    """The rows of some objects of one folder, as a task returns them: for each unit a serialized bitmap, or its length.

    `extra` are the indices that stand more than once in these objects.
    """

    folder: str
    rows: dict[int, bytes]
    extra: dict[int, bytes]
    lengths: dict[int, int]


def read_committed(storage: Storage, output: str) -> dict[int, Committed]:
    """The rows of an output by unit. Raises SystemFailure for an object that cannot be read."""
    units: defaultdict[int, Committed] = defaultdict(Committed)
    found = committed_objects(storage, output)
    if sum(map(len, found.values())) <= OBJECTS_PER_TASK:
        for folder, objects in found.items():
            _take_in(units, _read(storage, folder, objects))
    else:
        with session.connected():
            for part in _in_tasks(storage, found):
                _take_in(units, part)
    for unit in units.values():
        unit.settle()
    return dict(units)


def _in_tasks(storage: Storage, found: Mapping[str, list[Stored]]) -> Iterator[list[Part]]:
    """The parts of many objects, as tasks finish. Only a bounded number of parts is held."""
    import ray

    read = ray.remote(num_cpus=1)(_read)
    starts = ((folder, n) for folder, objects in found.items() for n in range(0, len(objects), OBJECTS_PER_TASK))
    waiting: list[ray.ObjectRef] = []
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while True:
        for folder, start in starts:
            waiting.append(read.remote(storage, folder, found[folder][start : start + OBJECTS_PER_TASK]))
            if len(waiting) == most:
                break
        if not waiting:
            return
        (ready,), waiting = ray.wait(waiting, num_returns=1)
        yield ray.get(ready)


def _take_in(units: defaultdict[int, Committed], parts: Iterable[Part]) -> None:
    for part in parts:
        for number, content in part.rows.items():
            unit, rows = units[number], BitMap.deserialize(content)
            before = unit.finished if part.folder == DATA else unit.failed
            if before.intersect(rows):
                unit.extra |= before & rows
            before |= rows
        for number, content in part.extra.items():
            units[number].extra |= BitMap.deserialize(content)
        for number, length in part.lengths.items():
            units[number].rows = max(units[number].rows or 0, length)


def _read(storage: Storage, folder: str, objects: Iterable[Stored]) -> list[Part]:
    """The parts of some objects, each with a bounded number of rows."""
    parts: list[Part] = []
    held: list[np.ndarray] = []
    lengths: dict[int, int] = {}
    rows = 0
    for identities, ends in prefetched(lambda stored: _identities(storage, stored), objects):
        held.append(identities)
        rows += len(identities)
        lengths.update({unit: max(length, lengths.get(unit, 0)) for unit, length in ends})
        if rows >= ROWS_AT_ONCE:
            parts.append(_part(folder, held, lengths))
            held, lengths, rows = [], {}, 0
    return [*parts, _part(folder, held, lengths)] if held else parts


def _identities(storage: Storage, stored: Stored) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The identities of an object's rows as unit * 2^32 + index, and the lengths that it gives for units."""
    table = identity_columns(storage, stored, COLUMNS)
    unit, index, lengths = (table[name] for name in COLUMNS)
    ends: list[tuple[int, int]] = []
    if lengths.null_count < len(lengths):
        said = table.filter(lengths.is_valid())
        ends = list(zip(said["unit"].to_pylist(), said["unit_rows"].to_pylist(), strict=True))
    return unit.to_numpy().astype(np.int64) << 32 | index.to_numpy(), ends


def _part(folder: str, identities: list[np.ndarray], lengths: dict[int, int]) -> Part:
    rows = np.sort(np.concatenate(identities))
    again = rows[1:][rows[1:] == rows[:-1]]
    return Part(folder, dict(_bitmaps(rows)), dict(_bitmaps(again)), lengths)


def _bitmaps(identities: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Sorted identities as bitmaps of indices by unit."""
    units, indices = identities >> 32, identities.astype(np.uint32)  # keeps the lower half
    starts, ends = np.flatnonzero(np.diff(units, prepend=-1)), np.flatnonzero(np.diff(units, append=-1)) + 1
    for unit, start, end in zip(units[starts].tolist(), starts, ends, strict=True):
        rows = BitMap(indices[start:end])
        rows.run_optimize()
        yield unit, rows.serialize()


def failed_attempts(storage: Storage, output: str, codes: Collection[str]) -> dict[int, dict[int, int]]:
    """The failed rows with one of `codes`: by unit and index, how often each was tried."""
    attempts: dict[int, dict[int, int]] = {}
    for stored in committed_objects(storage, output, [FAILED])[FAILED] if codes else ():
        for row in identity_columns(storage, stored, ["unit", "index", "attempts", "code"]).to_pylist():
            if row["code"] in codes:
                unit = attempts.setdefault(row["unit"], {})
                unit[row["index"]] = max(unit.get(row["index"], 0), row["attempts"])
    return attempts


def identity_columns(storage: Storage, stored: Stored, columns: list[str]) -> pa.Table:
    """Some columns of a committed object, read without the others. Raises SystemFailure."""
    try:
        with storage.open(stored, piece=PIECE) as stream:
            # Arrow's threads and prefetching cost more than the few pages that are read. `stream` buffers one piece.
            return pq.ParquetFile(stream, pre_buffer=False).read(columns=columns, use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SystemFailure(f"{stored.path}: the committed object cannot be read ({reason}).") from error
