"""The Ray datasource over the plan's units: rows with identity, metadata and compressed images."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
from pyroaring import BitMap
from ray.data import DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from caprl_ray import sources
from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.output.committed import Committed, Failure
from caprl_ray.plan import Unit, UnitRef
from caprl_ray.rows.schema import FAILED_BEFORE, META_PREFIX, metadata_schema, row_id
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.source import Access

# With few units, each has a read task of its own. Above this number of tasks neighbours share one, which bounds the
# driver's work.
MOST_READ_TASKS = 4096
# Size of the tables that a read task yields, so that a unit is never held whole.
TABLE_BYTES = 4 * 2**20

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A unit with what earlier runs have finished of it, and its length if that is known.

    `retry` are the failed rows that are to be retried, by how they failed.
    """

    ref: UnitRef
    done: BitMap
    rows: int | None
    retry: Mapping[Failure, BitMap] = field(default_factory=dict)


def remaining(units: Iterable[UnitRef], committed: Mapping[int, Committed]) -> list[Work]:
    """The units that are not finished, or that have failed rows to retry."""
    work = []
    for ref in units:
        unit = committed.get(ref.unit) or Committed()
        rows = ref.rows if unit.rows is None else unit.rows
        retried = BitMap.union(BitMap(), *unit.retry.values())
        if rows is not None and rows - 1 in retried:
            rows = ref.rows  # the row that gave the length may have been the one where reading failed
        done = unit.done - retried
        if rows is None or len(done) < rows:
            work.append(Work(ref=ref, done=done, rows=rows, retry=dict(unit.retry)))
    return work


class PlannedRows(Datasource):  # type: ignore[misc]
    """Ray datasource over the remaining units. Finished units are not in `work` and are never opened."""

    def __init__(self, work: list[Work], schema: pa.Schema, access: Access) -> None:
        super().__init__()
        self._groups = groups(work)
        self._schema = schema
        self._access = access

    @property
    def tasks(self) -> int:
        """The number of read tasks. Pass it as `override_num_blocks`, or Ray splits the blocks."""
        return len(self._groups)

    def get_name(self) -> str:
        return "Rows"

    def estimate_inmemory_data_size(self) -> int:
        return sum(map(_bytes, self._groups))

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [self._task(group, per_task_row_limit) for group in self._groups]

    def _task(self, group: list[Work], row_limit: int | None) -> ReadTask:
        metadata = BlockMetadata(num_rows=None, size_bytes=_bytes(group), exec_stats=None, input_files=None)
        read = partial(read_units, group, self._schema, self._access)
        return ReadTask(read, metadata, self._schema, row_limit)


def groups(work: list[Work]) -> list[list[Work]]:
    """Assign units to read tasks."""
    tasks = min(len(work), MOST_READ_TASKS)
    return [[work[n] for n in group] for group in np.array_split(np.arange(len(work)), tasks)]


def _bytes(group: list[Work]) -> int:
    return sum(work.ref.bytes for work in group)


def read_units(group: list[Work], schema: pa.Schema, access: Access) -> Iterator[pa.Table]:
    """One read task: the rows of its units, in order."""
    for work in group:
        unit = work.ref.load(access.storage)
        rows = unit_rows(work.ref.unit, unit, schema=schema, access=access, done=work.done, rows=work.rows)
        yield from tables((_retried(row, work) for row in rows), schema)


def _retried(row: Row, work: Work) -> Row:
    for (attempts, code), rows in work.retry.items():
        if row["index"] in rows:
            row["attempts"] += attempts
            row[FAILED_BEFORE.name] = code
    return row


def tables(rows: Iterator[Row], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows as Arrow tables of about TABLE_BYTES. Deterministic, because only the input's bytes count."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.get("image") or b"") + sum(
            value.nbytes for value in row.values() if isinstance(value, pa.Array)
        )
        if size >= TABLE_BYTES:
            yield _table(batch, schema)
            batch, size = [], 0
    if batch:
        yield _table(batch, schema)


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    return pa.table([_column([row[field.name] for row in rows], field.type) for field in schema], schema=schema)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values as one array. Values from a file with Arrow's types are one-row arrays themselves."""
    if not any(isinstance(value, pa.Array) for value in values):
        return pa.array(values, kind)
    return pa.concat_arrays([pa.nulls(1, kind) if value is None else value for value in values])


def unit_rows(
    number: int,
    unit: Unit,
    *,
    schema: pa.Schema,
    access: Access,
    done: BitMap | None = None,
    rows: int | None = None,
) -> Iterator[Row]:
    """The unfinished rows of one unit, in order. The unit's last row carries `unit_rows` (docs/design.md, D5).

    A unit that cannot be read to its end finishes with a failed row, which counts as its last.

    Args:
        number: the unit's number in the plan.
        done: indices that an earlier run has finished.
        rows: the unit's length, if an earlier run has found it.
    """
    done = BitMap() if done is None else done
    source = unit.entries[0].stored.path
    empty, metadata = dict.fromkeys(schema.names), [(f.name, f.type) for f in metadata_schema(schema)]

    def row(index: int, sample: Sample) -> Row:
        return empty | _row(number, index, sample, metadata)

    samples = sources.read_unit(unit, done, access)
    pending: Row | None = None
    position = 0
    try:
        for position, sample in zip(count(1), samples, strict=False):
            if pending:
                yield pending
            pending = row(position - 1, sample) if sample else None
        if position == 0:
            raise RowFailure("empty_unit")
    except RowFailure as failure:
        if pending:
            yield pending
        rows = rows or max(position, done.max() + 1 if done else 0) + 1
        for index in range(position, rows):  # more than one only if an earlier run has read further
            if index not in done:
                rest = Sample(source=source, key="", image=None, metadata={}, failure=failure)
                yield row(index, rest) | {"unit_rows": rows if index == rows - 1 else None}
    except OSError as error:
        raise SystemFailure(f"{source}: cannot be read ({error.strerror or type(error).__name__}).") from error
    else:
        if pending:
            yield pending | {"unit_rows": position}


def _row(unit: int, index: int, sample: Sample, metadata: list[tuple[str, pa.DataType]]) -> Row:
    """The row of a sample. `metadata` are the names and types of the source's own columns."""
    row: Row = {
        "id": row_id(unit, index),
        "unit": unit,
        "index": index,
        "source": sample.source,
        "key": sample.key,
        "attempts": 1,
    }
    failure = sample.failure
    try:
        row |= {META_PREFIX + name: _fitted(sample.metadata.get(name), kind) for name, kind in metadata}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        failure = failure or RowFailure("metadata_invalid", "a value does not fit its column's common type")
    if failure:
        return row | {"stage": "read", "code": failure.code, "detail": failure.detail}
    if sample.image is None:  # this job needs no image; for other jobs the source has failed the row
        return row
    return row | {"image": sample.image, "sha256": hashlib.sha256(sample.image).hexdigest()}


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """A value cast to the common type of its column in all files."""
    return value.cast(kind) if isinstance(value, pa.Array) and value.type != kind else value
