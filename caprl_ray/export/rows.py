"""The finished rows of a unit in the order of their index, a few objects at a time."""

import errno
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from caprl_ray.errors import SystemFailure
from caprl_ray.output.committed import identities, opened
from caprl_ray.output.objects import fitted
from caprl_ray.output.places import Place
from caprl_ray.plan import UnitRef
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.prefetch import prefetched

# Objects that a reader holds, and their bytes if these are more than one: an object has rows of a few units, which are
# exported one after the other. One more is read while one is in use. A larger object lies in a file of this node's
# disk instead, from which the kernel reads what is in use.
HELD, HELD_BYTES = 8, 512 * 2**20
IN_USE_AND_NEXT = 2
ROWS_AT_ONCE = 1024  # of an object on its way to the disk


@dataclass(frozen=True, kw_only=True)
class UnitRows:
    """The exported rows of a unit: those in `kept`, which are at `places`; `rows` is its length.

    `finished` and `failed` are the numbers of its rows in the output. `deadly`: reading some source of the output ended
    the process that read it.
    """

    ref: UnitRef
    kept: BitMap
    places: Sequence[Place]
    rows: int
    finished: int
    failed: int
    deadly: bool = False


class Reader:
    """Reads rows of one output."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._held: OrderedDict[tuple[Stored, tuple[str, ...]], _Object] = OrderedDict()
        self._holding = threading.Lock()

    def rows(self, unit: UnitRows, schema: pa.Schema) -> Iterator[pa.Table]:
        """The kept rows of a unit by their index, as tables of `schema`, which has `unit`, `index` and `attempts`.

        A row is yielded as soon as no later object can hold an earlier row, so memory holds only objects whose ranges
        of rows overlap. A duplicate row counts once (docs/design.md, D7).
        """
        if not unit.kept:  # every row has failed or is left out, and there may be no place at all
            return
        kept = np.asarray(unit.kept.to_array(), np.int64)
        waiting: list[_Piece] = []
        ends = [*(place.first for place in unit.places[1:]), None]
        objects = prefetched(lambda place: self._object(place.stored, schema), unit.places, IN_USE_AND_NEXT)
        for found, end in zip(objects, ends, strict=True):
            waiting.append(found.of_unit(unit.ref.unit).among(kept))
            ready = [one.split(end)[0] for one in waiting]
            rests = [one.split(end)[1] for one in waiting]
            waiting = [one for one in rests if len(one.index)]  # a slice of no rows holds its whole object, too
            table = _merged([one for one in ready if len(one.index)])
            if table is not None:
                yield table

    def _object(self, stored: Stored, schema: pa.Schema) -> "_Object":
        key = stored, tuple(schema.names)
        found = self._held.get(key) or self._read(stored, schema)
        with self._holding:
            self._held[key] = found
            self._held.move_to_end(key)
            while len(self._held) > HELD or (len(self._held) > 1 and self._bytes() > HELD_BYTES):
                self._held.popitem(last=False)
        return found

    def _read(self, stored: Stored, schema: pa.Schema) -> "_Object":
        with opened(self._storage, stored) as file:
            names = [name for name in schema.names if name in file.schema_arrow.names]
            if _bytes_of(file) > HELD_BYTES:
                return _Object.of(stored.path, _mapped(file, names, schema), in_memory=False)
            return _Object.of(stored.path, fitted(file.read(columns=names, use_threads=False), schema))

    def _bytes(self) -> int:
        return sum(int(held.table.nbytes) for held in self._held.values() if held.in_memory)


def _bytes_of(file: pq.ParquetFile) -> int:
    """The bytes of an object that is not packed."""
    return sum(file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups))


def _mapped(file: pq.ParquetFile, names: list[str], schema: pa.Schema) -> pa.Table:
    """The rows of an object, in a file without a name in the folder for temporary files. It goes when they do."""
    with _full_disk_told(), tempfile.NamedTemporaryFile(prefix="caprl-ray-") as disk:
        with pa.ipc.new_file(disk, schema) as rows:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=names, use_threads=False):
                rows.write_table(fitted(pa.Table.from_batches([batch]), schema))
        disk.flush()
        return pa.ipc.open_file(pa.memory_map(disk.name)).read_all()


@contextmanager
def _full_disk_told() -> Iterator[None]:
    """Raise SystemFailure where the folder for temporary files is full, not the target nor the object that is read."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SystemFailure(
            f"{tempfile.gettempdir()}: {error.strerror}; large objects of the output lie there while they are read: "
            "make room, or name another folder in TMPDIR, and run the same command again to resume."
        ) from error


@lru_cache(1)
def reader(storage: Storage) -> Reader:
    """The reader of this process: parts that are written one after the other have rows in the same objects."""
    return Reader(storage)


@dataclass(frozen=True)
class _Piece:
    """Rows of one unit in one object, by their index."""

    path: str
    index: np.ndarray
    table: pa.Table

    def among(self, kept: np.ndarray) -> "_Piece":
        """Those of the rows that are kept."""
        mask = np.isin(self.index, kept)
        return self if mask.all() else _Piece(self.path, self.index[mask], self.table.filter(pa.array(mask)))

    def split(self, end: int | None) -> tuple["_Piece", "_Piece"]:
        """The rows before an index, and the rest. Without one, all and nothing."""
        place = len(self.index) if end is None else int(np.searchsorted(self.index, end))
        first = _Piece(self.path, self.index[:place], self.table.slice(0, place))
        return first, _Piece(self.path, self.index[place:], self.table.slice(place))


@dataclass(frozen=True)
class _Object:
    """The rows of an object, sorted by their identities."""

    path: str
    identities: np.ndarray
    table: pa.Table
    in_memory: bool = True

    @classmethod
    def of(cls, path: str, table: pa.Table, *, in_memory: bool = True) -> "_Object":
        rows = identities(table)
        if (np.diff(rows) <= 0).any():  # commit writes them sorted
            order = np.argsort(rows, kind="stable")
            rows, table = rows[order], table.take(pa.array(order))
        return cls(path, rows, table, in_memory)

    def of_unit(self, unit: int) -> _Piece:
        start, end = np.searchsorted(self.identities, [unit << 32, (unit + 1) << 32])
        rows = self.table.slice(start, end - start)
        return _Piece(self.path, self.identities[start:end] & 0xFFFFFFFF, rows)


def _merged(pieces: list[_Piece]) -> pa.Table | None:
    """The rows of all pieces by their index. Of several with one index, the highest `attempts` counts, then the first
    object by name."""
    if not pieces:
        return None
    index, table = np.concatenate([one.index for one in pieces]), pa.concat_tables([one.table for one in pieces])
    if (np.diff(index) > 0).all():
        return table
    names = sorted({one.path for one in pieces})
    name = np.concatenate([np.full(len(one.index), names.index(one.path)) for one in pieces])
    order = np.lexsort((name, -table["attempts"].fill_null(0).to_numpy(), index))
    first = np.diff(index[order], prepend=-1) != 0
    return table.take(pa.array(order[first]))
