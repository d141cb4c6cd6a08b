"""The plan: the input cut into work units, written once under the output and never changed.

A unit is what one read task streams: a tar shard, or a slice of loose files. Its number is its identity (D2); the plan
also holds each source's size and version, so that a source that changed is noticed. The plan lies in parquet objects
whose row groups bound what a read task loads; the driver holds one small `UnitRef` a unit, and never an image's name.
"""

import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray import storage
from caprl_ray.errors import SystemFailure
from caprl_ray.storage import Stored

T = TypeVar("T")

FOLDER = "plan"
ENTRIES_PER_ROW_GROUP = 4096

ENTRY = pa.struct([("path", pa.string()), ("key", pa.string()), ("size", pa.int64()), ("version", pa.string())])
SCHEMA = pa.schema(
    [
        ("unit", pa.int32()),
        ("kind", pa.string()),
        ("rows", pa.int64()),  # null where only reading the unit tells
        ("bytes", pa.int64()),
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
    """A work unit as a source plans it. `rows` is None where only reading tells."""

    kind: str
    rows: int | None
    entries: list[Entry]


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

    def load(self) -> Unit:
        """Read the unit's entries; one row group of the plan is held for it."""
        table = pq.ParquetFile(io.BytesIO(storage.read(self.object))).read_row_group(self.row_group)
        row = table.slice(self.offset, 1).to_pylist()[0]
        entries = [
            Entry(stored=Stored(path=e["path"], size=e["size"], version=e["version"]), key=e["key"])
            for e in row["entries"]
        ]
        return Unit(kind=row["kind"], rows=row["rows"], entries=entries)


def store(output: str, units: Iterable[Unit]) -> None:
    """Write the plan as one object, whole or not at all; the entries of one row group are held at a time.

    Raises SystemFailure when the output cannot be written.
    """
    buffer = io.BytesIO()
    numbered = enumerate(units)
    with pq.ParquetWriter(buffer, SCHEMA, compression="zstd") as writer:
        while group := list(_row_group(numbered)):
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
    path = storage.join(output, FOLDER, "00000.parquet")
    try:
        storage.put(path, buffer.getvalue())
    except OSError as error:
        raise SystemFailure(f"output.path: {path} cannot be written ({error.strerror}).") from None


def load(output: str) -> list[UnitRef]:
    """The units of the stored plan in order of their numbers; empty when there is none."""
    refs = []
    for path in storage.objects(storage.join(output, FOLDER), ".parquet"):
        file = pq.ParquetFile(io.BytesIO(storage.read(path)))
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["unit", "kind", "rows", "bytes"])
            refs += [
                UnitRef(**row, object=path, row_group=group, offset=offset)
                for offset, row in enumerate(table.to_pylist())
            ]
    return sorted(refs, key=lambda ref: ref.unit)


def _row_group(numbered: Iterator[tuple[int, Unit]]) -> Iterator[dict[str, object]]:
    count = 0
    for number, unit in numbered:
        yield {
            "unit": number,
            "kind": unit.kind,
            "rows": unit.rows,
            "bytes": sum(entry.stored.size for entry in unit.entries),
            "entries": [{**asdict(entry.stored), "key": entry.key} for entry in unit.entries],
        }
        count += len(unit.entries)
        if count >= ENTRIES_PER_ROW_GROUP:
            return


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
