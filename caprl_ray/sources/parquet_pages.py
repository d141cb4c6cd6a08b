"""Check the pages of a parquet file while they are read, before pyarrow allocates memory for them.

Sizes in the footer are only claims. pyarrow allocates what the header in front of each page says (parquet.thrift,
PageHeader, in Thrift's compact protocol). So the bytes are inspected on their way to pyarrow, and reading stops at a
page that claims too much. Nothing is read twice.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# A page may inflate to the largest image + FREE_INFLATION bytes + MAX_INFLATION x its stored bytes. Pages of images
# hardly shrink. Other pages usually have one megabyte, far less than FREE_INFLATION.
FREE_INFLATION = 64 * 2**20
MAX_INFLATION = 4
# A column of a row group may have at most FREE_VALUES values plus VALUES_PER_BYTE per stored byte. Without this limit,
# a page of a few bytes can claim billions of values, which take memory once they are decoded.
FREE_VALUES, VALUES_PER_BYTE = 32 * 2**20, 8
# Values that share stored bytes (a dictionary, or common prefixes) get their own bytes when they are decoded. This is
# the limit in bytes for the values of one batch, or of one row group if a row can have many values.
MAX_SHARED = 128 * 2**20

# Usual and most bytes of a page header. Writers shorten the minimum and maximum values in its statistics.
USUAL_HEADER, MAX_HEADER = 512, 2**20
MAX_DEPTH = 8
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_DICTIONARY_ENCODINGS, _DELTA_BYTE_ARRAY = frozenset({2, 8}), 7
# Field numbers in PageHeader. _OF_DATA: for each kind of data page, the field that holds that page's own header, and
# the field of the encoding in that header.
_KIND, _INFLATED, _STORED = 1, 2, 3
_OF_DATA = {_DATA_PAGE: (5, 2), _DATA_PAGE_V2: (8, 4)}
_CODECS = {"LZ4": "lz4_raw"}


class PageRefused(Exception):
    """A page is damaged or would take too much memory. The message is safe to store."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """The contents of a page header: sizes in bytes (`stored`, and `inflated` when decompressed), values, encoding.

    Pages without data have 0 values and no encoding.
    """

    is_dictionary: bool
    stored: int
    inflated: int
    values: int
    encoding: int | None


def page_header(content: bytes) -> tuple[Page, int] | None:
    """Parse the header at the start of `content`.

    Returns the header and its length in bytes, or None if `content` ends before the header does. Raises PageRefused.
    """
    try:
        fields, end = _struct(content, 0, 0)
    except IndexError:
        return None
    kind, inflated, stored = (fields.get(number) for number in (_KIND, _INFLATED, _STORED))
    if not (isinstance(kind, int) and isinstance(inflated, int) and isinstance(stored, int)):
        raise PageRefused("a page of the parquet file has no header")
    if min(inflated, stored) < 0:
        raise PageRefused("a page of the parquet file has a negative size")
    own, encoding = _OF_DATA.get(kind, (0, 0))
    of_data = fields.get(own) or {}
    return Page(
        is_dictionary=kind == _DICTIONARY_PAGE,
        stored=stored,
        inflated=inflated,
        values=max(0, of_data.get(1, 0)),
        encoding=of_data.get(encoding),
    ), end


class Chunk:
    """Checks one column chunk (a column of a row group), which lies from `start` to `end` in the file."""

    def __init__(self, column: pq.ColumnChunkMetaData, *, nested: bool, max_page: int, batch_rows: int) -> None:
        self.start, self.end = chunk_range(column)
        self._codec = column.compression
        self._nested, self._max_page, self._batch_rows = nested, max_page, batch_rows
        self._has_bytes = column.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
        self._begin()

    def _begin(self) -> None:
        self._seen = self._next = self.start
        self._head = b""
        self._values = self._sharing = 0
        self._dictionary: _Dictionary | None = None

    def feed(self, position: int, content: bytes) -> None:
        """Check the next bytes of the chunk, which begin at `position` in the file. Raises PageRefused."""
        if position == self.start:
            self._begin()
        if position != self._seen:
            raise PageRefused("the pages of the parquet file are not where its footer says")
        self._seen += len(content)
        if self._dictionary:
            self._dictionary.feed(position, content)
        while self._next < min(self._seen, self.end):
            found = self._header(content, self._next + len(self._head) - position)
            if found is None:
                break
            page, length = found
            self._check(page)
            if page.is_dictionary:
                self._dictionary = _Dictionary(page, self._codec, self._next + length)
                self._dictionary.feed(position, content)
            self._next += length + page.stored
            self._head = b""

    def _header(self, content: bytes, at: int) -> tuple[Page, int] | None:
        """The next page's header, or None if it is not complete yet; its first part is then kept in `_head`."""
        found = page_header(self._head + content[at : at + USUAL_HEADER])
        if found is None:
            self._head += content[at : at + MAX_HEADER]
            found = page_header(self._head)
        if found is None and len(self._head) >= MAX_HEADER:
            raise PageRefused("a page of the parquet file has a header without end")
        return found

    def _check(self, page: Page) -> None:
        if page.inflated > self._max_page + MAX_INFLATION * page.stored:
            raise PageRefused(f"a page of {page.stored} bytes of the parquet file inflates to {page.inflated}")
        self._values += page.values
        if self._values > FREE_VALUES + VALUES_PER_BYTE * (self._next - self.start + page.stored):
            raise PageRefused(f"a column of the parquet file has {self._values} values in a few bytes")
        if self._has_bytes:
            self._check_shared(page)

    def _check_shared(self, page: Page) -> None:
        if page.encoding in _DICTIONARY_ENCODINGS and self._dictionary:
            limit, longest = self._dictionary.page.inflated, self._dictionary.longest
        elif page.encoding == _DELTA_BYTE_ARRAY:
            limit, longest = page.inflated, lambda: page.inflated
        else:
            return
        self._sharing += page.values
        values = self._sharing if self._nested else min(self._batch_rows, page.values)
        if values * limit > MAX_SHARED and values * longest() > MAX_SHARED:
            raise PageRefused("a column of the parquet file repeats values that are too large for it")


class _Dictionary:
    """A dictionary page, whose data begins at `start` in the file."""

    def __init__(self, page: Page, codec: str, start: int) -> None:
        self.page = page
        self._codec, self._start = codec, start
        self._stored = bytearray()

    def feed(self, position: int, content: bytes) -> None:
        """Keep those of the next bytes that belong to this page."""
        at = self._start + len(self._stored) - position
        if 0 <= at < len(content):
            self._stored += content[at : at + self.page.stored - len(self._stored)]

    def longest(self) -> int:
        """The size of the largest value in bytes, or the size of the page if the page cannot be decoded."""
        try:
            content = self._decompressed()
        except (OSError, ValueError, pa.ArrowException):
            return self.page.inflated
        at = longest = 0
        while at + 4 <= len(content):
            size = int.from_bytes(content[at : at + 4], "little")
            longest, at = max(longest, size), at + 4 + size
        return min(longest, self.page.inflated)

    def _decompressed(self) -> bytes:
        if self._codec == "UNCOMPRESSED":
            return bytes(self._stored)
        codec = pa.Codec(_CODECS.get(self._codec, self._codec.lower()))
        return bytes(codec.decompress(bytes(self._stored), self.page.inflated, asbytes=True))


class PageInspector:
    """Checks all column chunks of one row group."""

    def __init__(self, chunks: list[Chunk]) -> None:
        self._chunks = sorted((chunk for chunk in chunks if chunk.end > chunk.start), key=lambda chunk: chunk.start)
        self._starts = [chunk.start for chunk in self._chunks]
        if any(a.end > b.start for a, b in zip(self._chunks, self._chunks[1:], strict=False)):
            raise PageRefused("columns of the parquet file overlap")

    def feed(self, position: int, content: bytes) -> None:
        """Check bytes that were read for pyarrow at `position` in the file. Raises PageRefused."""
        number = bisect_right(self._starts, position) - 1
        if number >= 0 and position < self._chunks[number].end:
            self._chunks[number].feed(position, content)


def page_inspector(file: pq.ParquetFile, row_group: int, batch_rows: int, max_bytes: int) -> PageInspector:
    """Create the inspector of one row group, which is decoded in batches of `batch_rows` rows.

    `max_bytes` is the largest allowed size of one image.
    """
    group = file.metadata.row_group(row_group)
    return PageInspector(
        [
            Chunk(
                group.column(number),
                nested=file.schema.column(number).max_repetition_level > 0,
                max_page=FREE_INFLATION + max_bytes,
                batch_rows=batch_rows,
            )
            for number in range(group.num_columns)
        ]
    )


def chunk_range(column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Where a column chunk begins and ends in the file. Pyarrow computes the same range from the footer."""
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    return start, start + column.total_compressed_size


def _struct(content: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Parse a struct. Returns its 32-bit numbers and its structs by field number, and the offset of its end.

    Raises IndexError if `content` ends first. As in Arrow's reader, the last value of a field counts, and values of
    other types are skipped.
    """
    fields: dict[int, Any] = {}
    number = 0
    while (head := content[at]) != 0:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(content, at)
        value, at = _value(content, at, head & 15, depth)
        if value is not None:
            fields[number] = value
    return fields, at + 1


def _value(content: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """Parse one value. Returns it (None unless it is a 32-bit number or a struct) and the offset of its end."""
    if kind == 5:
        number, at = _integer(content, at)
        if -(2**31) <= number < 2**31:
            return number, at
    elif kind == 12 and depth < MAX_DEPTH:
        return _struct(content, at, depth + 1)
    elif kind in (1, 2):  # true and false: the value is in the field header
        return None, at
    elif kind in (4, 6):
        return None, _integer(content, at)[1]
    elif kind == 8:
        size, at = _count(content, at)
        return None, _within(content, at + size)
    elif kind in (3, 7):
        return None, _within(content, at + (1 if kind == 3 else 8))
    raise PageRefused("a page of the parquet file has a header of unknown kind")  # headers have no lists, sets or maps


def _within(content: bytes, at: int) -> int:
    if at > len(content):
        raise IndexError
    return at


def _count(content: bytes, at: int) -> tuple[int, int]:
    """Parse an unsigned number: groups of seven bits, lowest first."""
    number = 0
    for place in range(10):
        number |= (content[at + place] & 0x7F) << 7 * place
        if content[at + place] < 0x80:
            return number, at + place + 1
    raise PageRefused("a page of the parquet file has a header of unknown kind")


def _integer(content: bytes, at: int) -> tuple[int, int]:
    """Parse a signed number (zigzag: the lowest bit is the sign)."""
    number, at = _count(content, at)
    return number >> 1 ^ -(number & 1), at
