"""Rows as JSON, all rows of a table at once: DuckDB writes it, without a Python object for each value."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from caprl_ray.output.where import connected

if TYPE_CHECKING:
    import duckdb

ROWS_AT_ONCE = 2**12  # memory holds two more copies of the captions of this many rows


def encoded(rows: pa.Table, value: str) -> Iterator[bytes]:
    """JSON of each row: of the SQL expression `value` over its columns."""
    for found in _encoded(rows, value):
        yield from found.cast(pa.binary()).to_pylist()


def lines(rows: pa.Table, value: str) -> Iterator[pa.Buffer]:
    """The same as lines, many in a buffer."""
    for found in _encoded(rows, value, end="chr(10)"):
        together = pa.ListArray.from_arrays(pa.array([0, len(found)], pa.int32()), found)
        yield pc.binary_join(together, "")[0].as_buffer()


def _encoded(rows: pa.Table, value: str, end: str = "''") -> Iterator[pa.StringArray]:
    cursor, done = _connection().cursor(), 0  # in DuckDB 1.4, its results end with it
    found = cursor.from_arrow(rows).project(f"to_json({value})::VARCHAR || {end}")
    for batch in found.arrow(ROWS_AT_ONCE):  # a reader in DuckDB 1.4 and 2; other names are missing or deprecated
        done += batch.num_rows
        yield batch.column(0)
    assert done == rows.num_rows, "each row is encoded once"


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
