"""Check a table's first rows while planning: whether its texts are images, paths to read, or neither."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.errors import RecipeError, RowFailure
from caprl_ray.sources.files import takes
from caprl_ray.sources.image_column import ImageColumn
from caprl_ray.sources.image_path import is_web_address
from caprl_ray.sources.image_roots import MOST_SHOWN, Roots, refuse_outside
from caprl_ray.sources.inline_image import inline
from caprl_ray.sources.named_image import IMPOSSIBLE
from caprl_ray.sources.parquet_file import ParquetDamaged, ParquetStream, batches, open_file
from caprl_ray.sources.source import Access, planning_failures
from caprl_ray.storage import Stored
from caprl_ray.text import plain

ROWS_LOOKED_AT = 64


def look(stored: Stored, image: ImageColumn, access: Access) -> None:
    """Raise RecipeError if no row of a file names an image that can be read. A damaged file fails when it is read."""
    try:
        with opened(stored, access) as (source, file):
            if image.has_bytes and (image.listed or not _all_null(file, image.bytes_column)):
                return
            texts = list(islice(_texts(file, source, image, access), ROWS_LOOKED_AT))
            look_at(texts, _texts(file, source, image, access), stored, image, access)
    except ParquetDamaged:
        return


def look_at(texts: list[str], every: Iterable[str], stored: Stored, image: ImageColumn, access: Access) -> None:
    """Raise RecipeError if a table names no image to read. `texts`: of its first rows. `every`: of all its rows."""
    if any(map(inline, texts)):
        return
    _refuse_web_addresses(texts, stored, image)
    refuse_outside(every, stored.path, access)
    _refuse_other_texts(texts, stored, image, access)


@contextmanager
def opened(stored: Stored, access: Access) -> Iterator[tuple[ParquetStream, pq.ParquetFile]]:
    """Open the file while the input is planned. Raises ParquetDamaged, or SystemFailure if it cannot be opened."""
    with planning_failures(stored.path), access.storage.open(stored) as stream:
        source = ParquetStream(stream, stored.size)
        yield source, open_file(source)


def _texts(file: pq.ParquetFile, source: ParquetStream, image: ImageColumn, access: Access) -> Iterator[str]:
    """The texts in the image column of the file's rows, in order, without nulls."""
    for group in range(file.num_row_groups):
        for batch in batches(file, source, group, image.path_columns, ROWS_LOOKED_AT, access.max_bytes):
            column = image.texts(batch)
            yield from () if column is None else _valid(column)


def _valid(column: pa.Array) -> list[str]:
    """The texts of the column without nulls, or none if a text is not valid."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return []
    return [text for text in column.to_pylist() if text]


def _refuse_web_addresses(texts: list[str], stored: Stored, image: ImageColumn) -> None:
    if texts and all(map(is_web_address, texts)):
        raise RecipeError(
            f"input.image_column: {image.name} of {stored.path} holds web addresses, and images are not fetched from "
            "the web; download the images first, for instance with img2dataset, and give their paths or bytes."
        )


def _refuse_other_texts(texts: list[str], stored: Stored, image: ImageColumn, access: Access) -> None:
    """Raise RecipeError if no text is named like an image, and no text is the path of a file."""
    roots = Roots.of(stored.path, access)
    if texts and not any(_names_image(text) or _is_found(text, roots, access) for text in texts):
        shown = plain(texts[0]).replace("\n", " ")[:MOST_SHOWN]
        raise RecipeError(
            f"input.image_column: {image.name} of {stored.path} holds no images, paths or base64, such as {shown!r}; "
            "set input.image_column to the column that does."
        )


def _names_image(text: str) -> bool:
    return "\n" not in text and takes(Stored(path=text, size=0, version=""))


def _is_found(text: str, roots: Roots, access: Access) -> bool:
    try:
        return isinstance(access.storage.lookup(roots.named(text).real), Stored)
    except (RowFailure, ValueError):
        return False
    except OSError as fault:
        if fault.errno in IMPOSSIBLE:
            return False
        if isinstance(fault, PermissionError):
            return True
        raise


def _all_null(file: pq.ParquetFile, column: str) -> bool:
    """Whether the file has no value in a column, by the statistics of its footer."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    names = [groups[0].column(number).path_in_schema for number in range(groups[0].num_columns)]
    statistics = ((group.column(names.index(column)).statistics, group.num_rows) for group in groups)
    return all(found and found.has_null_count and found.null_count == rows for found, rows in statistics)
