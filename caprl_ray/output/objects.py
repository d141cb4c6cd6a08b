"""The objects of an output: their folders, names and bytes. Does not need Ray."""

import hashlib
import io
import re
import time
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.output.counts import KEY, Counts
from caprl_ray.rows.schema import is_own

DATA, FAILED = "data", "failed"
WRITTEN = b"caprl_ray.written"  # in an object's metadata: seconds since 1970
# In the metadata of an object that compacting has written, as JSON: where the rows of each unit were first written
# (output/places.py).
ORIGINS = b"caprl_ray.origins"
_NAME = re.compile(r"(\d{6,})-(?:([1-9]\d*of[1-9]\d*)-)?[0-9a-f]{32}\.parquet")


@dataclass(frozen=True, kw_only=True)
class Written:
    """Under which lease an object was written: its number, and the part whose lease it was (output/part.py), empty for
    the lease of the whole output."""

    number: int
    part: str = ""

    @property
    def name(self) -> str:
        """The beginning of objects' names."""
        return f"{self.number:06d}-{self.part}" if self.part else f"{self.number:06d}"


def object_name(rows: pa.Table, of: str = "") -> str:
    """The hash in a name. It depends only on `of` and on the set of (unit, index) in `rows`, which must be sorted."""
    digest = hashlib.sha256(of.encode())
    for column, kind in (("unit", "<i4"), ("index", "<i8")):
        digest.update(rows[column].to_numpy().astype(kind).tobytes())
    return digest.hexdigest()[:32]


def written_under(path: str) -> Written | None:
    """The lease under which an object was written; None for objects of older versions."""
    match = _NAME.fullmatch(path.rpartition("/")[2])
    return Written(number=int(match[1]), part=match[2] or "") if match else None


def fitted(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with exactly these columns; missing ones are null."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.schema.names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def dated(table: pa.Table) -> pa.Table:
    """The table with the time of day in its metadata, for reports only (docs/design.md, D2)."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), WRITTEN: f"{time.time():.3f}"})


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as zstd parquet, with sums of its rows in the footer (output/counts.py).

    `unit` and `index` cost under a byte a row, because every resume reads them. So does `row`.
    """
    buffer = io.BytesIO()
    numbers = [name for name in ("index", "row") if is_own(table.schema, name)]
    pq.write_table(
        table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: Counts.of(table).dump()}),
        buffer,
        compression="zstd",
        use_dictionary=["unit", "source", "finish_reason", "model", "stage", "code", "run"],
        column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
    )
    return buffer.getvalue()
