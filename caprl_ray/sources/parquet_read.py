"""Read the rows of a unit of a parquet file. A row group is streamed in batches, sized by its average row."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat

import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

from caprl_ray.errors import RowFailure
from caprl_ray.plan import Entry, Unit
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.sources.image_column import ImageColumn, image_column
from caprl_ray.sources.image_roots import Roots
from caprl_ray.sources.parquet_columns import metadata_columns
from caprl_ray.sources.parquet_file import (
    FREE_ROWS,
    ParquetDamaged,
    ParquetStream,
    batches,
    open_file,
    plain_schema,
    refuse_claims,
)
from caprl_ray.sources.parquet_rows import IMAGES_AT_ONCE, Rows
from caprl_ray.sources.partitions import partition_values
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.source import Access, source_failures
from caprl_ray.storage import Stored

# Limits of one decoded batch: bytes if its rows have the row group's average size, bytes if every row has the largest
# shared value, and rows. In addition, every parquet reader holds a whole page in memory, whatever its size.
BATCH_BYTES = 8 * 2**20
SHARED_BYTES = 32 * 2**20
BATCH_ROWS = 256


@contextmanager
def _opened(stored: Stored, access: Access) -> Iterator[tuple[ParquetStream, pq.ParquetFile]]:
    """Open the file. Yields the stream that pyarrow reads, and the file. Raises RowFailure for errors of the file."""
    try:
        with source_failures(stored, access), access.storage.open(stored) as stream:
            source = ParquetStream(stream, stored.size)
            yield source, open_file(source)
    except ParquetDamaged as error:
        raise RowFailure(error.code, str(error)) from None


def read(unit: Unit, done: BitMap, access: Access, left_out: LeftOut) -> Iterator[Sample | None]:
    """Yield the samples of the unit's row groups in order. None is yielded in place of samples in `done`.

    A row group that is completely done is not read, except if rows hold lists of images, because only reading tells how
    many there are. Raises RowFailure at the point where the file cannot be read further. Raises it at once if another
    version than the planned one is read and has other row groups: the planned cuts would lose rows.
    """
    (entry,) = unit.entries
    with _opened(entry.stored, access) as (source, file), ThreadPoolExecutor(IMAGES_AT_ONCE) as pool:
        groups = _planned_groups(file, unit) or _all_groups(file, entry.stored.size)
        reader = _Reader(file=file, source=source, rows=_rows(file, entry, access, pool), done=done)
        row = sum(_lengths(file, range(groups[0])))
        for group in range(*groups):
            yield from reader.group(group, row)
            row += file.metadata.row_group(group).num_rows


def _planned_groups(file: pq.ParquetFile, unit: Unit) -> tuple[int, int] | None:
    """The unit's row groups, or None if the plan has none. Raises RowFailure if the file's are not as planned."""
    if unit.row_groups is None:
        return None
    there, planned = file.num_row_groups, unit.file_groups or file.num_row_groups
    if there != planned or unit.row_groups[1] > there:
        raise RowFailure("source_changed", f"planned: {max(planned, unit.row_groups[1])} row groups; found: {there}")
    rows = sum(_lengths(file, range(*unit.row_groups)))
    if unit.rows not in (None, rows):  # None if rows hold lists of images
        raise RowFailure("source_changed", f"planned: {unit.rows} rows in these row groups; found: {rows}")
    first = sum(_lengths(file, range(unit.row_groups[0])))
    if unit.first_row not in (None, first):  # the column `row` of finished rows would be wrong
        raise RowFailure("source_changed", f"planned: {unit.first_row} rows before these row groups; found: {first}")
    return unit.row_groups


def _all_groups(file: pq.ParquetFile, size: int) -> tuple[int, int]:
    """The row groups of a file that could not be read when it was planned, and has been repaired since."""
    refuse_claims(_lengths(file, range(file.num_row_groups)), size)
    return 0, file.num_row_groups


def suspects(unit: Unit, index: int, access: Access) -> list[range]:
    """The rest of the row group that holds the unit's row `index`, because its pages are decoded one after another.

    Empty if rows hold lists, because their lengths are in the pages that may kill. Then the unit ends there.
    """
    (entry,) = unit.entries
    with _opened(entry.stored, access) as (_, file):
        image = _image_column(file, entry.stored.path, access)
        end = 0
        for length in _lengths(file, range(*(unit.row_groups or (0, 0)))):
            end += length
            if index < end and not (image and image.listed):
                return [range(index, end)]
    return []


def _lengths(file: pq.ParquetFile, groups: Iterable[int]) -> list[int]:
    return [int(file.metadata.row_group(number).num_rows) for number in groups]


def _image_column(file: pq.ParquetFile, path: str, access: Access) -> ImageColumn | None:
    schema = plain_schema(file.schema_arrow)
    return image_column(schema, access.input.image_column, path) if access.images else None


def _rows(file: pq.ParquetFile, entry: Entry, access: Access, pool: ThreadPoolExecutor) -> Rows:
    schema, path = plain_schema(file.schema_arrow), entry.stored.path
    image = _image_column(file, path, access)
    columns = metadata_columns(schema, image, path)
    return Rows(
        entry=entry,
        access=access,
        image=image,
        roots=Roots.of(path, access),
        columns=pa.schema([field for field in columns if access.input.columns.keeps(field.name)]),
        partitions=partition_values(path, schema.names),
        pool=pool,
    )


@dataclass(kw_only=True)
class _Reader:
    """Reads the row groups of a unit one after another; `start` is the index of the next sample."""

    file: pq.ParquetFile
    source: ParquetStream
    rows: Rows
    done: BitMap
    start: int = 0

    def group(self, number: int, row: int) -> Iterator[Sample | None]:
        """Yield the samples of one row group. Its first row has the number `row` in the file."""
        length = self.file.metadata.row_group(number).num_rows
        if not self._listed and self._is_done(length):
            yield from repeat(None, length)
            self.start += length
        else:
            yield from self._read(number, row, row + length)

    @property
    def _listed(self) -> bool:
        return bool(self.rows.image and self.rows.image.listed)

    def _is_done(self, samples: int) -> bool:
        return bool(self.done.range_cardinality(self.start, self.start + samples) == samples)

    def _read(self, number: int, row: int, end: int) -> Iterator[Sample | None]:
        given = [name for name in self.rows.columns.names if name not in self.rows.partitions]
        columns = [*(self.rows.image.columns if self.rows.image else ()), *given]
        rows_each = _batch_rows(self.file.metadata.row_group(number))
        for batch in batches(self.file, self.source, number, columns, rows_each, self.rows.access.max_bytes):
            if row + batch.num_rows > end:
                break
            yield from self._batch(batch, row)
            row += batch.num_rows
        if row != end:
            raise ParquetDamaged("a row group and the parquet file's footer differ in the number of rows")

    def _batch(self, batch: pa.RecordBatch, row: int) -> Iterator[Sample | None]:
        places = self.rows.places(batch)
        if self._listed and self.start + len(places) > FREE_ROWS + self.rows.entry.stored.size:
            raise ParquetDamaged("the lists of the parquet file hold more images than it has bytes")
        known = self._is_done(len(places))
        yield from repeat(None, len(places)) if known else self.rows.samples(batch, places, row, self.start, self.done)
        self.start += len(places)


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    """The number of rows to decode at a time: few if rows are large, or may be large because they share values."""
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
