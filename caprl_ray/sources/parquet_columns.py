"""The source's own columns of a parquet file, as the plan holds them: type, description and meaning."""

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.rows.features import KEY, MOST_TYPE, SOURCE_TYPE, features
from caprl_ray.sources.image_column import ImageColumn
from caprl_ray.sources.parquet_file import HIDDEN_EXTENSION, plain_schema
from caprl_ray.sources.partitions import partition_fields
from caprl_ray.text import plain

# Parquet's logical types, and Arrow's names for them.
_LOGICAL = {"UUID": "arrow.uuid", "JSON": "arrow.json"}
_OTHER = ("BSON", "ENUM", "INTERVAL", "GEOMETRY", "GEOGRAPHY", "VARIANT")


def described(file: pq.ParquetFile) -> pa.Schema:
    """All columns of a file with their types. The metadata of a column holds its meaning beyond the type.

    The name of an extension type is kept as text. The type itself is never created, because its code would run on data
    of the file.
    """
    arrow, logical = file.schema_arrow, _logical_types(file)
    found = features(arrow.metadata)
    fields = []
    for given, field in zip(arrow, plain_schema(arrow), strict=True):
        name = (given.metadata or {}).get(HIDDEN_EXTENSION, b"").decode("utf-8", "replace") or logical.get(field.name)
        meaning = {SOURCE_TYPE: plain(name)[:MOST_TYPE].encode()} if name else {}
        if field.name in found:
            meaning[KEY] = found[field.name].encode()
        fields.append(field.with_metadata(meaning))
    return pa.schema(fields)


def metadata_columns(schema: pa.Schema, image: ImageColumn | None, path: str) -> pa.Schema:
    """All columns except the images, and the columns in the file's path, with descriptions for the output."""
    own = [
        field.with_metadata({"description": f"The source's column {field.name}.", **(field.metadata or {})})
        for field in schema
        if not image or field.name != image.name
    ]
    return pa.schema([*own, *partition_fields(path, schema.names)])


def _logical_types(file: pq.ParquetFile) -> dict[str, str]:
    """Parquet's logical types of columns that are not nested."""
    columns = map(file.schema.column, range(len(file.schema)))
    kinds = ((column.path, _kind(column)) for column in columns if column.max_repetition_level == 0)
    named = {
        path: _LOGICAL.get(kind) or (f"parquet.{kind.lower()}" if kind in _OTHER else None) for path, kind in kinds
    }
    return {path: name for path, name in named.items() if name}


def _kind(column: pq.ColumnSchema) -> str:
    """The logical type, or else the older converted type. Only the latter has intervals."""
    kind = str(column.logical_type.type)
    return str(column.converted_type) if kind in ("NONE", "UNKNOWN") else kind
