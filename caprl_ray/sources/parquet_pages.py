"""Check the pages of a parquet file while they are read: their inflated size is known before memory is allocated.

The footer only claims sizes. pyarrow allocates what each page's own header says, in front of its bytes (parquet.thrift,
PageHeader, in Thrift's compact protocol). So the bytes are watched on their way to pyarrow, and a page that claims too
much ends the reading. Nothing is read twice.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# Limits of an inflated page: bytes beside an image of the largest size, and the factor of its stored bytes. Pages of
# images hardly shrink. A megabyte, the usual size of other pages, is far below the first limit.
FREE_INFLATION = 64 * 2**20
MOST_INFLATION = 4
# Values that a column of a row group may hold, and values per byte. A page of a few bytes can claim thousands of
# millions, which take memory once decoded.
FREE_VALUES, VALUES_OF_A_BYTE = 32 * 2**20, 8
# Bytes that values with shared bytes may take once each has its own copy: those of a batch's rows, or all of a row
# group if one row can have many.
MOST_SHARED = 128 * 2**20

USUAL_HEADER, MOST_HEADER = 512, 2**20  # bytes of a page's header; its least and largest values are truncated
MOST_DEPTH = 8
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_DICTIONARY_ENCODINGS, _DELTA_BYTE_ARRAY = frozenset({2, 8}), 7
# Fields of the PageHeader. For each kind of data page: the field of its own header, and in it the field of the
# encoding.
_KIND, _INFLATED, _STORED = 1, 2, 3
_OF_DATA = {_DATA_PAGE: (5, 2), _DATA_PAGE_V2: (8, 4)}
_CODECS = {"LZ4": "lz4_raw"}


class PageRefused(Exception):
    """A page that is damaged or takes too much memory. The message is safe to store."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page's header: stored and inflated bytes, and for a data page its values and encoding."""

    is_dictionary: bool
    stored: int
    inflated: int
    values: int
    encoding: int | None


def page_header(content: bytes) -> tuple[Page, int] | None:
    """The header at the start of `content`, and its length; None if it is incomplete. Raises PageRefused."""
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
    """One column of one row group on its way to pyarrow, from `start` to `end` in the file."""

    def __init__(self, column: pq.ColumnChunkMetaData, *, nested: bool, most_page: int, batch_rows: int) -> None:
        self.start, self.end = chunk_range(column)
        self._codec = column.compression
        self._nested, self._most_page, self._batch_rows = nested, most_page, batch_rows
        self._has_bytes = column.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
        self._begin()

    def _begin(self) -> None:
        self._seen = self._next = self.start
        self._head = b""
        self._values = self._sharing = 0
        self._dictionary: _Dictionary | None = None

    def feed(self, position: int, content: bytes) -> None:
        """Check the file's next bytes, at `position`. Raises PageRefused."""
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
        """The next page's header. An incomplete one is kept until the rest comes."""
        found = page_header(self._head + content[at : at + USUAL_HEADER])
        if found is None:
            self._head += content[at : at + MOST_HEADER]
            found = page_header(self._head)
        if found is None and len(self._head) >= MOST_HEADER:
            raise PageRefused("a page of the parquet file has a header without end")
        return found

    def _check(self, page: Page) -> None:
        if page.inflated > self._most_page + MOST_INFLATION * page.stored:
            raise PageRefused(f"a page of {page.stored} bytes of the parquet file inflates to {page.inflated}")
        self._values += page.values
        if self._values > FREE_VALUES + VALUES_OF_A_BYTE * (self._next - self.start + page.stored):
            raise PageRefused(f"a column of the parquet file has {self._values} values in a few bytes")
        if self._has_bytes:
            self._check_shared(page)

    def _check_shared(self, page: Page) -> None:
        if page.encoding in _DICTIONARY_ENCODINGS and self._dictionary:
            most, longest = self._dictionary.page.inflated, self._dictionary.longest
        elif page.encoding == _DELTA_BYTE_ARRAY:
            most, longest = page.inflated, lambda: page.inflated
        else:
            return
        self._sharing += page.values
        values = self._sharing if self._nested else min(self._batch_rows, page.values)
        if values * most > MOST_SHARED and values * longest() > MOST_SHARED:
            raise PageRefused("a column of the parquet file repeats values that are too large for it")


class _Dictionary:
    """A dictionary page, whose bytes begin at `start`."""

    def __init__(self, page: Page, codec: str, start: int) -> None:
        self.page = page
        self._codec, self._start = codec, start
        self._stored = bytearray()

    def feed(self, position: int, content: bytes) -> None:
        """Keep the part of the next bytes that belongs to the page."""
        at = self._start + len(self._stored) - position
        if 0 <= at < len(content):
            self._stored += content[at : at + self.page.stored - len(self._stored)]

    def longest(self) -> int:
        """The bytes of the largest value; the whole page if that cannot be told."""
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


class Watch:
    """The chunks of one row group."""

    def __init__(self, chunks: list[Chunk]) -> None:
        self._chunks = sorted((chunk for chunk in chunks if chunk.end > chunk.start), key=lambda chunk: chunk.start)
        self._starts = [chunk.start for chunk in self._chunks]
        if any(a.end > b.start for a, b in zip(self._chunks, self._chunks[1:], strict=False)):
            raise PageRefused("columns of the parquet file overlap")

    def feed(self, position: int, content: bytes) -> None:
        """Check bytes of the file that were read for pyarrow. Raises PageRefused."""
        number = bisect_right(self._starts, position) - 1
        if number >= 0 and position < self._chunks[number].end:
            self._chunks[number].feed(position, content)


def watch(file: pq.ParquetFile, row_group: int, batch_rows: int, max_bytes: int) -> Watch:
    """The check of one row group's pages, for batches of so many rows."""
    group = file.metadata.row_group(row_group)
    return Watch(
        [
            Chunk(
                group.column(number),
                nested=file.schema.column(number).max_repetition_level > 0,
                most_page=FREE_INFLATION + max_bytes,
                batch_rows=batch_rows,
            )
            for number in range(group.num_columns)
        ]
    )


def chunk_range(column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Where a column chunk begins and ends in the file, as pyarrow takes it from the footer."""
    start = column.data_page_offset
    if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    return start, start + column.total_compressed_size


def _struct(content: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """A struct's 32-bit numbers and structs by field, and where it ends. Raises IndexError at the end of `content`.

    As in Arrow's reader, the last of several equal fields wins, and fields of another type are skipped.
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
    """A value of one of the compact protocol's types, None unless it is a 32-bit number or a struct; and its end."""
    if kind == 5:
        number, at = _integer(content, at)
        if -(2**31) <= number < 2**31:
            return number, at
    elif kind == 12 and depth < MOST_DEPTH:
        return _struct(content, at, depth + 1)
    elif kind in (1, 2):  # true and false, which the field's own header holds
        return None, at
    elif kind in (4, 6):
        return None, _integer(content, at)[1]
    elif kind == 8:
        size, at = _count(content, at)
        return None, _within(content, at + size)
    elif kind in (3, 7):
        return None, _within(content, at + (1 if kind == 3 else 8))
    raise PageRefused("a page of the parquet file has a header of unknown kind")  # no header has lists, sets or maps


def _within(content: bytes, at: int) -> int:
    if at > len(content):
        raise IndexError
    return at


def _count(content: bytes, at: int) -> tuple[int, int]:
    """An unsigned number in groups of seven bits, lowest first."""
    number = 0
    for place in range(10):
        number |= (content[at + place] & 0x7F) << 7 * place
        if content[at + place] < 0x80:
            return number, at + place + 1
    raise PageRefused("a page of the parquet file has a header of unknown kind")


def _integer(content: bytes, at: int) -> tuple[int, int]:
    """A signed number, whose lowest bit is its sign."""
    number, at = _count(content, at)
    return number >> 1 ^ -(number & 1), at
