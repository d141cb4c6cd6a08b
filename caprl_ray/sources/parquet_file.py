"""Open a parquet file for streaming, with exact range reads and bounded buffers. No code of extension types runs.

pyarrow raises OSError both for damaged pages and for failing storage. `decoding` tells the two apart.
"""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.prepare.kinds import LOOKED_AT, kind
from caprl_ray.sources.parquet_pages import PageInspector, PageRefused, page_inspector

TAIL_BYTES = 64 * 2**10  # the end of the file, which is read first; it usually holds the whole footer
MAX_FOOTER = 256 * 2**20  # the footer is held in memory, and the file itself states its length
# Read buffers: bytes for all open column chunks together, and the limits for one of them.
BUFFERED_BYTES = 32 * 2**20
MIN_BUFFER, MAX_BUFFER = 64 * 2**10, 4 * 2**20

# At both ends of a file: MAGIC, or ENCRYPTED if its footer is encrypted (parquet-format, Encryption.md).
MAGIC, ENCRYPTED = b"PAR1", b"PARE"
# Bytes of the signature after a plain footer of an encrypted file. pyarrow ends the process when it is asked for an
# encrypted column of such a file.
SIGNATURE = 28
IS_ENCRYPTED = "the parquet file is encrypted; write it without encryption"

ARROW_SCHEMA, EXTENSION = b"ARROW:schema", b"ARROW:extension:name"
HIDDEN_SCHEMA = b"arrow:schema"
HIDDEN_EXTENSION = EXTENSION.lower()  # plain text to pyarrow, in the metadata of a column
VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
# In Thrift's compact protocol: the key, then field 2, a string (its length in groups of seven bits, then its text).
_STORED_SCHEMA = re.compile(re.escape(ARROW_SCHEMA) + rb"(\x18([\x80-\xff]{0,4}[\x00-\x7f])([A-Za-z0-9+/=]*))?")

# Each row that a footer claims becomes a row of the output, at least a failed one. So a footer may claim at most
# FREE_ROWS + the file's size in bytes. FREE_ROWS is for rows that take hardly any bytes: without an image, or all with
# the same image.
FREE_ROWS = 2**16


class ParquetDamaged(Exception):
    """The file is damaged or not parquet. The message is safe to store; `code` is the failure code of its row."""

    code = "truncated_unit"


class NotParquet(ParquetDamaged):
    """The file is not parquet, or it is encrypted."""

    code = "unit_format"


class ParquetStream:
    """The file object that pyarrow reads from. Each read fetches exactly one range.

    `footer_size`: as the file states it. `fault`: the exception of a failed read. `inspector`: if set, it checks all
    bytes that are read.

    Extension types are removed from the footer before pyarrow sees it, so their columns get their storage types.
    Otherwise pyarrow runs the code of the registered type on data from the file, whatever its options say.
    """

    closed = False

    def __init__(self, stream: BinaryIO, size: int) -> None:
        # The raw stream, because its buffer would fetch far more than the small ranges that are requested.
        self._raw = getattr(stream, "raw", stream)
        self._size = size
        self._position = 0
        self.fault: Exception | None = None
        self.inspector: PageInspector | None = None
        self.footer_size = 0
        self._tail_start, self._tail = self._load_tail()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing: the opener closes the stream."""

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = self._position
        end = self._size if size < 0 else min(self._size, start + size)
        content = b""
        if start < self._tail_start:
            content = self._fetch(start, min(end, self._tail_start))
        if end > self._tail_start:
            content += self._tail[max(0, start - self._tail_start) : end - self._tail_start]
        self._position = start + len(content)
        if self.inspector:
            self._inspect(start, content)
        return content

    def _inspect(self, start: int, content: bytes) -> None:
        try:
            assert self.inspector
            self.inspector.feed(start, content)
        except PageRefused as refused:
            self.fault = ParquetDamaged(str(refused))
            raise self.fault from None

    def hide_schema(self) -> None:
        """Hide the Arrow schema from pyarrow, which then takes the types from parquet's own schema."""
        self._tail = self._tail.replace(ARROW_SCHEMA, HIDDEN_SCHEMA)

    def _load_tail(self) -> tuple[int, bytes]:
        """Read the end of the file with the whole footer. Returns its offset, and its bytes without extension types."""
        start = max(0, self._size - TAIL_BYTES)
        tail = self._fetch(start, self._size)
        self._check_kind(tail)
        footer_start = self._size - 8 - int.from_bytes(tail[-8:-4], "little")
        if not 0 <= footer_start <= self._size - 8:
            return start, tail
        self.footer_size = self._size - 8 - footer_start
        if self._size - footer_start > MAX_FOOTER:
            raise ParquetDamaged(f"the parquet file's footer is larger than {MAX_FOOTER} bytes")
        if footer_start < start:
            start, tail = footer_start, self._fetch(footer_start, start) + tail
        cut = footer_start - start
        return start, tail[:cut] + without_extensions(tail[cut:])

    def _check_kind(self, tail: bytes) -> None:
        """Raise NotParquet by the file's ends. A file that only begins like parquet was cut, and fails later."""
        if tail.endswith(ENCRYPTED):
            raise NotParquet(IS_ENCRYPTED)
        if not tail.endswith(MAGIC):
            front = self._fetch(0, min(self._size, LOOKED_AT))
            if not front.startswith(MAGIC):
                raise NotParquet(f"the bytes are {kind(front)}, not parquet" if front else "there are no bytes")

    def _fetch(self, start: int, end: int) -> bytes:
        parts = []
        try:
            self._raw.seek(start)
            while start < end and (part := self._raw.read(end - start)):
                parts.append(part)
                start += len(part)
        except Exception as fault:
            self.fault = fault
            raise
        return b"".join(parts)


def without_extensions(footer: bytes) -> bytes:
    """Remove all extension types from the Arrow schema in a footer. The length of the footer does not change.

    If the schema is not encoded exactly as Arrow encodes it, the whole schema is hidden.
    """

    def changed(match: re.Match[bytes]) -> bytes:
        value = match[3] or b""
        if match[2] is None or _length(match[2]) != len(value) or footer[match.end() : match.end() + 1] != b"\0":
            return HIDDEN_SCHEMA + match[0][len(ARROW_SCHEMA) :]
        try:
            schema = base64.b64decode(value, validate=True)
        except ValueError:
            schema = b""
        if base64.b64encode(schema) != value:
            return HIDDEN_SCHEMA + match[0][len(ARROW_SCHEMA) :]
        head = match[0][: len(match[0]) - len(value)]
        return head + base64.b64encode(schema.replace(EXTENSION, HIDDEN_EXTENSION))

    return _STORED_SCHEMA.sub(changed, footer)


def _length(groups: bytes) -> int:
    return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(groups))


@contextmanager
def decoding(source: ParquetStream) -> Iterator[None]:
    """Wrap a pyarrow call that reads the file. On failure, raise the storage's exception, or else ParquetDamaged."""
    try:
        yield
    except PageRefused as refused:
        raise ParquetDamaged(str(refused)) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if source.fault:
            raise source.fault from None
        if isinstance(error, MemoryError):
            raise
        raise ParquetDamaged("the parquet file is damaged or of an unknown kind") from None


def open_file(source: ParquetStream) -> pq.ParquetFile:
    """Open the file; only its footer is read. Raises ParquetDamaged, or the exception of the storage."""
    with decoding(source):
        metadata = _readable(source).metadata
        if source.footer_size - metadata.serialized_size == SIGNATURE:
            raise NotParquet(IS_ENCRYPTED)
        share = BUFFERED_BYTES // max(1, metadata.num_columns)
        file = _opened(source, metadata=metadata, buffer_size=min(MAX_BUFFER, max(MIN_BUFFER, share)))
        _ = file.schema_arrow  # decodes the columns' names
        return file


def _readable(source: ParquetStream) -> pq.ParquetFile:
    """Open the file, without its Arrow schema if that has types that pyarrow does not know, such as those of Polars."""
    try:
        return _opened(source)
    except pa.ArrowNotImplementedError:
        source.hide_schema()
        return _opened(source)


def _opened(source: ParquetStream, **options: object) -> pq.ParquetFile:
    return pq.ParquetFile(
        pa.PythonFile(source, mode="r"),
        pre_buffer=False,
        arrow_extensions_enabled=False,
        page_checksum_verification=True,
        **options,
    )


def batches(
    file: pq.ParquetFile, source: ParquetStream, row_group: int, columns: list[str], rows: int, max_bytes: int
) -> Iterator[pa.RecordBatch]:
    """Yield a row group in batches of `rows` rows. Each batch is decoded on demand. `max_bytes` limits one image."""
    with decoding(source):
        source.inspector = page_inspector(file, row_group, rows, max_bytes)
        found = file.iter_batches(rows, row_groups=[row_group], columns=columns, use_threads=False)
    while True:
        with decoding(source):
            batch = next(found, None)
        if batch is None:
            return
        yield batch


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Reduce a schema to names and value types, without dictionaries, views, nullability and metadata."""
    return pa.schema([(field.name, _plain(field.type)) for field in schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _plain(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _plain(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _plain_list(kind)
    return VIEWS.get(kind, kind)


def _plain_list(kind: pa.DataType) -> pa.DataType:
    value = _plain(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(value, kind.list_size)
    return pa.large_list(value) if pa.types.is_large_list(kind) else pa.list_(value)


def refuse_claims(rows: list[int], size: int) -> None:
    """Raise ParquetDamaged if a footer claims more `rows` in its row groups than a file of this size can have."""
    if any(count < 0 for count in rows):
        raise ParquetDamaged("a row group has a negative number of rows")
    if sum(rows) > FREE_ROWS + size:
        raise ParquetDamaged("the parquet file claims more rows than it has bytes")
