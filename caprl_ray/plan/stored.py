"""The stored plan, as it is read: by the driver as a whole, by a read task one unit at a time.

It consists of numbered parquet objects, its parts. A read task loads one row group, and a part has few of them, so that
its footer is small. The footer says whether the part closes the plan. Outputs of older versions have one object for the
first plan and one for each extension, of any size.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.errors import SystemFailure
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.plan.units import Entry, Lines, Position, Unit
from caprl_ray.storage import Storage, Stored, join
from caprl_ray.storage.prefetch import prefetched
from caprl_ray.text import as_named

FOLDER = "plan"
COLUMNS = "caprl_ray.columns"  # in a part's metadata: the source's own columns so far, as an Arrow schema in base64
END = "caprl_ray.end"  # in a part's metadata: `End` as JSON; the objects of older versions have none
# In a part's metadata: what the planning has left out so far, up to the part's end, as JSON.
LEFT_OUT = "caprl_ray.left_out"
IDENTIFYING = 1000  # units that `identity` looks at
# Bytes per request when a unit is loaded: a footer, or a whole row group.
PIECE = 256 * 1024

ENTRY = pa.struct([("path", pa.string()), ("key", pa.string()), ("size", pa.int64()), ("version", pa.string())])
SCHEMA = pa.schema(
    [
        ("unit", pa.int32()),
        ("kind", pa.string()),
        ("rows", pa.int64()),  # null if only reading the unit tells
        ("bytes", pa.int64()),
        # First and end of a range in a parquet file, then what older versions do not store: the number of the file's
        # row groups, and the number of the range's first row in the file; null for other kinds.
        ("row_groups", pa.list_(pa.int64())),
        # `Lines` of a manifest; null for other kinds, and not there in plans of older versions.
        ("lines", pa.struct([("start", pa.int64()), ("end", pa.int64()), ("row", pa.int64()), ("line", pa.int64())])),
        ("entries", pa.list_(ENTRY)),
    ]
)


@dataclass(frozen=True, kw_only=True)
class End:
    """The state of the plan at the end of a part.

    `closed` is the number of the plan's first parts that are closed: all of them, this one included, if the input was
    planned to its end. Otherwise planning goes on after `position`.
    """

    closed: int
    position: Position | None = None

    def dump(self) -> str:
        """The text for a part's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, file: pq.ParquetFile, objects: int) -> "End":
        """Read it from the last of so many objects."""
        text = (file.metadata.metadata or {}).get(END.encode())
        if text is None:
            return cls(closed=objects)
        end = json.loads(text)
        return cls(closed=end["closed"], position=Position(**end["position"]) if end["position"] else None)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitRef:
    """The place of a unit in the plan, and the facts that the driver needs. All units of an object share `object`.

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
        with opened(storage, self.object, PIECE) as file:
            table = file.read_row_group(self.row_group, use_threads=False)
        return _unit(table.slice(self.offset, 1).to_pylist()[0])


def load_units(storage: Storage, refs: Iterable[UnitRef]) -> Iterator[Unit]:
    """All these units in order. Row groups of the plan are read once if units of one stand together. Raises
    SystemFailure."""
    for (stored, group), some in groupby(refs, key=lambda ref: (ref.object, ref.row_group)):
        with opened(storage, stored, PIECE) as file:
            table = file.read_row_group(group, use_threads=False)
        yield from (_unit(table.slice(ref.offset, 1).to_pylist()[0]) for ref in some)


def first_entries(storage: Storage, refs: Iterable[UnitRef]) -> Iterator[Entry]:
    """The first entry of each unit, in order: of a shard or of a parquet file the only one. Row groups of the plan are
    read once if units of one stand together. Raises SystemFailure."""
    for (stored, group), some in groupby(refs, key=lambda ref: (ref.object, ref.row_group)):
        with opened(storage, stored, PIECE) as file:
            entries = file.read_row_group(group, columns=["entries"], use_threads=False)["entries"]
        yield from (_entry(entries[ref.offset][0].as_py()) for ref in some)


def identity(storage: Storage, refs: Sequence[UnitRef]) -> str:
    """Tells the ids of these units' rows from those of another plan: the number of units, and a hash of the first ones.

    It stays the same if the plan is extended, if the output is copied, and if the same input is planned again.
    """
    some, hashed = refs[:IDENTIFYING], hashlib.sha256()
    for ref, entry in zip(some, first_entries(storage, some), strict=True):
        hashed.update(repr((ref.kind, ref.rows, entry.stored.path, entry.key)).encode(errors="surrogateescape"))
    return f"{len(some)} {hashed.hexdigest()[:32]}"


def identified(storage: Storage, refs: Sequence[UnitRef], found: str) -> bool:
    """Whether `found` is the identity of a plan that began with these units."""
    count = found.partition(" ")[0]
    return count.isdecimal() and found == identity(storage, refs[: int(count)])


def _unit(row: Mapping[str, Any]) -> Unit:
    groups = row["row_groups"] or []
    return Unit(
        kind=row["kind"],
        rows=row["rows"],
        entries=[_entry(e) for e in row["entries"]],
        row_groups=(groups[0], groups[1]) if groups else None,
        file_groups=groups[2] if len(groups) > 2 else None,
        first_row=groups[3] if len(groups) > 3 else None,
        lines=Lines(**row["lines"]) if row.get("lines") else None,
    )


def _entry(row: Mapping[str, Any]) -> Entry:
    stored = Stored(path=as_named(row["path"]), size=row["size"], version=row["version"])
    return Entry(stored=stored, key=as_named(row["key"]))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stored plan: its units in order, the source's own columns of all units, the number of its objects, and its
    end.

    `left_out` are the counts of the last listing of the input. An extension lists the whole input again, so its counts
    replace the earlier ones.
    """

    units: list[UnitRef]
    columns: pa.Schema
    objects: int
    end: End
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def complete(self) -> bool:
        """Whether the input was planned to its end."""
        return 0 < self.objects == self.end.closed


EMPTY = Plan(units=[], columns=pa.schema([]), objects=0, end=End(closed=0))


def objects(storage: Storage, output: str) -> list[Stored]:
    """The objects of the plan, in order."""
    return storage.objects(join(output, FOLDER), ".parquet")


def closed(storage: Storage, output: str) -> bool:
    """Whether the output holds a plan that was once complete, so that there may be rows. Raises SystemFailure."""
    found = objects(storage, output)
    if not found:
        return False
    with opened(storage, found[-1]) as file:
        return End.of(file, len(found)).closed > 0


def load(storage: Storage, output: str) -> Plan:
    """The stored plan, without units if there is none. Raises SystemFailure if it cannot be read."""
    found = objects(storage, output)
    refs: list[UnitRef] = []
    last = EMPTY
    for last in prefetched(lambda stored: _part(storage, stored, len(found)), found):
        refs += last.units
    # The last object's columns are those of the whole plan, and so is what it says of left-out files.
    return replace(last, units=sorted(refs, key=lambda ref: ref.unit))


def _part(storage: Storage, stored: Stored, number: int) -> Plan:
    """One of `number` objects, as if the plan were its units."""
    with opened(storage, stored) as file:
        metadata = file.metadata.metadata
        columns = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(metadata[COLUMNS.encode()])))
        refs = [ref for group in range(file.num_row_groups) for ref in _refs(file, stored, group)]
        left_out = LeftOut.load(metadata.get(LEFT_OUT.encode(), b"{}").decode())
        return Plan(units=refs, columns=columns, objects=number, end=End.of(file, number), left_out=left_out)


def _refs(file: pq.ParquetFile, stored: Stored, group: int) -> Iterator[UnitRef]:
    table = file.read_row_group(group, columns=["unit", "kind", "rows", "bytes"], use_threads=False)
    for offset, row in enumerate(table.to_pylist()):
        kind = sys.intern(row.pop("kind"))
        yield UnitRef(**row, kind=kind, object=stored, row_group=group, offset=offset)


@contextmanager
def opened(storage: Storage, stored: Stored, piece: int | None = None) -> Iterator[pq.ParquetFile]:
    """An object of the plan. Only what is read of it is fetched."""
    try:
        with storage.open(stored, piece=piece) as stream:
            yield pq.ParquetFile(stream, pre_buffer=False)
    except (OSError, pa.ArrowInvalid) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise SystemFailure(f"{stored.path}: the plan cannot be read ({reason}).") from error
