"""Parquet that is row-aligned with the source: each file has the rows of a shard or table in the same order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.errors import RecipeError
from caprl_ray.export.form import Writing
from caprl_ray.export.parts import Part, by_source, with_columns
from caprl_ray.export.rows import Reader, UnitRows, reader
from caprl_ray.export.source import CAPTION, Source
from caprl_ray.export.target import Written
from caprl_ray.rows.schema import row_id
from caprl_ray.sources.image_column import LISTED

# Rows of a row group at most, of which a worker holds one, and rows without a caption that are written at once.
GROUP_ROWS = 16_384
UNIQUE = frozenset({"id", "index", "row", "key", "sha256", CAPTION})  # columns in which hardly a value comes twice
LEFT_OUT = ("unit_rows", "unit_left_out")  # columns of our own bookkeeping


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """The form `parquet`: our columns alone, because the source has its own already."""

    source: Source
    target: str

    @classmethod
    def of(cls, source: Source, target: str) -> "Aligned":
        """Raises RecipeError if the rows are not those of the source."""
        column = (source.recipe.get("input") or {}).get("image_column") or ""
        if column.endswith(LISTED):
            raise RecipeError(
                f"--to parquet: {source.path} has a row for each image of a list, so that no file can be aligned with "
                "the source's rows; use --to jsonl or --to hf."
            )
        return cls(source=source, target=target)

    def parts(self, units: Sequence[UnitRows]) -> Iterator[Part]:
        """A file for each shard and each parquet file; of loose files, one for each unit."""
        return with_columns(by_source(self.source.storage, units), self._schema)

    def write(self, part: Part) -> Written:
        """One file, with as many rows as the source has."""
        writing, schema = Writing(storage=self.source.storage, target=self.target, part=part), self._schema
        repeating = [name for name in schema.names if name not in UNIQUE]
        with (
            writing.file(f"{part.name}.parquet") as file,
            pq.ParquetWriter(
                file, schema, compression="zstd", use_dictionary=repeating, write_statistics=[*repeating, "index"]
            ) as parquet,
        ):
            held = reader(self.source.storage)
            for unit in part.units:
                for table in _grouped(_whole(held, unit, schema)):
                    parquet.write_table(table, row_group_size=GROUP_ROWS)
                writing.exported += len(unit.kept)
        return writing.written()

    def finish(self, written: Mapping[str, Written]) -> None:
        """There is no common file."""

    @property
    def _schema(self) -> pa.Schema:
        return pa.schema([field for field in self.source.own if field.name not in LEFT_OUT])


def _whole(held: Reader, unit: UnitRows, schema: pa.Schema) -> Iterator[pa.Table]:
    """All rows of a unit. Those that are not exported have an identity and nothing else."""
    next_row = 0
    for table in held.rows(unit, schema):
        end = table["index"][-1].as_py() + 1
        yield _spread(table, unit.ref.unit, next_row, end)
        next_row = end
    for start in range(next_row, unit.rows, GROUP_ROWS):
        yield _spread(schema.empty_table(), unit.ref.unit, start, min(start + GROUP_ROWS, unit.rows))


def _spread(table: pa.Table, unit: int, start: int, end: int) -> pa.Table:
    """The rows from `start` to `end`, of which the table has some."""
    if table.num_rows == end - start:
        return table
    places = np.full(end - start, -1)
    places[table["index"].to_numpy() - start] = np.arange(table.num_rows)
    rows = table.take(pa.array(places, mask=places < 0))
    identity = {
        "id": pa.array([row_id(unit, index) for index in range(start, end)]),
        "unit": pa.array(np.full(end - start, unit, np.int32)),
        "index": pa.array(np.arange(start, end)),
    }
    for name, values in identity.items():
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)
    return rows


def _grouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Tables of GROUP_ROWS rows, the last one smaller, however the rows come."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(one.num_rows for one in held) >= GROUP_ROWS:
            rows = pa.concat_tables(held)
            whole = rows.num_rows // GROUP_ROWS * GROUP_ROWS
            yield rows.slice(0, whole)
            held = [rows.slice(whole)]
    if held and sum(one.num_rows for one in held):
        yield pa.concat_tables(held).combine_chunks()
