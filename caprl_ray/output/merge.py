"""Merge the objects of some units: what one task of compacting does.

The rows of each new object are collected in a file on the node's disk, one old object after the other. So memory holds
only one object that is read and one that is written.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from caprl_ray.errors import SystemFailure
from caprl_ray.output.committed import identities, opened
from caprl_ray.output.objects import ORIGINS, WRITTEN, fitted, object_name, parquet_bytes
from caprl_ray.output.places import runs
from caprl_ray.storage import Storage, Stored, join
from caprl_ray.storage.prefetch import prefetched

READ_AHEAD = 2  # objects in memory


@dataclass(frozen=True, kw_only=True)
class Group:
    """Units whose rows become one object, each with the origin of its rows (output/places.py)."""

    units: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Groups that are merged together, and the objects that hold their rows, by path. `rests` are the paths of objects
    whose remaining rows are written here, too, in common objects because they are few."""

    groups: Sequence[Group]
    objects: Sequence[Stored]
    rests: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Round:
    """The common settings of a round's batches. `number` is part of the objects' names, because a new object may have
    the same rows as a rest of an earlier round. `units` are the numbers of all units of the round, in order. `least` is
    the least number of rows in an object of rests, except the last."""

    storage: Storage
    output: str
    lease: int
    number: int
    schema: pa.Schema
    units: np.ndarray
    least: int


@dataclass
class Merged:
    """The result of a task: the names of new objects, as "folder/name", and the number of their rows.

    It counts all objects that it read, and the rows of those whose rests it writes. `rests` are the new objects of
    these rests, by the paths of the old objects.
    """

    names: set[str] = field(default_factory=set)
    rows: int = 0
    objects: int = 0
    read: int = 0
    rests: dict[str, Stored] = field(default_factory=dict)

    def add(self, other: "Merged") -> None:
        """Add the result of another task."""
        self.names |= other.names
        self.rests |= other.rests
        self.rows += other.rows
        self.objects += other.objects
        self.read += other.read


def merged(this: Round, folder: str, batches: Sequence[Batch]) -> Merged:
    """Write the new objects of some batches. The same batch gives the same objects."""
    done = Merged()
    for batch in batches:
        with tempfile.TemporaryDirectory(prefix="caprl-ray-") as temporary:
            _Merging(this, folder, batch, Path(temporary), done).merge()
    return done


class _Merging:
    """One batch in progress: the rows of each group are collected in a file."""

    def __init__(self, this: Round, folder: str, batch: Batch, temporary: Path, done: Merged) -> None:
        self._this, self._folder, self._batch, self._done = this, folder, batch, done
        self._temporary = temporary
        self._group_of = {unit: number for number, group in enumerate(batch.groups) for unit in group.units}
        self._gathered: dict[int, pa.RecordBatchStreamWriter] = {}
        self._written = ""
        self._rest: list[tuple[str, pa.Table]] = []  # with the paths of the objects

    def merge(self) -> None:
        """Read all objects, then write those of the groups."""
        objects = self._batch.objects
        with ExitStack() as files:
            for stored, table in zip(
                objects, prefetched(partial(_read, self._this.storage), objects, READ_AHEAD), strict=True
            ):
                self._take(stored, table, files)
        self._put_rest()
        for number in self._gathered:
            origins = {str(unit): origin for unit, origin in self._batch.groups[number].units.items()}
            with pa.memory_map(str(self._temporary / str(number))) as file:
                self._put(_sorted(pa.ipc.open_stream(file).read_all()), origins, self._written)

    def _take(self, stored: Stored, table: pa.Table, files: ExitStack) -> None:
        """Give each group its rows of one object, and write the rest if it is ours."""
        written, ours = (table.schema.metadata or {}).get(WRITTEN, b"").decode(), stored.path in self._batch.rests
        self._written = max(self._written, written, key=lambda text: float(text or 0))
        rows = fitted(table, self._this.schema)
        for unit, start, end in runs(identities(table)):
            some = rows.slice(start, end - start)
            if (number := self._group_of.get(unit)) is not None:
                self._file(number, files).write_table(some)
            elif ours and not _among(unit, self._this.units):
                self._rest.append((stored.path, some))
        self._done.objects += 1
        self._done.read += table.num_rows if ours else 0
        if sum(some.num_rows for _, some in self._rest) >= self._this.least:
            self._put_rest()

    def _put_rest(self) -> None:
        """Write the rests that are held."""
        if self._rest:
            stored = self._put(_sorted(pa.concat_tables([some for _, some in self._rest])), {}, self._written)
            self._done.rests |= {path: stored for path, _ in self._rest}
            self._rest = []

    def _file(self, number: int, files: ExitStack) -> pa.RecordBatchStreamWriter:
        if number not in self._gathered:
            sink = files.enter_context(pa.OSFile(str(self._temporary / str(number)), "wb"))
            self._gathered[number] = files.enter_context(pa.ipc.new_stream(sink, self._this.schema))
        return self._gathered[number]

    def _put(self, table: pa.Table, origins: Mapping[str, str], written: str) -> Stored:
        """Put one object."""
        folder, of = self._folder, f"round {self._this.number}"
        name = f"{self._this.lease:06d}-{object_name(table, of)}.parquet"
        told: dict[bytes, bytes] = {**(self._this.schema.metadata or {}), ORIGINS: json.dumps(origins).encode()}
        told.pop(WRITTEN, None)
        path = join(self._this.output, folder, name)
        try:
            content = table.replace_schema_metadata(told | ({WRITTEN: written.encode()} if written else {}))
            self._this.storage.put(path, parquet_bytes(content))
            stored = self._this.storage.lookup(path)
        except OSError as error:
            raise SystemFailure(f"output.path: {path} cannot be written ({error.strerror or error}).") from error
        assert isinstance(stored, Stored)
        self._done.names.add(f"{folder}/{name}")
        self._done.rows += table.num_rows
        return stored


def _read(storage: Storage, stored: Stored) -> pa.Table:
    with opened(storage, stored, piece=None) as file:
        return _sorted(file.read(use_threads=False))


def _sorted(table: pa.Table) -> pa.Table:
    """The rows by their identities. Commit writes them so."""
    rows = identities(table)
    return table if (np.diff(rows) > 0).all() else table.take(pa.array(np.argsort(rows, kind="stable")))


def _among(unit: int, units: np.ndarray) -> bool:
    place = int(np.searchsorted(units, unit))
    return place < len(units) and int(units[place]) == unit
