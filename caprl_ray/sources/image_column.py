"""Find the image column of a parquet file. It holds bytes, paths, or Hugging Face's struct of both."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from caprl_ray.errors import RecipeError

BYTES_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content", "data")
PATH_NAMES = (
    "image",
    "image_path",
    "path",
    "file_name",
    "filename",
    "file",
    "uri",
    "url",
    "image_url",
    "s3_uri",
)


@dataclass(frozen=True, kw_only=True)
class ImageColumn:
    """The column that holds the images.

    `fields` names the struct fields to read. It is empty if the column is not a struct.
    """

    name: str
    fields: tuple[str, ...]
    has_bytes: bool

    @property
    def columns(self) -> list[str]:
        """The columns to read, in pyarrow's notation (`image.bytes`)."""
        return [f"{self.name}.{field}" for field in self.fields] or [self.name]

    @property
    def has_paths(self) -> bool:
        """Whether rows may name their image by a path."""
        return not self.has_bytes or "path" in self.fields

    @property
    def bytes_column(self) -> str:
        """The column of the bytes alone, in pyarrow's notation."""
        return f"{self.name}.bytes" if self.fields else self.name

    @property
    def path_column(self) -> str:
        """The column of the paths alone, in pyarrow's notation."""
        return f"{self.name}.path" if self.fields else self.name

    def paths(self, batch: pa.RecordBatch) -> pa.Array:
        """The paths of a batch that has only `path_column`."""
        column = batch.column(self.name)
        return pc.struct_field(column, "path") if self.fields else column

    def parts(self, batch: pa.RecordBatch) -> tuple[pa.Array | None, pa.Array | None]:
        """The bytes and the paths of a batch's images: None if the column has none, null in rows without a value."""
        column = batch.column(self.name)
        if not self.fields:
            return (column, None) if self.has_bytes else (None, column)
        content = pc.struct_field(column, "bytes")
        return content, pc.struct_field(column, "path") if "path" in self.fields else None


def image_column(schema: pa.Schema, configured: str | None, path: str) -> ImageColumn:
    """Return the image column: `configured` (the recipe's `input.image_column`), or one found by type and name.

    Bytes are preferred to paths, Hugging Face's structs to plain bytes, and usual names to other names. `path` is for
    messages only. Raises RecipeError if no column fits, or if several fit equally well.
    """
    columns = ", ".join(schema.names)
    if configured is not None:
        return _configured(schema, configured, path)
    for candidates in _candidates(schema):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            found = " and ".join(candidate.name for candidate in candidates)
            raise RecipeError(
                f"input: {path} has more than one column that may hold the images, {found} (of {columns}); "
                "set input.image_column."
            )
    raise RecipeError(
        f"input: {path} has no column that holds images by its type and name ({columns}); set input.image_column."
    )


def _configured(schema: pa.Schema, name: str, path: str) -> ImageColumn:
    if name not in schema.names:
        columns = ", ".join(schema.names)
        raise RecipeError(f"input.image_column: {path} has no column {name}; it has {columns}.")
    field = schema.field(name)
    column = _struct(field) or _bytes(field) or _paths(field)
    if column is None:
        raise RecipeError(
            f"input.image_column: column {name} of {path} has the type {field.type}; "
            "it must hold bytes, paths, or structs of bytes and path."
        )
    return column


def _candidates(schema: pa.Schema) -> list[list[ImageColumn]]:
    """Groups of columns that may hold the images, best first. The columns of one group are equally good."""
    structs = [column for column in map(_struct, schema) if column]
    plain = [column for column in map(_bytes, schema) if column]
    paths = [column for column in map(_paths, schema) if column]
    return [
        [column for column in structs if column.name.lower() in BYTES_NAMES],
        structs,
        [column for column in plain if column.name.lower() in BYTES_NAMES],
        plain,
        [column for column in paths if column.name.lower() in PATH_NAMES],
    ]


def _struct(field: pa.Field) -> ImageColumn | None:
    if not pa.types.is_struct(field.type):
        return None
    kinds = {part.name: part.type for part in field.type}
    if not is_bytes(kinds.get("bytes")) or len(kinds) < field.type.num_fields:
        return None
    fields = ("bytes", "path") if is_text(kinds.get("path")) else ("bytes",)
    return ImageColumn(name=field.name, fields=fields, has_bytes=True)


def _bytes(field: pa.Field) -> ImageColumn | None:
    return ImageColumn(name=field.name, fields=(), has_bytes=True) if is_bytes(field.type) else None


def _paths(field: pa.Field) -> ImageColumn | None:
    return ImageColumn(name=field.name, fields=(), has_bytes=False) if is_text(field.type) else None


def is_bytes(kind: pa.DataType | None) -> bool:
    """Whether a column of this type can hold encoded images."""
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_text(kind: pa.DataType | None) -> bool:
    """Whether a column of this type can hold paths."""
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))
