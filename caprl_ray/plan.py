"""The plan: the input cut into work units, written once under the output and never changed.

A unit is what one read task streams: a tar shard, a slice of loose files, or a range of a parquet file's row groups.
Its number is its identity (D2); the plan also holds each source's size and version, so that a source that changed is
noticed. The plan lies in parquet objects whose row groups bound what a read task loads; the driver holds one small
`UnitRef` a unit, and never an image's name.
"""

import base64
import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.storage import Storage, Stored, join

T = TypeVar("T")

FOLDER = "plan"
COLUMNS = "caprl_ray.columns"  # in a plan object's metadata: the source's own columns, as an Arrow schema in base64
ENTRIES_PER_ROW_GROUP = 4096

ENTRY = pa.struct([("path", pa.string()), ("key", pa.string()), ("size", pa.int64()), ("version", pa.string())])
SCHEMA = pa.schema(
    [
        ("unit", pa.int32()),
        ("kind", pa.string()),
        ("rows", pa.int64()),  # null where only reading the unit tells
        ("bytes", pa.int64()),
        ("row_groups", pa.list_(pa.int32())),  # first and end, of a parquet file; null for other kinds
        ("entries", pa.list_(ENTRY)),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored object of a unit, with the key that its row (or, for a shard, the shard itself) goes by."""

    stored: Stored
    key: str


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A work unit as a source plans it.

    `rows` is None where only reading tells. `columns` are the source's own columns, under the names that they get in
    the output; a stored unit has them in the plan, not here. `row_groups` is the range [first, end) of a parquet file,
    and `bytes` what reading it costs where that is not the size of the entries.
    """

    kind: str
    rows: int | None
    entries: list[Entry]
    columns: pa.Schema = field(default_factory=lambda: pa.schema([]))
    row_groups: tuple[int, int] | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class UnitRef:
    """Where a unit stands in the plan, and what the driver needs to know of it."""

    unit: int
    kind: str
    rows: int | None
    bytes: int
    object: str
    row_group: int
    offset: int

    def load(self, storage: Storage) -> Unit:
        """Read the unit's entries; one row group of the plan is held for it."""
        table = pq.ParquetFile(io.BytesIO(storage.read(self.object))).read_row_group(self.row_group)
        row = table.slice(self.offset, 1).to_pylist()[0]
        entries = [
            Entry(stored=Stored(path=e["path"], size=e["size"], version=e["version"]), key=e["key"])
            for e in row["entries"]
        ]
        groups = row["row_groups"] and tuple(row["row_groups"])
        return Unit(kind=row["kind"], rows=row["rows"], entries=entries, row_groups=groups)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stored plan: its units in order of their numbers, and the source's own columns in all of them."""

    units: list[UnitRef]
    columns: pa.Schema


def store(storage: Storage, output: str, units: Iterable[Unit]) -> None:
    """Write the plan as one object, whole or not at all; the entries of one row group are held at a time.

    Raises SystemFailure when the output cannot be written, RecipeError when a column has two types.
    """
    buffer = io.BytesIO()
    columns = pa.schema([])
    numbered = enumerate(units)
    with pq.ParquetWriter(buffer, SCHEMA, compression="zstd") as writer:
        while group := list(_row_group(numbered)):
            columns = _unified(columns, [unit for _, unit in group])
            writer.write_table(pa.Table.from_pylist([_row(*item) for item in group], schema=SCHEMA))
        writer.add_key_value_metadata({COLUMNS: base64.b64encode(columns.serialize()).decode()})
    path = join(output, FOLDER, "00000.parquet")
    try:
        storage.put(path, buffer.getvalue())
    except OSError as error:
        raise SystemFailure(f"output.path: {path} cannot be written ({error.strerror}).") from None


def load(storage: Storage, output: str) -> Plan:
    """The stored plan; without units when there is none."""
    refs, columns = [], [pa.schema([])]
    for stored in storage.objects(join(output, FOLDER), ".parquet"):
        file = pq.ParquetFile(io.BytesIO(storage.read(stored.path)))
        columns.append(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(file.metadata.metadata[COLUMNS.encode()]))))
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["unit", "kind", "rows", "bytes"])
            refs += [
                UnitRef(**row, object=stored.path, row_group=group, offset=offset)
                for offset, row in enumerate(table.to_pylist())
            ]
    return Plan(units=sorted(refs, key=lambda ref: ref.unit), columns=pa.unify_schemas(columns))


def _row(number: int, unit: Unit) -> dict[str, object]:
    return {
        "unit": number,
        "kind": unit.kind,
        "rows": unit.rows,
        "bytes": sum(entry.stored.size for entry in unit.entries) if unit.bytes is None else unit.bytes,
        "row_groups": unit.row_groups,
        "entries": [{**asdict(entry.stored), "key": entry.key} for entry in unit.entries],
    }


def _unified(columns: pa.Schema, units: list[Unit]) -> pa.Schema:
    """The columns so far with those of more units; a column keeps its type, or takes the wider of two numeric ones."""
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
