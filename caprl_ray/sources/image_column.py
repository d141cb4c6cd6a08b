"""Find the image column of a parquet file. It holds bytes, paths, Hugging Face's struct of both, or lists of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from caprl_ray.errors import RecipeError
from caprl_ray.text import plain

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
    "image_base64",
    "base64",
)
MOST_NAMES, MOST_NAME = 100, 80  # columns that a message names, and characters of a name

LISTED = "[*]"  # after a column's name in the recipe: each row holds a list, and each of its images becomes a row


@dataclass(frozen=True, kw_only=True)
class ImageColumn:
    """The column that holds the images.

    `fields`: the struct fields to read; empty if the column is not a struct. `has_bytes`: whether it holds encoded
    images, not only paths. `listed`: whether each row holds a list of images.
    """

    name: str
    fields: tuple[str, ...]
    has_bytes: bool
    listed: bool = False

    @property
    def columns(self) -> list[str]:
        """The columns to read, in pyarrow's notation (`image.bytes`). A column of lists is read as a whole."""
        return [self.name] if self.listed else [f"{self.name}.{field}" for field in self.fields] or [self.name]

    @property
    def has_paths(self) -> bool:
        """Whether rows may name their image by a path."""
        return not self.has_bytes or "path" in self.fields

    @property
    def bytes_column(self) -> str:
        """The column of the bytes alone, in pyarrow's notation."""
        return f"{self.name}.bytes" if self.fields else self.name

    @property
    def path_columns(self) -> list[str]:
        """The columns that hold the paths, in pyarrow's notation."""
        return [f"{self.name}.path"] if self.fields and not self.listed else [self.name]

    def texts(self, batch: pa.RecordBatch) -> pa.Array | None:
        """The paths of a batch that has only `path_columns`; None if there are none."""
        column = batch.column(self.name)
        return self.parts(column.flatten() if self.listed else column)[1]

    def parts(self, images: pa.Array) -> tuple[pa.Array | None, pa.Array | None]:
        """Split images into bytes and paths. Each is None if the column has none, and null where an image has none."""
        if not self.fields:
            return (images, None) if self.has_bytes else (None, images)
        content, paths = (_field(images, name) if name in self.fields else None for name in ("bytes", "path"))
        return content, paths


def _field(images: pa.StructArray, name: str) -> pa.Array | None:
    return pc.struct_field(images, name) if images.type.get_field_index(name) >= 0 else None


def image_column(schema: pa.Schema, configured: str | None, path: str) -> ImageColumn:
    """Return the image column: `configured` (the recipe's `input.image_column`), or one found by type and name.

    Bytes are preferred to paths, Hugging Face's structs to plain bytes, and usual names to other names. `path` is for
    messages only. Raises RecipeError if no column fits, or if several fit equally well.
    """
    if configured is not None:
        return _configured(schema, configured, path)
    columns = shown(schema.names)
    for candidates in _candidates(schema, path):
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


def candidates(schema: pa.Schema) -> list[str]:
    """The columns that may hold the images, as `input.image_column` takes them, the likeliest first."""
    structs = [column.name for column in map(_struct, schema) if column and column.has_bytes]
    plain_bytes = [column.name for column in map(_bytes, schema) if column]
    lists = [column.name + LISTED for column in map(_list, schema) if column and column.has_bytes]
    paths = [column.name for column in map(_paths, schema) if column and column.name.lower() in PATH_NAMES]
    found = [*structs, *plain_bytes, *lists, *paths]
    return sorted(found, key=lambda name: name.removesuffix(LISTED).lower() not in BYTES_NAMES + PATH_NAMES)


def shown(names: Sequence[str]) -> str:
    """Column names for a message of one line."""
    some = [plain(name).replace("\n", " ")[:MOST_NAME] for name in names[:MOST_NAMES]]
    return ", ".join([*some, *(["..."] if len(names) > MOST_NAMES else [])]) or "none"


def _configured(schema: pa.Schema, name: str, path: str) -> ImageColumn:
    inner = name.removesuffix(LISTED)
    listed = name not in schema.names and inner in schema.names and inner != name
    if not listed and name not in schema.names:
        raise RecipeError(f"input.image_column: {path} has no column {name}; it has {shown(schema.names)}.")
    field = schema.field(inner if listed else name)
    column = _list(field) if listed else _struct(field) or _bytes(field) or _paths(field)
    if column is not None:
        return column
    wanted = "lists of bytes, paths, or structs of them" if listed else "bytes, paths, or structs of bytes and path"
    raise RecipeError(
        f"input.image_column: column {field.name} of {path} has the type {field.type}; it must hold {wanted}"
        f"{_hint(field, listed)}."
    )


def _hint(field: pa.Field, listed: bool) -> str:
    if not listed and _list(field):
        return f"; for one row per image of its lists, set 'input.image_column={field.name}{LISTED}'"
    if listed and (_struct(field) or _bytes(field) or _paths(field)):
        return f"; it has no lists, so set input.image_column={field.name}"
    return ""


def _candidates(schema: pa.Schema, path: str) -> Iterator[list[ImageColumn]]:
    """Groups of columns that may hold the images, best first. The columns of one group are equally good."""
    structs = [column for column in map(_struct, schema) if column and column.has_bytes]
    plain_bytes = [column for column in map(_bytes, schema) if column]
    paths = [column for column in map(_paths, schema) if column]
    paths += [column for column in map(_struct, schema) if column and not column.has_bytes]
    yield [column for column in structs if column.name.lower() in BYTES_NAMES]
    yield [column for column in structs if is_bytes(schema.field(column.name).type.field("bytes").type)]
    yield [column for column in plain_bytes if column.name.lower() in BYTES_NAMES]
    yield plain_bytes
    _refuse_lists(schema, path)
    yield [column for column in paths if column.name.lower() in PATH_NAMES]


def _refuse_lists(schema: pa.Schema, path: str) -> None:
    """Raise RecipeError if only lists hold bytes of images. A text column beside them is not tried as paths."""
    lists = [column.name for column in map(_list, schema) if column and column.has_bytes]
    if lists:
        raise RecipeError(
            f"input: {lists[0]} of {path} holds lists of images; set 'input.image_column={lists[0]}{LISTED}' for one "
            "row per image, or to another column that holds the images."
        )


def _list(field: pa.Field) -> ImageColumn | None:
    kind = field.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return None
    inner = pa.field(field.name, kind.value_type)
    column = _struct(inner) or _bytes(inner) or _paths(inner)
    return replace(column, listed=True) if column else None


def _struct(field: pa.Field) -> ImageColumn | None:
    """Hugging Face's struct. Its bytes may be base64, or of type null if all images are paths."""
    if not pa.types.is_struct(field.type):
        return None
    kinds = {part.name: part.type for part in field.type}
    content, path = kinds.get("bytes"), kinds.get("path")
    has_bytes = is_bytes(content) or is_text(content)
    if not (has_bytes or (is_text(path) and (content is None or pa.types.is_null(content)))):
        return None
    if len(kinds) < field.type.num_fields:
        return None
    fields = (*(("bytes",) if has_bytes else ()), *(("path",) if is_text(path) else ()))
    return ImageColumn(name=field.name, fields=fields, has_bytes=has_bytes)


def _bytes(field: pa.Field) -> ImageColumn | None:
    return ImageColumn(name=field.name, fields=(), has_bytes=True) if is_bytes(field.type) else None


def _paths(field: pa.Field) -> ImageColumn | None:
    return ImageColumn(name=field.name, fields=(), has_bytes=False) if is_text(field.type) else None


def is_bytes(kind: pa.DataType | None) -> bool:
    """Whether a column of this type can hold encoded images."""
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_text(kind: pa.DataType | None) -> bool:
    """Whether a column of this type can hold paths, or images as base64."""
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))
