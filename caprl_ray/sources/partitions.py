"""Columns in the folder names of a table's files, as Hive and Spark write them: `label=cat/year=2024/`.

Values are text: only all files together tell whether a column has only numbers, and a later file may add another value.
Names and values are percent-decoded, as Spark, DuckDB and Arrow encode them.
"""

from urllib.parse import unquote

import pyarrow as pa

NULL = "__HIVE_DEFAULT_PARTITION__"


def partitions(path: str) -> dict[str, str | None]:
    """The columns in the folders of a file's path or URI, by name. If a name occurs twice, the inner one counts."""
    folders = path.split("://", 1)[-1].split("/")[:-1]
    pairs = (folder.partition("=") for folder in folders)
    return {_text(name): None if value == NULL else _text(value) for name, equals, value in pairs if name and equals}


def partition_fields(path: str, names: list[str]) -> list[pa.Field]:
    """The fields of these columns, without those that the file itself has (`names`)."""
    return [
        pa.field(name, pa.string(), metadata={"description": f"The value of {name}= in the path of the source's file."})
        for name in partitions(path)
        if name not in names
    ]


def partition_values(path: str, names: list[str]) -> dict[str, pa.Array]:
    """The values of these columns, each as an array of one row, without those that the file itself has (`names`)."""
    return {name: pa.array([value], pa.string()) for name, value in partitions(path).items() if name not in names}


def _text(part: str) -> str:
    try:
        decoded = unquote(part, errors="strict")
    except UnicodeDecodeError:
        decoded = part
    return decoded.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
