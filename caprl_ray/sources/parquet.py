"""Parquet files, also in Hugging Face dataset folders. A unit is a range of one file's row groups.

Planning reads only footers, and a few rows of the first file that names its images. Reading is in parquet_read.py.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.errors import RecipeError
from caprl_ray.plan import Entry, Unit, batched
from caprl_ray.sources.image_column import ImageColumn, image_column, shown
from caprl_ray.sources.parquet_columns import described, metadata_columns
from caprl_ray.sources.parquet_file import ParquetDamaged, decoding, refuse_claims
from caprl_ray.sources.parquet_looks import look, opened
from caprl_ray.sources.source import Access, Found
from caprl_ray.storage import Stored
from caprl_ray.storage.prefetch import readers
from caprl_ray.text import quoted

# A unit has at most this many rows and compressed bytes, but at least one row group.
UNIT_ROWS = 2000
UNIT_BYTES = 256 * 2**20


OVERHEAD = 2**14  # bytes of a row group beside its values: the headers and statistics of pages
FILES_AT_ONCE = 16  # footers that planning reads at the same time


def takes(stored: Stored) -> bool:
    """Whether a file is parquet, by its name."""
    return stored.path.lower().endswith(".parquet")


@dataclass(frozen=True, kw_only=True)
class _Footer:
    """The facts that planning needs from a file: its columns, the rows and compressed bytes of each row group, and the
    compressed bytes of each column."""

    schema: pa.Schema
    groups: list[tuple[int, int]]
    sizes: dict[str, int]

    @property
    def rows(self) -> int:
        return sum(rows for rows, _ in self.groups)


def plan(found: Iterator[Found], access: Access) -> Iterator[Unit]:
    """Yield units of row groups, in the order of the files. Only footers are read.

    A file without rows has no unit. A file that is not parquet, or has a damaged footer, has one unit, which fails when
    it is read. Raises SystemFailure for a file that cannot be opened, because its rows would be lost. Raises
    RecipeError if the image column is not clear or does not hold images, or if another column is too large.
    """
    looked = first_checked = False
    with readers(FILES_AT_ONCE) as pool:
        for files in batched(found, FILES_AT_ONCE):
            for file, footer in zip(files, pool.map(partial(_footer, access=access), files), strict=True):
                entry = Entry(stored=file.stored, key=file.key)
                if footer is None:
                    yield Unit(kind="parquet", rows=None, entries=[entry])
                elif footer.rows:
                    image = _image_column(footer.schema, file.stored.path, access)
                    if not first_checked:
                        _refuse_large(footer, image, file.stored.path, access)
                        first_checked = True
                    if image and image.has_paths and not looked:
                        look(file.stored, image, access)
                        looked = True
                    yield from _units(entry, footer, image)


def row(unit: Unit, index: int) -> int | None:
    """The number within its file of the unit's row at an index. None if rows hold lists of images, because only reading
    tells how many."""
    return None if unit.rows is None or unit.first_row is None else unit.first_row + index


def _footer(found: Found, access: Access) -> _Footer | None:
    """Read the footer. Returns None if it is damaged."""
    try:
        with opened(found.stored, access) as (source, file), decoding(source):
            row_groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            groups = [(group.num_rows, _compressed_bytes(group)) for group in row_groups]
            refuse_claims([rows for rows, _ in groups], found.stored.size)
            return _Footer(schema=described(file), groups=groups, sizes=_sizes(file, row_groups))
    except ParquetDamaged:
        return None


def _compressed_bytes(group: pq.RowGroupMetaData) -> int:
    return sum(max(0, group.column(number).total_compressed_size) for number in range(group.num_columns))


def _sizes(file: pq.ParquetFile, groups: list[pq.RowGroupMetaData]) -> dict[str, int]:
    """The stored bytes of each column by its name. Parquet's columns are matched by order: names may have dots."""
    sizes: Counter[str] = Counter()
    leaves = [leaf for field in file.schema_arrow for leaf in [field.name] * _leaves(field.type)]
    if len(leaves) == len(file.schema):
        for group in groups:
            for number, name in enumerate(leaves):
                sizes[name] += max(0, group.column(number).total_compressed_size)
    return sizes


def _leaves(kind: pa.DataType) -> int:
    """The number of parquet's columns that a type takes."""
    if pa.types.is_dictionary(kind):
        return _leaves(kind.value_type)
    return sum(_leaves(kind.field(number).type) for number in range(kind.num_fields)) if kind.num_fields else 1


def _image_column(schema: pa.Schema, path: str, access: Access) -> ImageColumn | None:
    """The image column. Raises RecipeError if it is not clear, or if two columns have one name."""
    twins = [name for name, count in Counter(schema.names).items() if count > 1]
    if twins:
        raise RecipeError(f"input: {path} has {schema.names.count(twins[0])} columns named {twins[0]}; rename one.")
    return image_column(schema, access.input.image_column, path) if access.images else None


def _refuse_large(footer: _Footer, image: ImageColumn | None, path: str, access: Access) -> None:
    """Raise RecipeError if columns beside the images, such as second images, are too large for nearly every row.

    Only the first file is checked. A single odd file must not stop the others, and its rows lose only the value.
    """
    bound = access.input.max_metadata_bytes
    names = [n for n in footer.schema.names if not (image and n == image.name) and access.input.columns.keeps(n)]
    over = sum(footer.sizes.get(name, 0) for name in names)
    over -= bound * footer.rows + OVERHEAD * len(footer.groups)
    large = []
    for name in sorted(names, key=lambda name: -footer.sizes.get(name, 0)):
        if over > 0:
            large.append(name)
            over -= footer.sizes[name]
    if large:
        each = sum(footer.sizes[name] for name in large) // footer.rows
        dropped = ", ".join(map(quoted, [*access.input.columns.drop, *large]))
        raise RecipeError(
            f"input: {shown(large)} of {path} has {each:,} bytes a row, and a row may carry {bound:,} "
            f"beside its image; leave it out with 'input.columns.drop=[{dropped}]', or raise input.max_metadata_bytes."
        )


def _units(entry: Entry, footer: _Footer, image: ImageColumn | None) -> Iterator[Unit]:
    columns = metadata_columns(footer.schema, image, entry.stored.path)
    units, first = [], 0
    for unit in _cut(entry, columns, footer):
        units.append(replace(unit, file_groups=len(footer.groups), first_row=first))
        first += unit.rows or 0
    if image and image.listed:
        units = [replace(unit, rows=None) for unit in units]  # only reading tells how many images the lists hold
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
