"""Read untrusted tar archives from a stream, member by member.

Supported formats: v7, ustar, GNU long names and pax headers, plain or in gzip. They are specified by POSIX (`pax`,
"ustar Interchange Format" and "pax Interchange Format") and the GNU tar manual ("Basic Tar Format", "Storing Sparse
Files").

Nothing is written to disk, and no header is trusted. A name is only text. A size only says how far to read or to seek
forward, and a seek never goes past the known length of the stream.
"""

import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

BLOCK = 512
CHUNK = 1 << 20  # bytes per read at most, so that a size claimed in a header costs no memory
MAX_EXTENSION = 1 << 20  # bytes of one extension header (a long name, or pax records)
MAX_NAME = 1 << 16  # bytes of a name, which becomes a row's key; file systems allow 4 KiB
MAX_SIZE = 2**63 - 1  # the largest 64-bit file offset

# Deflate compresses up to 1030 to 1, so a few megabytes of gzip can hold hours of zeros. Images hardly compress at all;
# flat pictures in raw formats compress 20 to 50 to 1. All the data of a stream may inflate to at most
# FREE_INFLATION bytes + MAX_INFLATION x the compressed bytes read so far.
FREE_INFLATION, MAX_INFLATION = 32 << 20, 100

FILE_KINDS = b"0\0" + b"7"
DATALESS_KINDS = b"123456"  # links, devices, folders, pipes: no data follows, whatever size they state
SPARSE_KIND = b"S"
PAX_KINDS = b"xX"
LONG_NAME_KIND = b"L"
EXTENSION_KINDS = PAX_KINDS + LONG_NAME_KIND + b"Kg"

# Only these keys of extension headers are kept, so that a long run of headers costs no memory.
LONG_NAME, PAX_PATH, PAX_SIZE, PAX_SPARSE = b"long name", b"path", b"size", b"GNU.sparse."  # the last is a prefix

_OCTAL = re.compile(rb" *([0-7]*)(?:[ \0].*)?", re.DOTALL)
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_PAX_RECORD = re.compile(rb"([0-9]{1,7}) ([^=]+)=")


class TarDamaged(Exception):
    """The archive is damaged or ends early.

    The message says what is wrong and at which byte of the uncompressed stream. It is safe to show.
    """


@dataclass(frozen=True, kw_only=True)
class Member:
    """A regular file of an archive. `content` is None if the file is larger than its limit."""

    name: str
    size: int
    content: bytes | None


@dataclass(frozen=True, kw_only=True)
class _Header:
    start: int
    name: bytes
    size: int
    kind: bytes
    sparse_map_continues: bool = False

    @property
    def is_file(self) -> bool:
        return self.kind in FILE_KINDS and not self._is_old_folder

    @property
    def stored(self) -> int:
        """Bytes of data that follow the header, without their padding."""
        return 0 if self.kind in DATALESS_KINDS or self._is_old_folder else self.size

    @property
    def _is_old_folder(self) -> bool:  # before ustar, only a slash at the end of the name marked a folder
        return self.kind == b"\0" and self.name.endswith(b"/")


class _Tape:
    """Reads the bytes of an archive in order and counts them in `offset`."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.offset = 0

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer if the stream ends."""
        parts = []
        while size > 0 and (part := self._chunk(min(size, CHUNK))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def take(self, size: int, what: str) -> bytes:
        """Return exactly the next `size` bytes. Raises TarDamaged, which names `what`, if there are fewer."""
        content = self.read(size)
        if len(content) < size:
            raise TarDamaged(f"the archive ends in {what} at byte {self.offset}")
        return content

    def skip(self, size: int, what: str) -> None:
        """Skip `size` bytes without holding them. Raises TarDamaged if there are fewer."""
        while size > 0:
            size -= len(self.take(min(size, CHUNK), what))

    def _chunk(self, size: int) -> bytes:
        part = self._read(size)
        self.offset += len(part)
        return part


class _SeekableTape(_Tape):
    """A tape that skips by seeking, over a stream of known length."""

    def __init__(self, stream: BinaryIO, length: int) -> None:
        super().__init__(stream.read)
        self._stream = stream
        self._length = length

    def skip(self, size: int, what: str) -> None:
        if size > self._length - self.offset:
            raise TarDamaged(f"the archive ends in {what} at byte {self._length}")
        self._stream.seek(size, os.SEEK_CUR)
        self.offset += size


class _GzipTape(_Tape):
    """A tape over the decompressed bytes of a gzip stream. Limits how far the stream inflates."""

    def __init__(self, stream: BinaryIO) -> None:
        self._packed = _CountedStream(stream)
        super().__init__(gzip.GzipFile(fileobj=cast(BinaryIO, self._packed), mode="rb").read)

    def _chunk(self, size: int) -> bytes:
        try:
            part = super()._chunk(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TarDamaged(f"the gzip stream is damaged or ends early after byte {self.offset}") from error
        if self.offset > FREE_INFLATION + MAX_INFLATION * self._packed.offset:
            raise TarDamaged(f"the gzip stream inflates more than {MAX_INFLATION} to 1 by byte {self.offset}")
        return part


class _CountedStream:
    """Counts the compressed bytes that are read.

    Each read is complete, so that the count at any point does not depend on how the network splits the data.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.offset = 0

    def read(self, size: int) -> bytes:
        content = b""
        while len(content) < size and (part := self._stream.read(size - len(content))):
            content += part
        self.offset += len(content)
        return content


def read_members(
    stream: BinaryIO, *, compressed: bool, limit: Callable[[str], int], length: int | None = None
) -> Iterator[Member]:
    """Yield the regular files of a tar archive, in order. Links, folders, devices and sparse files are left out.

    Raises TarDamaged, also if no zero block ends the archive, or if gzip's checksum at the end of the stream is wrong.
    An OSError of the stream itself passes through.

    Args:
        stream: the archive, at its start. It is left open. Without `length` it is only read, never sought in.
        compressed: whether the stream is gzip.
        limit: returns the most bytes to hold of a member, given its name; a larger member has no content, and with 0
            nothing is held. It is called once per member, in order, before the member's content is read.
        length: the length of the stream in bytes, if it can seek: content is then skipped by seeking, except in gzip.
    """
    tape = _tape(stream, compressed, length)
    extended: dict[bytes, bytes] = {}
    while (header := _read_header(tape)) is not None:
        if header.kind in EXTENSION_KINDS:
            extended |= _read_extension(tape, header)
            continue
        header, extended = _extend(header, extended), {}
        if header.is_file:
            yield _read_member(tape, header, limit)
        else:
            _skip_data(tape, header)
    if extended:
        raise TarDamaged(f"an extension header without its member ends at byte {tape.offset - BLOCK}")
    while compressed and tape.read(CHUNK):
        pass


def _tape(stream: BinaryIO, compressed: bool, length: int | None) -> _Tape:
    if compressed:
        return _GzipTape(stream)
    return _Tape(stream.read) if length is None else _SeekableTape(stream, length)


def _read_header(tape: _Tape) -> _Header | None:
    """Read and check the next header. Returns None at the zero block that ends the archive."""
    start = tape.offset
    block = tape.read(BLOCK)
    if not block:
        raise TarDamaged(f"no end-of-archive marker at byte {start}")
    if len(block) < BLOCK:
        raise TarDamaged(f"the archive ends in a header at byte {tape.offset}")
    if not any(block):
        return None
    _check_sum(block, start)
    size = _number(block[124:136], start)
    continues = block[156:157] == SPARSE_KIND and block[482] != 0
    return _Header(start=start, name=_name(block), size=size, kind=block[156:157], sparse_map_continues=continues)


def _check_sum(block: bytes, start: int) -> None:
    """Check the sum of the header's bytes, with the checksum itself as spaces. Some old writers summed signed bytes."""
    summed = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(summed)
    octal = _OCTAL.fullmatch(block[148:156])
    stated = int(octal[1] or b"0", 8) if octal else None
    if stated != unsigned and stated != unsigned - 256 * sum(byte > 127 for byte in summed):
        raise TarDamaged(f"wrong header checksum at byte {start}")


def _number(field: bytes, start: int) -> int:
    """Parse a size: octal digits, or (GNU, top bit set) a big-endian number in two's complement."""
    octal = _OCTAL.fullmatch(field)
    if octal is not None:
        return int(octal[1] or b"0", 8)
    if not field[0] & 0x80:
        raise TarDamaged(f"impossible size in the header at byte {start}")
    return int.from_bytes(field, "big") - (0x80 << 88)  # far above MAX_SIZE if the next bit, the sign, is set


def _name(block: bytes) -> bytes:
    """The name, with its prefix if the header has one (only POSIX ustar; GNU stores times in that place)."""
    name, prefix = block[:100].split(b"\0", 1)[0], block[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _read_extension(tape: _Tape, header: _Header) -> dict[bytes, bytes]:
    """Read what an extension header says of the next member. Ignores headers for link targets or for all members."""
    if header.size > MAX_EXTENSION:
        raise TarDamaged(f"extension header of {header.size} bytes at byte {header.start}")
    content = tape.take(header.size, "an extension header")
    tape.skip(-header.size % BLOCK, "an extension header")
    if header.kind == LONG_NAME_KIND:
        return {LONG_NAME: content.split(b"\0", 1)[0]}
    records = _pax_records(content, header.start) if header.kind in PAX_KINDS else ()
    kept = (PAX_PATH, PAX_SIZE, PAX_SPARSE)
    return {key: value for keyword, value in records if (key := keyword[: len(PAX_SPARSE)]) in kept}


def _pax_records(content: bytes, start: int) -> Iterator[tuple[bytes, bytes]]:
    """Parse records of the form `length keyword=value newline`; `length` counts the whole record."""
    at = 0
    while at < len(content) and content[at] != 0:
        head = _PAX_RECORD.match(content, at)
        end = at + int(head[1]) if head else at
        if head is None or head.end() >= end or content[end - 1 : end] != b"\n":
            raise TarDamaged(f"malformed pax record in the header at byte {start}")
        yield head[2], content[head.end() : end - 1]
        at = end


def _extend(header: _Header, extended: dict[bytes, bytes]) -> _Header:
    """Apply extension headers to a header. An empty value changes nothing."""
    name = extended.get(PAX_PATH) or extended.get(LONG_NAME) or header.name
    size = extended.get(PAX_SIZE) or b"%d" % header.size
    if not _DECIMAL.fullmatch(size) or int(size) > MAX_SIZE:
        raise TarDamaged(f"impossible size for the header at byte {header.start}")
    if len(name) > MAX_NAME:
        raise TarDamaged(f"name of {len(name)} bytes for the header at byte {header.start}")
    kind = SPARSE_KIND if PAX_SPARSE in extended and header.kind in FILE_KINDS else header.kind
    return replace(header, name=name, size=int(size), kind=kind)


def _read_member(tape: _Tape, header: _Header, limit: Callable[[str], int]) -> Member:
    """Read or skip the content of a file. Bytes of its name that are not UTF-8 become `\\xff`."""
    name = header.name.decode("utf-8", "backslashreplace")
    padding = -header.size % BLOCK
    content = tape.take(header.size, "a member") if header.size <= limit(name) else None
    tape.skip(padding if content is not None else header.size + padding, "a member")
    return Member(name=name, size=header.size, content=content)


def _skip_data(tape: _Tape, header: _Header) -> None:
    """Skip what is not a regular file. A GNU sparse file may have further map blocks before its data."""
    continues = header.sparse_map_continues
    while continues:
        continues = tape.take(BLOCK, "a sparse map")[504] != 0
    tape.skip(header.stored + -header.stored % BLOCK, "a member")
