"""Parquet files, also in Hugging Face dataset folders. A unit is a range of one file's row groups.

Planning reads only footers. Reading streams a row group in batches, whose size follows from its average row.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat

import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from caprl_ray.errors import RecipeError, RowFailure
from caprl_ray.plan import Entry, Unit, batched
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.sources.image_column import ImageColumn, image_column
from caprl_ray.sources.image_path import is_web_address
from caprl_ray.sources.image_roots import Roots, refuse_outside
from caprl_ray.sources.parquet_file import ParquetDamaged, ParquetStream, batches, decoding, open_file, plain_schema
from caprl_ray.sources.parquet_rows import IMAGES_AT_ONCE, Rows
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.source import Access, Found, planning_failures, source_failures
from caprl_ray.storage import Stored

# A unit has at most this many rows and compressed bytes, but at least one row group.
UNIT_ROWS = 2000
UNIT_BYTES = 256 * 2**20
# Limits of one decoded batch: bytes if its rows have the row group's average size, bytes if every row has the largest
# shared value, and rows. In addition, every parquet reader holds a whole page in memory, whatever its size.
BATCH_BYTES = 8 * 2**20
SHARED_BYTES = 32 * 2**20
BATCH_ROWS = 256

# Each row that a footer claims becomes a row of the output, at least a failed one. So a footer may claim at most
# FREE_ROWS + the file's size in bytes. FREE_ROWS is for rows that take hardly any bytes: without an image, or all with
# the same image.
FREE_ROWS = 2**16

FILES_AT_ONCE = 16  # footers that planning reads at once
ROWS_LOOKED_AT = 64  # rows that planning checks for web addresses


def takes(stored: Stored) -> bool:
    """Whether a file is parquet, by its name."""
    return stored.path.lower().endswith(".parquet")


@dataclass(frozen=True, kw_only=True)
class _Footer:
    """What planning needs from a file: its columns, and the rows and compressed bytes of each row group."""

    schema: pa.Schema
    groups: list[tuple[int, int]]


def plan(found: Iterator[Found], access: Access) -> Iterator[Unit]:
    """Yield units of row groups, in the order of the files. Only footers are read.

    A file without rows has no unit. A file that is no parquet, or has a damaged footer, has one unit, which fails when
    it is read. Raises SystemFailure for a file that cannot be opened: whatever is in it would be lost. Raises
    RecipeError if the image column is not clear, or holds web addresses.
    """
    web_addresses_checked = roots_checked = False
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for files in batched(found, FILES_AT_ONCE):
            for file, footer in zip(files, pool.map(partial(_footer, access=access), files), strict=True):
                entry = Entry(stored=file.stored, key=file.key)
                if footer is None:
                    yield Unit(kind="parquet", rows=None, entries=[entry])
                elif any(rows for rows, _ in footer.groups):
                    _refuse_twins(footer.schema, file.stored.path)
                    image = _image_column(footer.schema, file.stored.path, access)
                    if image and not image.has_bytes and not web_addresses_checked:
                        _refuse_web_addresses(file.stored, image, access)
                        web_addresses_checked = True
                    if image and image.has_paths and not roots_checked:
                        _check_roots(file.stored, image, access)
                        roots_checked = True
                    yield from _units(entry, footer, image)


def _all_groups(file: pq.ParquetFile, entry: Entry) -> tuple[int, int]:
    """The row groups of a file that could not be read when it was planned, and was mended since."""
    _refuse_claims([file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)], entry.stored)
    return 0, file.num_row_groups


def _refuse_claims(rows: list[int], stored: Stored) -> None:
    """Raise ParquetDamaged for a footer that claims rows which cannot be there."""
    if any(count < 0 for count in rows):
        raise ParquetDamaged("a row group has a negative number of rows")
    if sum(rows) > FREE_ROWS + stored.size:
        raise ParquetDamaged("the parquet file claims more rows than it has bytes")


def _footer(found: Found, access: Access) -> _Footer | None:
    """Read the footer. Returns None if it is damaged."""
    try:
        with _planned_now(found.stored, access) as (source, file), decoding(source):
            row_groups = map(file.metadata.row_group, range(file.num_row_groups))
            groups = [(group.num_rows, _compressed_bytes(group)) for group in row_groups]
            _refuse_claims([rows for rows, _ in groups], found.stored)
            return _Footer(schema=plain_schema(file.schema_arrow), groups=groups)
    except ParquetDamaged:
        return None


@contextmanager
def _planned_now(stored: Stored, access: Access) -> Iterator[tuple[ParquetStream, pq.ParquetFile]]:
    """Open the file while the input is planned. Raises ParquetDamaged, or SystemFailure if it cannot be opened."""
    with planning_failures(stored.path), access.storage.open(stored) as stream:
        source = ParquetStream(stream, stored.size)
        yield source, open_file(source)


def _refuse_twins(schema: pa.Schema, path: str) -> None:
    twins = [name for name, count in Counter(schema.names).items() if count > 1]
    if twins:
        raise RecipeError(f"input: {path} has {schema.names.count(twins[0])} columns named {twins[0]}; rename one.")


def _compressed_bytes(group: pq.RowGroupMetaData) -> int:
    return sum(max(0, group.column(number).total_compressed_size) for number in range(group.num_columns))


def _image_column(schema: pa.Schema, path: str, access: Access) -> ImageColumn | None:
    return image_column(schema, access.input.image_column, path) if access.images else None


def _units(entry: Entry, footer: _Footer, image: ImageColumn | None) -> Iterator[Unit]:
    columns = _columns(footer.schema, image)
    units = list(_cut(entry, columns, footer))
    for unit in units[:-1]:
        yield replace(unit, more=True)
    yield from units[-1:]


def _cut(entry: Entry, columns: pa.Schema, footer: _Footer) -> Iterator[Unit]:
    first = rows = size = 0
    for number, (group_rows, group_size) in enumerate(footer.groups):
        if rows and (rows + group_rows > UNIT_ROWS or size + group_size > UNIT_BYTES):
            yield _unit(entry, columns, (first, number), rows, size)
            first, rows, size = number, 0, 0
        rows, size = rows + group_rows, size + group_size
    if rows:
        yield _unit(entry, columns, (first, len(footer.groups)), rows, size)


def _unit(entry: Entry, columns: pa.Schema, groups: tuple[int, int], rows: int, size: int) -> Unit:
    return Unit(kind="parquet", rows=rows, entries=[entry], columns=columns, row_groups=groups, bytes=size)


def _refuse_web_addresses(stored: Stored, image: ImageColumn, access: Access) -> None:
    """Raise RecipeError if the file's first images are all web addresses. A damaged file fails when it is read."""
    try:
        with _planned_now(stored, access) as (source, file):
            first = next(batches(file, source, 0, image.columns, ROWS_LOOKED_AT, access.max_bytes), None)
            named = [] if first is None else _texts(first.column(image.name))
    except ParquetDamaged:
        return
    if named and all(map(is_web_address, named)):
        raise RecipeError(
            f"input.image_column: {image.name} of {stored.path} holds web addresses, and images are not fetched from "
            "the web; download the images first, for instance with img2dataset, and give their paths or bytes."
        )


def _texts(column: pa.Array) -> list[str]:
    """The texts of the column without nulls, or none if a text is not valid."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return []
    return [text for text in column.to_pylist() if text]


def _check_roots(stored: Stored, image: ImageColumn, access: Access) -> None:
    """Raise RecipeError if none of the images that the file's rows name may be read. A damaged file fails when read."""
    try:
        with _opened(stored, access) as (source, file):
            if not image.has_bytes or _all_null(file, image.bytes_column):
                refuse_outside(_named(file, source, image, access), stored.path, access)
    except RowFailure:
        return


def _named(file: pq.ParquetFile, source: ParquetStream, image: ImageColumn, access: Access) -> Iterator[str]:
    """The paths that the file's rows name, in order."""
    for group in range(file.num_row_groups):
        for batch in batches(file, source, group, [image.path_column], ROWS_LOOKED_AT, access.max_bytes):
            yield from _texts(image.paths(batch))


def _all_null(file: pq.ParquetFile, column: str) -> bool:
    """Whether the file has no value in a column, by the statistics of its footer."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    names = [groups[0].column(number).path_in_schema for number in range(groups[0].num_columns)]
    statistics = ((group.column(names.index(column)).statistics, group.num_rows) for group in groups)
    return all(found and found.has_null_count and found.null_count == rows for found, rows in statistics)


def _columns(schema: pa.Schema, image: ImageColumn | None) -> pa.Schema:
    """All columns except the images, with the descriptions for the output."""
    return pa.schema(
        field.with_metadata({"description": f"The source's column {field.name}."})
        for field in schema
        if not image or field.name != image.name
    )


@contextmanager
def _opened(stored: Stored, access: Access) -> Iterator[tuple[ParquetStream, pq.ParquetFile]]:
    """Open the file. Yields the stream that pyarrow reads, and the file. Faults of the file raise RowFailure."""
    try:
        with source_failures(stored, access), access.storage.open(stored) as stream:
            source = ParquetStream(stream, stored.size)
            yield source, open_file(source)
    except ParquetDamaged as error:
        raise RowFailure("truncated_unit", str(error)) from None


def read(unit: Unit, done: BitMap, access: Access, left_out: LeftOut) -> Iterator[Sample | None]:
    """Yield the rows of the unit's row groups in order. None is yielded in place of rows in `done`.

    A row group that is completely done is not read. Raises RowFailure at the point where the file cannot be read
    further.
    """
    (entry,) = unit.entries
    with _opened(entry.stored, access) as (source, file), ThreadPoolExecutor(IMAGES_AT_ONCE) as pool:
        groups = unit.row_groups or _all_groups(file, entry)
        lengths = [file.metadata.row_group(number).num_rows for number in range(groups[1])]
        schema = plain_schema(file.schema_arrow)
        image = _image_column(schema, entry.stored.path, access)
        rows = Rows(
            entry=entry,
            access=access,
            image=image,
            roots=Roots.of(entry.stored.path, access),
            columns=_columns(schema, image),
            rows_before=sum(lengths[: groups[0]]),
            pool=pool,
        )
        start = 0
        for group in range(*groups):
            if done.range_cardinality(start, start + lengths[group]) == lengths[group]:
                yield from repeat(None, lengths[group])
            else:
                yield from _row_group(file, source, group, rows, start, done)
            start += lengths[group]


def suspects(unit: Unit, index: int, access: Access) -> list[range]:
    """The rest of the row group that holds the unit's row `index`: its pages are decoded one after another."""
    (entry,) = unit.entries
    with _opened(entry.stored, access) as (_, file):
        end = 0
        for group in range(*(unit.row_groups or (0, 0))):
            end += int(file.metadata.row_group(group).num_rows)
            if index < end:
                return [range(index, end)]
    return []


def _row_group(
    file: pq.ParquetFile, source: ParquetStream, group: int, rows: Rows, start: int, done: BitMap
) -> Iterator[Sample | None]:
    """Yield the samples of one row group. The first one has the index `start` in the unit."""
    metadata = file.metadata.row_group(group)
    end = start + metadata.num_rows
    columns = [*(rows.image.columns if rows.image else ()), *rows.columns.names]
    for batch in batches(file, source, group, columns, _batch_rows(metadata), rows.access.max_bytes):
        if start + batch.num_rows > end:
            break
        known = done.range_cardinality(start, start + batch.num_rows) == batch.num_rows
        yield from repeat(None, batch.num_rows) if known else rows.samples(batch, start, done)
        start += batch.num_rows
    if start != end:
        raise ParquetDamaged("a row group and the parquet file's footer differ in the number of rows")


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    """How many rows to decode at a time: few if rows are large, or may be large because they share values."""
    rows = max(1, group.num_rows)
    shared = sum(_shared_bytes(group.column(number), rows) for number in range(group.num_columns))
    sizes = (group.total_byte_size // rows, BATCH_BYTES), (shared, SHARED_BYTES)
    return max(1, min(BATCH_ROWS, *(limit // max(1, size) for size, limit in sizes)))


def _shared_bytes(column: pq.ColumnChunkMetaData, rows: int) -> int:
    """The largest size in bytes that shared values can have in one row. After decoding, each row has its own copy.

    Shared values are those of a dictionary, or of a page whose encoding shares prefixes.
    """
    if not column.has_dictionary_page:
        return max(0, column.total_uncompressed_size) if "DELTA_BYTE_ARRAY" in column.encodings else 0
    dictionary = max(0, column.data_page_offset - column.dictionary_page_offset)
    inflated = dictionary * column.total_uncompressed_size // max(1, column.total_compressed_size)
    return int(max(dictionary, inflated) * max(1, column.num_values // rows))
