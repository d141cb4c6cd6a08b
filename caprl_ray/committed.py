"""What an output holds, read from its own rows (D3): bitmaps of captioned and of failed rows for each unit.

Only the identity columns are read, in Ray tasks where there are many objects. Time and memory grow with the objects and
one bit a row; no id is ever held.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from caprl_ray import cluster
from caprl_ray.ahead import ahead
from caprl_ray.commit import DATA, FAILED
from caprl_ray.errors import SystemFailure
from caprl_ray.storage import Storage, Stored, join

COLUMNS = ["unit", "index", "unit_rows"]
# Objects of one Ray task: about a second's work. Up to as many are read here, without Ray.
OBJECTS_PER_TASK = 1000
# What is asked for at once: a footer, or the few columns that stand together before the captions.
PIECE = 64 * 1024


@dataclass
class Committed:
    """What the output holds of one unit.

    A row that stands in `data` and in `failed` counts as captioned; among failed rows the highest `attempts` counts
    (D7). `extra` are the indices that stand more than once, in whichever way. `rows` is the unit's length where a row
    says it; a later row may say that the unit is longer than an earlier one could read.
    """

    captioned: BitMap = field(default_factory=BitMap)
    failed: BitMap = field(default_factory=BitMap)
    extra: BitMap = field(default_factory=BitMap)
    rows: int | None = None

    @property
    def done(self) -> BitMap:
        """The indices that need no more work."""
        return self.captioned | self.failed

    def add(self, other: Committed) -> None:
        """Take in what other objects hold of the unit."""
        self.extra |= other.extra | (self.done & other.done)
        self.captioned |= other.captioned
        self.failed = (self.failed | other.failed) - self.captioned
        if other.rows is not None:
            self.rows = max(self.rows or 0, other.rows)


def read_committed(storage: Storage, output: str) -> dict[int, Committed]:
    """What the output holds, for each unit that has any row in it. Raises SystemFailure for an unreadable object."""
    objects = [
        (folder, stored) for folder in (DATA, FAILED) for stored in storage.objects(join(output, folder), ".parquet")
    ]
    if len(objects) <= OBJECTS_PER_TASK:
        return _read_all(storage, objects)
    units: dict[int, Committed] = {}
    with cluster.connected(debug=False):
        for part in _in_tasks(storage, objects):
            _merge(units, part)
    return units


def _in_tasks(storage: Storage, objects: list[tuple[str, Stored]]) -> Iterator[dict[int, Committed]]:
    """The parts of many objects, as they are ready; a bounded number of parts is held."""
    import ray

    read = ray.remote(num_cpus=1)(_read_all)
    starts = iter(range(0, len(objects), OBJECTS_PER_TASK))
    waiting: list[ray.ObjectRef] = []
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while True:
        for start in starts:
            waiting.append(read.remote(storage, objects[start : start + OBJECTS_PER_TASK]))
            if len(waiting) == most:
                break
        if not waiting:
            return
        (ready,), waiting = ray.wait(waiting, num_returns=1)
        yield ray.get(ready)


def _read_all(storage: Storage, objects: Iterable[tuple[str, Stored]]) -> dict[int, Committed]:
    units: dict[int, Committed] = {}
    for part in ahead(lambda found: _read(storage, *found), objects):
        _merge(units, part)
    return units


def _merge(units: dict[int, Committed], more: dict[int, Committed]) -> None:
    for number, unit in more.items():
        if number in units:
            units[number].add(unit)
        else:
            units[number] = unit


def _read(storage: Storage, folder: str, stored: Stored) -> dict[int, Committed]:
    table = identity_columns(storage, stored, COLUMNS)
    numbers, indices = table["unit"].to_numpy(), table["index"].to_numpy().astype(np.uint32)
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))  # rows are sorted by unit and index
    units: dict[int, Committed] = {}
    for number, part in zip(numbers[starts], np.split(indices, starts[1:]), strict=True):
        rows, extra = BitMap(part), BitMap(part[1:][np.diff(part.astype(np.int64)) == 0])
        committed = Committed(captioned=rows, extra=extra) if folder == DATA else Committed(failed=rows, extra=extra)
        _merge(units, {int(number): committed})
    ends = table.filter(table["unit_rows"].is_valid())
    for number, length in zip(ends["unit"].to_pylist(), ends["unit_rows"].to_pylist(), strict=True):
        units[number].rows = length
    return units


def failed_attempts(storage: Storage, output: str, codes: Collection[str]) -> dict[int, dict[int, int]]:
    """The failed rows with one of `codes`: for each unit and index, how often the row was tried."""
    attempts: dict[int, dict[int, int]] = {}
    for stored in storage.objects(join(output, FAILED), ".parquet") if codes else ():
        for row in identity_columns(storage, stored, ["unit", "index", "attempts", "code"]).to_pylist():
            if row["code"] in codes:
                unit = attempts.setdefault(row["unit"], {})
                unit[row["index"]] = max(unit.get(row["index"], 0), row["attempts"])
    return attempts


def identity_columns(storage: Storage, stored: Stored, columns: list[str]) -> pa.Table:
    """Some columns of a committed object, without the bytes of the others. Raises SystemFailure."""
    try:
        with storage.open(stored, piece=PIECE) as stream:
            return pq.ParquetFile(stream).read(columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SystemFailure(f"{stored.path}: the committed object cannot be read ({reason}).") from error
