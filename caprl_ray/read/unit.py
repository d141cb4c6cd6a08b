"""The rows of one unit, with identity, metadata and compressed images, as tables of bounded size."""

import hashlib
from collections.abc import Callable, Container, Iterator
from functools import partial
from itertools import count
from typing import Any

import pyarrow as pa
from pyroaring import BitMap

from caprl_ray import sources
from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.plan import Unit
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.rows.schema import META_PREFIX, SOURCE_FLAGS, bounded, metadata_schema, row_id
from caprl_ray.sources import texts
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.source import Access
from caprl_ray.text import readable

# Size of the tables that a read task yields, so that a unit is never held whole.
TABLE_BYTES = 4 * 2**20
SIZE = ""  # key of a row's size in bytes; no column has this name, because those of a source have a prefix

Row = dict[str, Any]
Read = Callable[[Unit, BitMap, Access, LeftOut], Iterator[Sample | None]]


def tables(rows: Iterator[Row], schema: pa.Schema) -> Iterator[pa.Table]:
    """Group rows into Arrow tables of about TABLE_BYTES. Deterministic: cuts depend only on the size of the input."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row[SIZE]
        if size >= TABLE_BYTES:
            yield _table(batch, schema)
            batch, size = [], 0
    if batch:
        yield _table(batch, schema)


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    return pa.table([_column([row[field.name] for row in rows], field.type) for field in schema], schema=schema)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """The values as one array. A value from a file with Arrow's types is itself an array of one row."""
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
    read: Read = sources.read_unit,
    placeholders: Container[bytes] = (),
) -> Iterator[Row]:
    """Yield the unfinished rows of one unit, in order.

    The unit's last row carries `unit_rows` (docs/design.md, D5), and the counts of what reading the unit left out. A
    unit that cannot be read to its end finishes with a failed row, which counts as its last. Raises SystemFailure if
    storage fails.

    Args:
        number: the unit's number in the plan.
        done: indices that an earlier run has finished.
        rows: the unit's length, if an earlier run has found it.
        read: how the unit's samples are read.
        placeholders: SHA-256 of images that are not wanted; their rows fail.
    """
    done = BitMap() if done is None else done
    source = unit.entries[0].stored.path
    empty, metadata = dict.fromkeys(schema.names), [(f.name, f.type) for f in metadata_schema(schema)]

    def row(index: int, sample: Sample) -> Row:
        return empty | _row(number, index, sample, metadata, placeholders)

    left_out = LeftOut()

    def last(rows: int) -> Row:
        return {"unit_rows": rows, "unit_left_out": left_out.dump() if left_out else None}

    samples = read(unit, done, access, left_out)
    if unit.kind == "parquet" and unit.row_groups is None:
        samples = map(partial(_planned, {name for name, _ in metadata}), samples)
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
                place = sources.KINDS[unit.kind].row(unit, index)
                rest = Sample(source=source, row=place, key="", image=None, metadata={}, failure=failure)
                yield row(index, rest) | (last(rows) if index == rows - 1 else {})
    except OSError as error:
        raise SystemFailure(f"{source}: cannot be read ({error.strerror or type(error).__name__}).") from error
    else:
        if pending:
            yield pending | last(position)


def _planned(columns: set[str], sample: Sample | None) -> Sample | None:
    """Check a sample of a file that could not be read when it was planned, and has been repaired since.

    Raises RowFailure if it has a column that the plan lacks, because that column would be lost.
    """
    more = sorted(sample.metadata.keys() - columns) if sample and sample.failure is None else []
    if more:
        raise RowFailure(
            "truncated_unit",
            f"repaired, with the column {more[0]} that the plan does not have; use another output.path",
        )
    return sample


def _row(
    unit: int,
    index: int,
    sample: Sample,
    metadata: list[tuple[str, pa.DataType]],
    placeholders: Container[bytes],
) -> Row:
    """The row of a sample. `metadata` are the names and types of the source's own columns."""
    row: Row = {
        "id": row_id(unit, index),
        "unit": unit,
        "index": index,
        "source": readable(sample.source),
        "row": sample.row,
        "key": bounded(sample.key),
        SOURCE_FLAGS.name: list(sample.flags),
        "attempts": 1,
        SIZE: sample.size,
    }
    for name, kind in metadata:
        try:
            row[META_PREFIX + name] = _fitted(sample.metadata.get(name), kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            row[SOURCE_FLAGS.name].append(f"{texts.INVALID}:{texts.shown(name)}")
    failure = sample.failure
    if failure:
        return row | {"stage": "read", "code": failure.code, "detail": bounded(failure.detail)}
    if sample.image is None:  # this job needs no image; for other jobs the source has failed the row
        return row
    hashed = hashlib.sha256(sample.image)
    row["sha256"] = hashed.hexdigest()
    if hashed.digest() in placeholders:
        return row | {"stage": "read", "code": "placeholder", "detail": ""}
    return row | {"encoded": sample.image}


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """Cast a value to the common type of its column in all files. Raises an error of Arrow if it does not fit."""
    return value.cast(kind) if isinstance(value, pa.Array) and value.type != kind else value
