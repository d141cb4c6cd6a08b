"""The frame around every stage: failed rows pass by, a row's fault becomes a failed row, no row is lost or moved.

A stage is a class with one method, `apply`. It gets the rows that have not failed so far, with the columns that it
`needs`. It returns for each of them, in order, the changed columns or the RowFailure that ends it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from caprl_ray.errors import RowFailure, SystemFailure

Changes = dict[str, Any]
FAULT = "this is a fault of the stage, so the run stops before anything is written"


class Stage(Protocol):
    """One step of a row's way. `failed/` holds its `name`. `drops` are columns that end with this step."""

    name: str

    @property
    def needs(self) -> tuple[str, ...]: ...

    @property
    def drops(self) -> tuple[str, ...]: ...

    def apply(self, rows: list[dict[str, Any]]) -> Sequence[Changes | RowFailure]:
        """The changes of each row or its failure, in order."""
        ...


def run_stage(stage: Stage, table: pa.Table) -> pa.Table:
    """Apply a stage to a table of rows: the same rows, in the same order, with the same schema."""
    live = [code is None for code in table["code"].to_pylist()]
    rows = _rows(table, stage.needs)
    results = stage.apply([row for row, alive in zip(rows, live, strict=True) if alive])
    if len(results) != sum(live):
        raise SystemFailure(f"{stage.name}: {sum(live)} rows went in and {len(results)} came out; {FAULT}.")
    ordered = iter(results)
    changes = [_changes(stage, next(ordered)) if alive else {} for alive in live]
    changed = {name for change in changes for name in change}.union(stage.drops)
    columns = [
        _changed(field, table[field.name], changes, field.name in stage.drops)
        if field.name in changed
        else table[field.name]
        for field in table.schema
    ]
    out = pa.table(columns, schema=table.schema)
    if not out.select(["unit", "index"]).equals(table.select(["unit", "index"])):
        raise SystemFailure(f"{stage.name}: other rows came out than went in; {FAULT}.")
    return out


def _rows(table: pa.Table, names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows as dicts of the columns that exist. Images are not copied: they are views."""
    names = [name for name in names if name in table.schema.names]
    columns = [_values(table[name]) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values(column: pa.ChunkedArray) -> list[Any]:
    if not pa.types.is_large_binary(column.type):
        return list(column.to_pylist())
    return [view for chunk in column.chunks for view in _views(chunk)]


def _views(array: pa.LargeBinaryArray) -> Iterator[memoryview | None]:
    """A view of each value's bytes. A scalar of Arrow would copy them."""
    if not len(array):
        return  # and it may have no buffers
    _, offsets, content = array.buffers()
    ends = np.frombuffer(offsets, np.int64, len(array) + 1, offset=8 * array.offset).tolist()
    whole = memoryview(content or b"")
    for start, end, valid in zip(ends[:-1], ends[1:], array.is_valid().to_pylist(), strict=True):
        yield whole[start:end] if valid else None


def _changes(stage: Stage, result: Changes | RowFailure) -> Changes:
    if isinstance(result, RowFailure):
        return {"stage": stage.name, "code": result.code, "detail": result.detail}
    return result


def _changed(field: pa.Field, old: pa.ChunkedArray, changes: list[Changes], dropped: bool) -> pa.Array:
    if dropped:
        return pa.array([change.get(field.name) for change in changes], field.type)
    values = zip(old.to_pylist(), changes, strict=True)
    return pa.array([change.get(field.name, value) for value, change in values], field.type)
