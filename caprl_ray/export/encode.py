"""Rows as JSON, all rows of a table at once: DuckDB writes it, without a Python object for each value."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa

from caprl_ray.output.where import connected

if TYPE_CHECKING:
    import duckdb

ROWS_AT_ONCE = 2**11  # as DuckDB works on them; memory holds so many captions once more


def encoded(rows: pa.Table, value: str) -> Iterator[bytes]:
    """What is JSON of each row: the SQL expression `value` over its columns."""
    found = _connection().cursor().from_arrow(rows).project(f"to_json({value})::VARCHAR")
    for batch in found.to_arrow_reader(ROWS_AT_ONCE):
        yield from batch.column(0).cast(pa.binary()).to_pylist()


def struct(names: Iterable[str]) -> str:
    """SQL for all of these columns under their own names."""
    fields = (f"{_quoted(name, chr(39))}: {_quoted(name, chr(34))}" for name in names)
    return f"{{{', '.join(fields)}}}"


def _quoted(name: str, quote: str) -> str:
    return quote + name.replace(quote, 2 * quote) + quote


@lru_cache(1)
def _connection() -> "duckdb.DuckDBPyConnection":
    """One for this process: to connect takes as long as to write thousands of rows."""
    return connected()
