"""Every column that the job moves or writes, with its description, and every reason for which a row can fail.

Rows travel as Arrow tables with one schema from the reader to the commit. A row either still has `code` null, or it has
failed and every later stage passes it on untouched. The source's own columns travel under `META_PREFIX`, so that they
cannot collide with ours on the way; they get their own names back in the output.
"""

from collections.abc import Iterable

import pyarrow as pa

META_PREFIX = "meta:"


def _column(name: str, kind: pa.DataType, description: str) -> pa.Field:
    return pa.field(name, kind, metadata={"description": description})


IDENTITY = [
    _column("id", pa.string(), "Readable identity: unit and index, unique in this dataset."),
    _column("unit", pa.int32(), "Number of the work unit in the plan."),
    _column("index", pa.int64(), "Position of the sample in its unit, from 0."),
    _column("unit_rows", pa.int64(), "On a unit's last row: how many rows the unit has; null on the others."),
    _column("source", pa.string(), "Path or URI of the file or shard that the image was read from."),
    _column(
        "key",
        pa.string(),
        "The file's path below its input folder, the sample's WebDataset key, or the image's path or row in parquet.",
    ),
    _column("sha256", pa.string(), "SHA-256 of the image's bytes as stored, in hex; null where none were read."),
    _column("width", pa.int32(), "Width of the source image in pixels, as displayed (after EXIF orientation)."),
    _column("height", pa.int32(), "Height of the source image in pixels, as displayed."),
]
CAPTION = [
    _column("caption", pa.string(), "The caption."),
    _column("finish_reason", pa.string(), "Why decoding ended: stop, or length when it met max_tokens."),
    _column("flags", pa.list_(pa.string()), "What the caption checks found; empty when nothing."),
    _column("attempts", pa.int32(), "How often the row was tried until it was kept or given up."),
    _column("prompt_tokens", pa.int32(), "Tokens of the prompt, the image's included."),
    _column("caption_tokens", pa.int32(), "Tokens of the caption."),
    _column("model", pa.string(), "The model that wrote the caption, with its revision."),
]
FAILURE = [
    _column("stage", pa.string(), "The stage that the row failed in: read, prepare or caption."),
    _column("code", pa.string(), "The reason, one of the codes that the README lists."),
    _column("detail", pa.string(), "What was seen, in words that hold no secret."),
]
# The image on its way: compressed from the reader to prepare, pixels from prepare to the captioner, null elsewhere.
IMAGE = [
    pa.field("image", pa.large_binary()),
    pa.field("pixels", pa.large_binary()),
    pa.field("pixel_width", pa.int32()),
    pa.field("pixel_height", pa.int32()),
]

# What a row carries between stages, before the source's own columns.
ROW_FIELDS = [*IDENTITY, *CAPTION, *FAILURE, *IMAGE]
FAILED_COLUMNS = [*IDENTITY, *FAILURE, next(f for f in CAPTION if f.name == "attempts")]
RESERVED = frozenset(field.name for field in (*IDENTITY, *CAPTION, *FAILURE))

FAILURE_CODES = {
    # read
    "source_missing": "The file was in the plan and is gone.",
    "source_changed": "The file or shard is not the one that was planned (size or modification time).",
    "source_unreadable": "The file exists and cannot be read.",
    "source_refused": "The row names its image by a web address, in other storage, or outside the parquet's folder.",
    "truncated_unit": "The shard or parquet file ends early, is damaged or inflates without bound from here on; counts "
    "as the unit's last row.",
    "empty_unit": "The shard holds no sample.",
    "no_image": "The sample has no image member, or the row no image.",
    "duplicate_member": "The sample has two members of the same name.",
    "metadata_too_large": "The sample's metadata is larger than the limit a row may carry.",
    "metadata_invalid": "A metadata member or value is not what its name or type says (UTF-8, JSON, a number).",
    # prepare
    "image_empty": "The image has no bytes.",
    "image_too_large": "The image has more bytes than prepare.max_bytes.",
    "image_too_many_pixels": "The image has, or makes its decoder pass over, more than prepare.max_source_pixels.",
    "image_format": "The bytes are not an image of a supported format.",
    "image_mode": "The image's pixels are of a kind that has no defined conversion to RGB.",
    "image_truncated": "The image ends early.",
    "image_corrupt": "The image cannot be decoded.",
    "image_aspect": "The image is more elongated than the model's processor accepts.",
    "decode_crash": "The image ends the process that decodes it, each time that it is tried.",
    "decode_timeout": "The image takes longer than prepare.timeout_s, each time that it is tried.",
    # caption
    "prompt_column": "The prompt names a column that this row does not have.",
    "prompt_too_long": "Prompt and image have more tokens than the model's context holds.",
    "engine_rejected": "The engine refused the request.",
    "engine_crash": "The engine, or the replica, died or hung each time it captioned this row, twice with it alone.",
    "caption_empty": "The model wrote nothing.",
}


def row_schema(metadata: pa.Schema) -> pa.Schema:
    """The schema of rows between stages; `metadata` holds the source's own columns under their own names."""
    return pa.schema([*ROW_FIELDS, *(field.with_name(META_PREFIX + field.name) for field in metadata)])


def data_schema(metadata: pa.Schema) -> pa.Schema:
    """The schema of `data/`: captioned rows."""
    return pa.schema([*IDENTITY, *CAPTION, *metadata])


def failed_schema(metadata: pa.Schema) -> pa.Schema:
    """The schema of `failed/`."""
    return pa.schema([*FAILED_COLUMNS, *metadata])


def metadata_schema(row: pa.Schema) -> pa.Schema:
    """The source's own columns of a row schema, under their own names."""
    return pa.schema([f.with_name(f.name.removeprefix(META_PREFIX)) for f in row if f.name.startswith(META_PREFIX)])


def clashes(names: Iterable[str]) -> list[str]:
    """The source column names that the output needs for itself."""
    return sorted(set(names) & RESERVED)


def row_id(unit: int, index: int) -> str:
    """The readable identity of a row; sorts like (unit, index)."""
    return f"{unit:06d}-{index:08d}"
