"""Write tables for tests, and read them without Ray."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from caprl_ray import plan, sources
from caprl_ray.caption.columns import CAPTION
from caprl_ray.caption.stage import Captioner
from caprl_ray.output.commit import CommittedRows
from caprl_ray.plan import Unit
from caprl_ray.prepare.stage import Prepare
from caprl_ray.read.unit import tables, unit_rows
from caprl_ray.recipe.input import Input
from caprl_ray.rows.schema import META_PREFIX, metadata_schema, row_schema
from caprl_ray.rows.stage import Changes, run_stage
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage

HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def content(number: int, size: int = 20) -> bytes:
    return f"image {number} ".encode().ljust(size, b".")


def contents(count: int, size: int = 20) -> list[bytes]:
    return [content(number, size) for number in range(count)]


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def access_to(*paths: object, storage: Storage | None = None, max_bytes: int = 10**6, **settings: Any) -> Access:
    chosen = Input(paths=[str(path) for path in paths], **settings)
    return Access(storage=storage or Storage(), input=chosen, max_bytes=max_bytes)


def planned(access: Access) -> tuple[list[Unit], pa.Schema]:
    """The units with the columns that the plan stores for all of them."""
    units = list(sources.plan_units(access))
    return units, plan.unified(pa.schema([]), units)


def table_of(access: Access, done: BitMap | None = None) -> pa.Table:
    """All rows of an input, as read tasks yield them."""
    units, columns = planned(access)
    schema = row_schema(columns, CAPTION)
    rows = (
        row
        for number, unit in enumerate(units)
        for row in unit_rows(number, unit, schema=schema, access=access, done=done, rows=unit.rows)
    )
    return pa.concat_tables([schema.empty_table(), *tables(rows, schema)])


def rows_of(access: Access, done: BitMap | None = None) -> list[dict[str, Any]]:
    return list(table_of(access, done).to_pylist())


def metadata_of(table: pa.Table) -> pa.Table:
    names = metadata_schema(table.schema).names
    return table.select([META_PREFIX + name for name in names]).rename_columns(names)


class _Passing:
    """Needs and drops the columns of a real stage, but changes no others."""

    def __init__(self, stage: type[Prepare] | type[Captioner]) -> None:
        self.name, self.needs, self.drops = stage.name, ("unit", "index"), stage.drops

    def apply(self, rows: list[dict[str, Any]]) -> list[Changes]:
        return [{"caption": "c"} for _ in rows]


def committed(access: Access, output: Path) -> Path:
    """Read an input, pass its rows through stages that do nothing, and commit. Returns the output's folder."""
    table = table_of(access)
    for stage in (Prepare, Captioner):
        table = run_stage(_Passing(stage), table)
    CommittedRows(Storage(), str(output), 1, CAPTION, 1).write([table.slice(0, 1), table.slice(1)], None)
    return output
