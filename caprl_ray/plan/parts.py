"""Store a plan in parts while the input is listed.

Killed planning continues after its last part. A part is created only if its number is free, so that a late write of a
lost driver never replaces a part of its successor.
"""

import base64
import io
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.plan.planning import Planning
from caprl_ray.plan.stored import COLUMNS, EMPTY, END, FOLDER, LEFT_OUT, SCHEMA, End, Plan, objects
from caprl_ray.plan.units import Entry, Unit
from caprl_ray.rows.features import meaning
from caprl_ray.storage import Storage, join
from caprl_ray.text import readable

ENTRIES_PER_ROW_GROUP = 4096
# Bounds a part and its footer: 64 row groups of files have some 6 MB and 50 kB. Every read task fetches the footer.
ROW_GROUPS_PER_PART = 64
# A part is stored after this many seconds even if it is small, because killed planning loses the unstored part. The
# first part comes soon, because nothing starts before it. Later ones may take longer, up to the second number, so that
# there are few.
FIRST_PART_S, PART_S = 2.0, 60.0


def store(
    storage: Storage, output: str, units: Iterable[Unit], before: Plan = EMPTY, planning: Planning | None = None
) -> None:
    """Write units as further parts of the plan, and close it. Holds one part at a time.

    `before` is the plan so far: the numbers continue. If it was closed, its columns must suffice. Raises SystemFailure
    if the output cannot be written, RecipeError if a column has two types.
    """
    parts = _Parts(storage, output, before, planning or Planning())
    try:
        for unit in units:
            parts.add(unit)
    except SystemFailure:
        with suppress(SystemFailure):
            parts.keep()
        raise
    parts.close()


def discard(storage: Storage, output: str, closed: int) -> None:
    """Delete the parts after the first `closed` ones, the last one first."""
    for stored in reversed(objects(storage, output)[closed:]):
        storage.delete(stored.path)


class _Parts:
    """The parts of a plan that is being made."""

    def __init__(self, storage: Storage, output: str, before: Plan, planning: Planning) -> None:
        self._storage = storage
        self._folder = join(output, FOLDER)
        self._planning = planning
        self._before = before
        self._columns = before.columns
        self._unit, self._part = len(before.units), before.objects
        self._patience = FIRST_PART_S
        self._begin()

    def _begin(self) -> None:
        self._buffer = io.BytesIO()
        # Statistics would double the footer.
        self._writer = pq.ParquetWriter(self._buffer, SCHEMA, compression="zstd", write_statistics=False)
        self._row_groups = 0
        self._rows: list[dict[str, object]] = []
        self._last: Unit | None = None
        self._entries = 0
        self._began = time.monotonic()

    def add(self, unit: Unit) -> None:
        """Add a unit. Stores a part when it is full or old enough, but never between two units of one object."""
        self._columns = unified(self._columns, [unit])
        if self._before.end.closed and not self._columns.equals(self._before.columns):
            raise _more_columns(self._columns, self._before.columns)
        self._rows.append(_row(self._unit, unit))
        self._last = unit
        self._left_out = self._planning.left_out.dump()  # before the listing goes on
        self._planning.objects += len(unit.entries)
        self._unit += 1
        self._entries += len(unit.entries)
        if self._entries >= ENTRIES_PER_ROW_GROUP:
            self._write_row_group()
        old = time.monotonic() - self._began >= self._patience
        if old or self._row_groups >= ROW_GROUPS_PER_PART:
            self.keep()

    def keep(self) -> None:
        """Store the units so far as a part, after which planning can continue."""
        if self._last and not self._last.more:
            self._store(End(closed=self._before.end.closed, position=self._last.position), self._left_out)

    def close(self) -> None:
        """Store the last part, which says that the plan is complete."""
        self._store(End(closed=self._part + 1), self._planning.left_out.dump())

    def _write_row_group(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
        self._row_groups += 1
        self._rows, self._entries = [], 0

    def _store(self, end: End, left_out: str) -> None:
        if self._rows:
            self._write_row_group()
        columns = base64.b64encode(self._columns.serialize()).decode()
        self._writer.add_key_value_metadata({COLUMNS: columns, END: end.dump(), LEFT_OUT: left_out})
        self._writer.close()
        with self._planning.storing():
            self._create(f"{self._folder}/{self._part:05d}.parquet", self._buffer.getvalue())
        self._planning.begun.set()
        self._part += 1
        self._patience = min(2 * self._patience, PART_S)
        self._begin()

    def _create(self, path: str, content: bytes) -> None:
        try:
            try:
                self._storage.create(path, content)
            except FileExistsError:
                if self._storage.read(path) != content:  # otherwise the write succeeded and its answer was lost
                    raise
        except FileExistsError:
            raise SystemFailure(
                f"output.path: another run has written {path}; run the same command again to resume."
            ) from None
        except OSError as error:
            raise SystemFailure(f"output.path: {path} cannot be written ({error.strerror}).") from None


def _row(number: int, unit: Unit) -> dict[str, object]:
    return {
        "unit": number,
        "kind": unit.kind,
        "rows": unit.rows,
        "bytes": unit.size,
        "row_groups": _row_groups(unit),
        "lines": None if unit.lines is None else asdict(unit.lines),
        "entries": list(map(_entry, unit.entries)),
    }


def _row_groups(unit: Unit) -> list[int] | None:
    if unit.row_groups is None:
        return None
    further = (number for number in (unit.file_groups, unit.first_row) if number is not None)
    return [*unit.row_groups, *further]


def _entry(entry: Entry) -> dict[str, object]:
    stored = entry.stored
    return {
        "path": readable(stored.path),
        "key": readable(entry.key),
        "size": stored.size,
        "version": stored.version,
    }


def unified(columns: pa.Schema, units: Iterable[Unit]) -> pa.Schema:
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
        columns = _with_meanings(columns, unit)
    return columns


def _with_meanings(columns: pa.Schema, unit: Unit) -> pa.Schema:
    """The columns with metadata from later units. Unifying keeps only the metadata of the first."""
    for number, field in enumerate(columns):
        given = unit.columns.get_field_index(field.name)
        more = meaning(unit.columns.field(given)) if given >= 0 else {}
        if more.keys() - (field.metadata or {}).keys():
            columns = columns.set(number, field.with_metadata({**more, **(field.metadata or {})}))
    return columns


def _more_columns(columns: pa.Schema, before: pa.Schema) -> RecipeError:
    new = next(field for field in columns if field not in before)
    return RecipeError(
        f"input: the new files add the column {new.name} ({new.type}), which the existing plan does not have; use "
        "another output.path for them."
    )
