"""Read untrusted tar archives from a stream, member by member.

The formats are those of POSIX (`pax`, "ustar Interchange Format" and "pax Interchange Format") and of the GNU tar
manual ("Basic Tar Format", "Storing Sparse Files"): v7, ustar, GNU long names and pax headers, plain or in gzip.
Nothing is written to disk, and nothing is trusted: a name is only text, and a size only says how much to read or to
skip, forward and never past the known length of the stream.
"""

import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

BLOCK = 512
CHUNK = 1 << 20  # the most that is read at once, so that a size in a header costs no memory
MAX_EXTENSION = 1 << 20  # bytes of a long name or of pax records
MAX_NAME = 1 << 16  # bytes of a name, which becomes a row's key; file systems stop at 4 KiB
MAX_SIZE = 2**63 - 1  # the range of a 64-bit file offset

# Deflate packs up to 1030 to 1, so a few megabytes of gzip can hold hours of zeros. Images hardly pack at all, and flat
# pictures in raw formats 20 to 50 to 1. The whole stream may inflate this far and by this factor.
FREE_INFLATION, MOST_INFLATION = 32 << 20, 100

FILE_KINDS = b"0\0" + b"7"
DATALESS_KINDS = b"123456"  # links, devices, folders, pipes: no data follows, whatever their size says
SPARSE_KIND = b"S"
PAX_KINDS = b"xX"
LONG_NAME_KIND = b"L"
EXTENSION_KINDS = PAX_KINDS + LONG_NAME_KIND + b"Kg"

# The keys of extension headers that are kept. Others are dropped, so that many headers in a row cost no memory.
LONG_NAME, PAX_PATH, PAX_SIZE, PAX_SPARSE = b"long name", b"path", b"size", b"GNU.sparse."  # the last: a prefix

_OCTAL = re.compile(rb" *([0-7]*)(?:[ \0].*)?", re.DOTALL)
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_PAX_RECORD = re.compile(rb"([0-9]{1,7}) ([^=]+)=")


class TarDamaged(Exception):
    """The archive ends early or is damaged. The message says what and at which byte of the uncompressed stream; it is
    safe to show."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A regular file of an archive. `content` is None if the file is larger than its limit and was skipped."""

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
    def _is_old_folder(self) -> bool:  # before ustar, only a slash at the end marked a folder
        return self.kind == b"\0" and self.name.endswith(b"/")


class _Tape:
    """The bytes of an archive in order, and the offset reached."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.offset = 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end of the stream."""
        parts = []
        while size > 0 and (part := self._chunk(min(size, CHUNK))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes, all of them."""
        content = self.read(size)
        if len(content) < size:
            raise TarDamaged(f"the archive ends in {what} at byte {self.offset}")
        return content

    def skip(self, size: int, what: str) -> None:
        """Skip `size` bytes, all of which must be there, and hold none."""
        while size > 0:
            size -= len(self.take(min(size, CHUNK), what))

    def _chunk(self, size: int) -> bytes:
        part = self._read(size)
        self.offset += len(part)
        return part


class _SoughtTape(_Tape):
    """The bytes of a seekable stream of known length."""

    def __init__(self, stream: BinaryIO, length: int) -> None:
        super().__init__(stream.read)
        self._stream = stream
        self._length = length

    def skip(self, size: int, what: str) -> None:
        if size > self._length - self.offset:
            raise TarDamaged(f"the archive ends in {what} at byte {self._length}")
        self._stream.seek(size, os.SEEK_CUR)
        self.offset += size


class _UnpackedTape(_Tape):
    """The inflated bytes of a gzip stream, within FREE_INFLATION and MOST_INFLATION of its compressed bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._packed = _Packed(stream)
        super().__init__(gzip.GzipFile(fileobj=cast(BinaryIO, self._packed), mode="rb").read)

    def _chunk(self, size: int) -> bytes:
        try:
            part = super()._chunk(size)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TarDamaged(f"the gzip stream is damaged or ends early after byte {self.offset}") from error
        if self.offset > FREE_INFLATION + MOST_INFLATION * self._packed.offset:
            raise TarDamaged(f"the gzip stream inflates more than {MOST_INFLATION} to 1 by byte {self.offset}")
        return part


class _Packed:
    """The compressed bytes in order, counted. Reads are complete, so that the network does not change what is read
    when."""

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
    """The regular files of a tar archive, in order.

    Raises TarDamaged, also when no zero block ends the archive or when gzip's own checksum, read after it, is wrong; a
    fault of the stream itself (OSError) is passed on. Links, folders, devices and sparse files are left out.

    Args:
        stream: at the archive's start; only read, unless `length` is given, and left open.
        compressed: whether it is gzip.
        limit: the largest size in bytes to hold, by a member's name, 0 for none of its content. Asked once for every
            member, in their order, before any of its content is read.
        length: how many bytes the stream has, where it can be sought in: what is not held is then sought over. Nothing
            is in gzip.
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
        return _UnpackedTape(stream)
    return _Tape(stream.read) if length is None else _SoughtTape(stream, length)


def _read_header(tape: _Tape) -> _Header | None:
    """The next header, checked; None at the zero block that ends the archive."""
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
    """The sum of the header's bytes with the checksum itself as spaces; some old writers summed signed bytes."""
    summed = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(summed)
    octal = _OCTAL.fullmatch(block[148:156])
    stated = int(octal[1] or b"0", 8) if octal else None
    if stated != unsigned and stated != unsigned - 256 * sum(byte > 127 for byte in summed):
        raise TarDamaged(f"wrong header checksum at byte {start}")


def _number(field: bytes, start: int) -> int:
    """A size: octal digits, or (GNU, top bit set) a big-endian number of two's complement."""
    octal = _OCTAL.fullmatch(field)
    if octal is not None:
        return int(octal[1] or b"0", 8)
    if not field[0] & 0x80:
        raise TarDamaged(f"impossible size in the header at byte {start}")
    return int.from_bytes(field, "big") - (0x80 << 88)  # far above MAX_SIZE where the next bit, the sign, is set


def _name(block: bytes) -> bytes:
    """The name, below its prefix where the header has one (POSIX ustar; GNU keeps times in that place)."""
    name, prefix = block[:100].split(b"\0", 1)[0], block[345:500].split(b"\0", 1)[0]
    return prefix + b"/" + name if prefix and block[257:263] == b"ustar\0" else name


def _read_extension(tape: _Tape, header: _Header) -> dict[bytes, bytes]:
    """What an extension header says about the next member; one for a link's target or for all members says nothing."""
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
    """Records of the form `length keyword=value newline`, the length counting all of it."""
    at = 0
    while at < len(content) and content[at] != 0:
        head = _PAX_RECORD.match(content, at)
        end = at + int(head[1]) if head else at
        if head is None or head.end() >= end or content[end - 1 : end] != b"\n":
            raise TarDamaged(f"malformed pax record in the header at byte {start}")
        yield head[2], content[head.end() : end - 1]
        at = end


def _extend(header: _Header, extended: dict[bytes, bytes]) -> _Header:
    """The header with what its extensions say; an empty value leaves the header's own."""
    name = extended.get(PAX_PATH) or extended.get(LONG_NAME) or header.name
    size = extended.get(PAX_SIZE) or b"%d" % header.size
    if not _DECIMAL.fullmatch(size) or int(size) > MAX_SIZE:
        raise TarDamaged(f"impossible size for the header at byte {header.start}")
    if len(name) > MAX_NAME:
        raise TarDamaged(f"name of {len(name)} bytes for the header at byte {header.start}")
    kind = SPARSE_KIND if PAX_SPARSE in extended and header.kind in FILE_KINDS else header.kind
    return replace(header, name=name, size=int(size), kind=kind)


def _read_member(tape: _Tape, header: _Header, limit: Callable[[str], int]) -> Member:
    """A file, its content read or passed over. Bytes of a name that are not UTF-8 are shown as `\\xff`."""
    name = header.name.decode("utf-8", "backslashreplace")
    padding = -header.size % BLOCK
    content = tape.take(header.size, "a member") if header.size <= limit(name) else None
    tape.skip(padding if content is not None else header.size + padding, "a member")
    return Member(name=name, size=header.size, content=content)


def _skip_data(tape: _Tape, header: _Header) -> None:
    """Get past what is not a regular file; a GNU sparse file may have blocks of map before its data."""
    continues = header.sparse_map_continues
    while continues:
        continues = tape.take(BLOCK, "a sparse map")[504] != 0
    tape.skip(header.stored + -header.stored % BLOCK, "a member")
