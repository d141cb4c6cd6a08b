"""The objects that a write task puts."""

from pathlib import Path

import pyarrow as pa

from caprl_ray.caption.columns import CAPTION
from caprl_ray.output.commit import CommittedRows
from caprl_ray.rows.schema import row_schema
from caprl_ray.storage import Storage


def test_a_write_task_without_rows_writes_nothing(tmp_path: Path) -> None:
    empty = row_schema(pa.schema([]), CAPTION).empty_table()
    sink = CommittedRows(Storage(), str(tmp_path), 10, CAPTION, 1)
    sink.write([], None)
    sink.write([empty, empty], None)
    assert not list(tmp_path.iterdir())
