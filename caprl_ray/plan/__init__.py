"""The plan: the input cut into work units, written once under the output and never changed.

One read task streams a unit: a tar shard, a slice of loose files, or a range of a parquet file's row groups. The number
of a unit is its identity (docs/design.md, D2). The plan holds the size and version of each source, so that a changed
source is noticed. It lies in parquet objects whose row groups bound what a read task loads. The driver holds one small
`UnitRef` per unit and no image's name.
"""

import base64
import io
import itertools
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.storage import Storage, Stored, join

T = TypeVar("T")

FOLDER = "plan"
COLUMNS = "caprl_ray.columns"  # in a plan object's metadata: the source's own columns, as an Arrow schema in base64
ENTRIES_PER_ROW_GROUP = 4096
# Bytes per request when a unit is loaded: a footer, or a whole row group.
PIECE = 256 * 1024

ENTRY = pa.struct([("path", pa.string()), ("key", pa.string()), ("size", pa.int64()), ("version", pa.string())])
SCHEMA = pa.schema(
    [
        ("unit", pa.int32()),
        ("kind", pa.string()),
        ("rows", pa.int64()),  # null if only reading the unit tells
        ("bytes", pa.int64()),
        ("row_groups", pa.list_(pa.int32())),  # first and end of a range in a parquet file; null for other kinds
        ("entries", pa.list_(ENTRY)),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored object of a unit, with the key of its row (or of the shard itself)."""

    stored: Stored
    key: str


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A work unit as a source plans it.

    `rows` is None if only reading tells the number. `columns` are the source's own columns under their names in the
    output; a stored unit has them in the plan, not here. `row_groups` is the range [first, end) of a parquet file.
    `bytes` is the cost of reading it, if that is not the size of the entries.
    """

    kind: str
    rows: int | None
    entries: list[Entry]
    columns: pa.Schema = field(default_factory=lambda: pa.schema([]))
    row_groups: tuple[int, int] | None = None
    bytes: int | None = None

    @property
    def size(self) -> int:
        """The stored bytes that reading the unit costs."""
        return sum(entry.stored.size for entry in self.entries) if self.bytes is None else self.bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitRef:
    """The place of a unit in the plan, and what the driver must know of it. All units of an object share `object`.

    The driver holds one per unit: about 200 bytes.
    """

    unit: int
    kind: str
    rows: int | None
    bytes: int
    object: Stored
    row_group: int
    offset: int

    def load(self, storage: Storage) -> Unit:
        """Read the unit's entries from one row group of the plan. Raises SystemFailure."""
        with _opened(storage, self.object, PIECE) as file:
            table = file.read_row_group(self.row_group, use_threads=False)
        row = table.slice(self.offset, 1).to_pylist()[0]
        entries = [
            Entry(stored=Stored(path=e["path"], size=e["size"], version=e["version"]), key=e["key"])
            for e in row["entries"]
        ]
        groups = row["row_groups"] and tuple(row["row_groups"])
        return Unit(kind=row["kind"], rows=row["rows"], entries=entries, row_groups=groups)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stored plan: its units in order, and the source's own columns of all units."""

    units: list[UnitRef]
    columns: pa.Schema
    objects: int


def store(storage: Storage, output: str, units: Iterable[Unit], before: Plan | None = None) -> None:
    """Write units as one more object of the plan, completely or not at all. Holds the entries of one row group at a
    time.

    `before` is the plan so far: the numbers continue, and its columns must suffice. Raises SystemFailure if the output
    cannot be written, RecipeError if a column has two types.
    """
    buffer = io.BytesIO()
    columns = before.columns if before else pa.schema([])
    numbered = enumerate(units, len(before.units) if before else 0)
    # Statistics would double the footer, which every read task reads.
    with pq.ParquetWriter(buffer, SCHEMA, compression="zstd", write_statistics=False) as writer:
        while group := list(_row_group(numbered)):
            columns = _unified(columns, [unit for _, unit in group])
            writer.write_table(pa.Table.from_pylist([_row(*item) for item in group], schema=SCHEMA))
        writer.add_key_value_metadata({COLUMNS: base64.b64encode(columns.serialize()).decode()})
    if before and not columns.equals(before.columns):
        new = next(field for field in columns if field not in before.columns)
        raise RecipeError(
            f"input: the new files add the column {new.name} ({new.type}), which the existing plan does not have; use "
            "another output.path for them."
        )
    path = join(output, FOLDER, f"{before.objects if before else 0:05d}.parquet")
    try:
        storage.put(path, buffer.getvalue())
    except OSError as error:
        raise SystemFailure(f"output.path: {path} cannot be written ({error.strerror}).") from None


def load(storage: Storage, output: str) -> Plan:
    """The stored plan, without units if there is none. Raises SystemFailure if it cannot be read."""
    refs: list[UnitRef] = []
    columns = [pa.schema([])]
    objects = storage.objects(join(output, FOLDER), ".parquet")
    for stored in objects:
        with _opened(storage, stored) as file:
            columns.append(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(file.metadata.metadata[COLUMNS.encode()]))))
            for group in range(file.num_row_groups):
                refs += _refs(file, stored, group)
    units = sorted(refs, key=lambda ref: ref.unit)
    return Plan(units=units, columns=pa.unify_schemas(columns), objects=len(objects))


@contextmanager
def _opened(storage: Storage, stored: Stored, piece: int | None = None) -> Iterator[pq.ParquetFile]:
    """An object of the plan. Only the parts that are read are fetched: the plan of a million files has tens of
    megabytes."""
    try:
        with storage.open(stored, piece=piece) as stream:
            yield pq.ParquetFile(stream, pre_buffer=False)
    except (OSError, pa.ArrowInvalid) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SystemFailure(f"{stored.path}: the plan cannot be read ({reason}).") from error


def _refs(file: pq.ParquetFile, stored: Stored, group: int) -> Iterator[UnitRef]:
    table = file.read_row_group(group, columns=["unit", "kind", "rows", "bytes"], use_threads=False)
    for offset, row in enumerate(table.to_pylist()):
        kind = sys.intern(row.pop("kind"))
        yield UnitRef(**row, kind=kind, object=stored, row_group=group, offset=offset)


def _row(number: int, unit: Unit) -> dict[str, object]:
    return {
        "unit": number,
        "kind": unit.kind,
        "rows": unit.rows,
        "bytes": unit.size,
        "row_groups": unit.row_groups,
        "entries": [
            {"path": e.stored.path, "key": e.key, "size": e.stored.size, "version": e.stored.version}
            for e in unit.entries
        ],
    }


def _unified(columns: pa.Schema, units: list[Unit]) -> pa.Schema:
    """The columns so far, with those of more units. A column keeps its type, or takes the wider of two number types."""
    for unit in units:
        if columns.equals(unit.columns, check_metadata=True):
            continue
        try:
            columns = pa.unify_schemas([columns, unit.columns], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise RecipeError(
                f"input: {unit.entries[0].stored.path} does not fit the files before it: {error}."
            ) from None
    return columns


def _row_group(numbered: Iterator[tuple[int, Unit]]) -> Iterator[tuple[int, Unit]]:
    count = 0
    for number, unit in numbered:
        yield number, unit
        count += len(unit.entries)
        if count >= ENTRIES_PER_ROW_GROUP:
            return


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
