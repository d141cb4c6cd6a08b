"""The headers of tar archives: v7, ustar, GNU long names and pax headers.

They are specified by POSIX (`pax`, "ustar Interchange Format" and "pax Interchange Format") and the GNU tar manual
("Basic Tar Format"). No header is trusted. A name is only text. A size only says how far to read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from caprl_ray.sources.tape import Tape, TarDamaged

BLOCK = 512
MAX_EXTENSION = 1 << 20  # bytes of one extension header (a long name, or pax records)
MAX_NAME = 1 << 16  # bytes of a name, which becomes a row's key; file systems allow 4 KiB
MAX_SIZE = 2**63 - 1  # the largest 64-bit file offset

FILE_KINDS = b"0\0" + b"7"
DATALESS_KINDS = b"123456"  # links, devices, folders, pipes: no data follows, whatever size they state
LINK_KINDS, SPECIAL_KINDS = b"12", b"346"
FOLDER_KINDS = b"5D"  # D: of an incremental archive, with the names in the folder
LABEL_KIND, VOLUME_KIND = b"V", b"M"
SPARSE_KIND = b"S"
PAX_KINDS = b"xX"
LONG_NAME_KIND = b"L"
EXTENSION_KINDS = PAX_KINDS + LONG_NAME_KIND + b"Kg"

# Only these keys of extension headers are kept, so that a long run of headers costs no memory.
LONG_NAME, PAX_PATH, PAX_SIZE, PAX_SPARSE = b"long name", b"path", b"size", b"GNU.sparse."  # the last is a prefix
SPARSE_NAME, SPARSE_MAP = PAX_SPARSE + b"name", PAX_SPARSE + b"map"
SPARSE_SIZES = (PAX_SPARSE + b"realsize", PAX_SPARSE + b"size")
SPARSE_MAJOR = PAX_SPARSE + b"major"
_SPARSE_PAIRS = (PAX_SPARSE + b"offset", PAX_SPARSE + b"numbytes")
_KEPT = frozenset({PAX_PATH, PAX_SIZE, SPARSE_NAME, SPARSE_MAP, *SPARSE_SIZES, SPARSE_MAJOR})

_HIGH = bytes(range(128, 256))
_OCTAL = re.compile(rb" *([0-7]*)(?:[ \0].*)?", re.DOTALL)
_DECIMAL = re.compile(rb"[0-9]{1,19}")
_PAX_RECORD = re.compile(rb"([0-9]{1,7}) ([^=]+)=")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of one member. `block`: as it was read. `sparse`: the pax records of a sparse file."""

    start: int
    name: bytes
    size: int
    kind: bytes
    block: bytes
    sparse: dict[bytes, bytes]

    @property
    def text(self) -> str:
        """The name. Bytes that are not UTF-8 become `\\xff`."""
        return self.name.decode("utf-8", "backslashreplace")

    @property
    def is_file(self) -> bool:
        return self.kind in FILE_KINDS and not self._is_old_folder

    @property
    def is_folder(self) -> bool:
        return self.kind in FOLDER_KINDS or self._is_old_folder

    @property
    def is_sparse(self) -> bool:
        return self.kind == SPARSE_KIND or (self.is_file and bool(self.sparse))

    @property
    def stored(self) -> int:
        """Bytes of data that follow the header, without their padding."""
        return 0 if self.kind in DATALESS_KINDS or self._is_old_folder else self.size

    @property
    def _is_old_folder(self) -> bool:  # before ustar, only a slash at the end of the name marked a folder
        return self.kind == b"\0" and self.name.endswith(b"/")


def parse(block: bytes, start: int) -> Header:
    """Check and read a header block, which begins at byte `start`. Raises TarDamaged."""
    stated, sums = _checksums(block)
    if stated not in sums:
        raise TarDamaged(f"wrong header checksum at byte {start}")
    size = number(block[124:136], start)
    return Header(start=start, name=_name(block), size=size, kind=block[156:157], block=block, sparse={})


def is_header(block: bytes) -> bool:
    """Whether a block is a header, by its checksum."""
    if len(block) < BLOCK or not any(block):
        return False
    stated, sums = _checksums(block)
    return stated in sums


def _checksums(block: bytes) -> tuple[int | None, tuple[int, int]]:
    """The stated checksum of a header, and the two valid ones: some old writers summed signed bytes."""
    summed = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(summed)
    octal = _OCTAL.fullmatch(block[148:156])
    stated = int(octal[1] or b"0", 8) if octal else None
    return stated, (unsigned, unsigned - 256 * (BLOCK - len(summed.translate(None, _HIGH))))


def number(field: bytes, start: int) -> int:
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


def read_extension(tape: Tape, header: Header) -> dict[bytes, bytes]:
    """Read what an extension header says of the next member. Ignores headers for link targets or for all members."""
    if header.size > MAX_EXTENSION:
        raise TarDamaged(f"extension header of {header.size} bytes at byte {header.start}")
    content = tape.take(header.size, "an extension header")
    tape.skip(-header.size % BLOCK, "an extension header")
    if header.kind == LONG_NAME_KIND:
        return {LONG_NAME: content.split(b"\0", 1)[0]}
    found, pairs = {}, []
    for keyword, value in _pax_records(content, header.start) if header.kind in PAX_KINDS else ():
        if keyword in _SPARSE_PAIRS:
            pairs.append(value)
        elif keyword in _KEPT:
            found[keyword] = value
    return found | ({SPARSE_MAP: b",".join(pairs)} if pairs else {})


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


def extend(header: Header, extended: dict[bytes, bytes]) -> Header:
    """Apply extension headers to a header. An empty value changes nothing."""
    names = (extended.get(key) for key in (SPARSE_NAME, PAX_PATH, LONG_NAME))
    name = next(filter(None, names), header.name)
    size = extended.get(PAX_SIZE) or b"%d" % header.size
    if not _DECIMAL.fullmatch(size) or int(size) > MAX_SIZE:
        raise TarDamaged(f"impossible size for the header at byte {header.start}")
    if len(name) > MAX_NAME:
        raise TarDamaged(f"name of {len(name)} bytes for the header at byte {header.start}")
    sparse = {key: value for key, value in extended.items() if key.startswith(PAX_SPARSE)}
    return replace(header, name=name, size=int(size), sparse=sparse)
