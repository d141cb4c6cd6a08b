"""The columns that every job moves or writes, with their descriptions.

Rows travel as Arrow tables with one schema from the reader to the commit. While `code` is null, a row has not failed.
Later stages pass a failed row on unchanged. The source's own columns travel under `META_PREFIX`, so that they cannot
collide with ours. The output has them under their own names.
"""

import hashlib
from collections.abc import Iterable, Sequence

import pyarrow as pa

META_PREFIX = "meta:"
MAX_TEXT = 4096  # bytes of a key or a detail, as many as a path may have


def column(name: str, kind: pa.DataType, description: str) -> pa.Field:
    """A column with a description, which the parquet schema holds."""
    return pa.field(name, kind, metadata={"description": description})


IDENTITY = [
    column("id", pa.string(), "Readable name of the row: unit and index. Unique in this dataset."),
    column("unit", pa.int32(), "Number of the work unit in the plan."),
    column("index", pa.int64(), "Position of the sample in its unit, from 0."),
    column("unit_rows", pa.int64(), "On a unit's last row: the number of the unit's rows; null on the others."),
    column(
        "unit_left_out",
        pa.string(),
        "On a unit's last row: what of the unit is in no row, as a JSON object of reasons, each with a count and an "
        "example; null if nothing was left out, and on the other rows.",
    ),
    column("source", pa.string(), "Path or URI of the file or shard that the image was read from."),
    column(
        "row",
        pa.int64(),
        "Number of the row in its parquet file, or of the sample in its shard, from 0; 0 for an image file. All images "
        "of a list have the number of the list's row. Null in a failed row whose place in the file is unknown.",
    ),
    column(
        "key",
        pa.string(),
        "The file's path below its input folder, the sample's WebDataset key, or the image's path or row in parquet. "
        "A key of more than 4 KiB is cut and ends with the SHA-256 of the whole key.",
    ),
    column("sha256", pa.string(), "SHA-256 of the image's bytes as stored, in hex; null if no bytes were read."),
    column("width", pa.int32(), "Width of the source image in pixels, as displayed (after EXIF orientation)."),
    column("height", pa.int32(), "Height of the source image in pixels, as displayed."),
]
ATTEMPTS = column("attempts", pa.int32(), "How often the row was tried before it was finished or given up.")
FAILURE = [
    column("stage", pa.string(), "The stage in which the row failed, such as read, prepare or caption."),
    column("code", pa.string(), "The reason: one of the failure codes."),
    column("detail", pa.string(), "Details of the failure, without secrets."),
]
RUN = column("run", pa.string(), "Short hash of the recipe that wrote the row; `runs` in run.json has that recipe.")
# Columns that outputs of older versions lack. The source of such an output may have a column of that name.
LATER = frozenset({"previous", "row", "run", "saved_tokens"})
# How descriptions of the source's own columns begin (sources/).
SOURCES = b"The source's column"
# Of a row that is retried: the code that it failed with before. It ends with the last stage (watch/counted.py).
FAILED_BEFORE = pa.field("failed_before", pa.string())
# Flags that reading (sources/texts.py) and prepare (prepare/blank.py) give a row. A job puts them into its own `flags`.
SOURCE_FLAGS = pa.field("source_flags", pa.list_(pa.string()))
# The image on its way: compressed from the reader to prepare, pixels from prepare to the captioner, null elsewhere.
IMAGE = [
    pa.field("encoded", pa.large_binary()),
    pa.field("pixels", pa.large_binary()),
    pa.field("pixel_width", pa.int32()),
    pa.field("pixel_height", pa.int32()),
]

# The columns that a job adds to its rows.
Fields = Sequence[pa.Field]


def row_schema(metadata: pa.Schema, adds: Fields = (), *, image: bool = True) -> pa.Schema:
    """The schema of rows between stages.

    Args:
        metadata: the source's own columns under their own names.
        adds: the columns that the job adds.
        image: whether the rows carry an image.
    """
    ours = [*IDENTITY, *_result(adds), *FAILURE, FAILED_BEFORE, SOURCE_FLAGS, *(IMAGE if image else ())]
    return pa.schema([*ours, *(field.with_name(META_PREFIX + field.name) for field in metadata)])


def data_schema(metadata: pa.Schema, adds: Fields = ()) -> pa.Schema:
    """The schema of `data/`: finished rows."""
    return pa.schema([*_stored((*IDENTITY, *_result(adds), RUN), metadata), *metadata])


def failed_schema(metadata: pa.Schema) -> pa.Schema:
    """The schema of `failed/`."""
    return pa.schema([*_stored((*IDENTITY, *FAILURE, ATTEMPTS, RUN), metadata), *metadata])


def metadata_schema(row: pa.Schema) -> pa.Schema:
    """The source's own columns of a row schema, under their own names."""
    return pa.schema([f.with_name(f.name.removeprefix(META_PREFIX)) for f in row if f.name.startswith(META_PREFIX)])


def clashes(names: Iterable[str], adds: Fields = ()) -> list[str]:
    """The source's columns whose names the output needs for itself."""
    return sorted(set(names) & {field.name for field in (*IDENTITY, *_result(adds), RUN, *FAILURE)})


def is_own(schema: pa.Schema, name: str) -> bool:
    """Whether a stored table has a column of this name that is ours, not one of the source's own."""
    place = schema.get_field_index(name)
    return place >= 0 and not (schema.field(place).metadata or {}).get(b"description", b"").startswith(SOURCES)


def bounded(key: str) -> str:
    """A key or a detail as it is stored. One that is absurdly long is cut, and ends with the hash of the whole."""
    content = key.encode("utf-8", "surrogatepass")
    if len(content) <= MAX_TEXT:
        return key
    digest = f"...sha256:{hashlib.sha256(content).hexdigest()}"
    return content[: MAX_TEXT - len(digest)].decode("utf-8", "ignore") + digest


def row_id(unit: int, index: int) -> str:
    """The readable identity of a row. It sorts like (unit, index) in plans of up to a million units."""
    return f"{unit:06d}-{index:08d}"


def _result(adds: Fields) -> Fields:
    """The job's columns, with `attempts` where the job puts it, otherwise at the end."""
    return adds if ATTEMPTS in adds else (*adds, ATTEMPTS)


def _stored(ours: Fields, metadata: pa.Schema) -> Fields:
    """Our columns, except in an output of an older version those whose name the source has."""
    return [field for field in ours if field.name not in LATER or field.name not in metadata.names]
