"""Read sparse members of a tar archive, with zeros for their holes ("Storing Sparse Files" in the GNU tar manual).

The archive holds the parts of the file that are not holes, and a map of where they belong. The map is in the header
(GNU's old format), in pax records (0.0 and 0.1), or in front of the data (1.0).
"""

import re
import struct
from collections.abc import Iterator

from caprl_ray.sources.tape import Tape, TarDamaged
from caprl_ray.sources.tar_header import (
    BLOCK,
    MAX_SIZE,
    SPARSE_KIND,
    SPARSE_MAJOR,
    SPARSE_MAP,
    SPARSE_SIZES,
    Header,
    number,
)

MOST_PARTS = 1 << 17  # of one file; enough for 512 MiB of data in single pages of 4 KiB
_ENTRY, _IN_HEADER, _IN_BLOCK = struct.Struct("12s12s"), 4, 21
_NUMBER = re.compile(rb"[0-9]{1,19}")

Parts = list[tuple[int, int]]  # offset and length of each part of the file that is stored


class Sparse:
    """A sparse member whose map has been read. `size` is that of the whole file."""

    def __init__(self, tape: Tape, header: Header) -> None:
        start = tape.offset
        self._tape, self._header = tape, header
        if header.kind == SPARSE_KIND:
            self.size, self._parts = number(header.block[483:495], header.start), _old_map(tape, header)
            self._stored = header.size
        else:
            self.size = _size(header)
            in_front = header.sparse.get(SPARSE_MAJOR) == b"1"
            self._parts = _map_in_front(tape, header) if in_front else _map_of_records(header)
            self._stored = header.size - (tape.offset - start)
        self._check()

    def read(self) -> bytes:
        """The whole file, with zeros for its holes."""
        content, taken = bytearray(self.size), 0
        for offset, length in self._parts:
            content[offset : offset + length] = self._tape.take(length, "a sparse member")
            taken += length
        self.skip(taken)
        return bytes(content)

    def skip(self, taken: int = 0) -> None:
        """Skip the stored bytes after the first `taken`, and the padding."""
        self._tape.skip(self._stored - taken + -self._stored % BLOCK, "a sparse member")

    def _check(self) -> None:
        ends = [offset + length for offset, length in self._parts]
        begins = [offset for offset, _ in self._parts]
        ordered = all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))
        within = ordered and (not ends or ends[-1] <= self.size) and self.size <= MAX_SIZE
        if not within or sum(length for _, length in self._parts) > self._stored:
            raise _impossible(self._header)


def _impossible(header: Header) -> TarDamaged:
    return TarDamaged(f"impossible sparse map for the header at byte {header.start}")


def _size(header: Header) -> int:
    stated = next((header.sparse[key] for key in SPARSE_SIZES if key in header.sparse), b"")
    if not _NUMBER.fullmatch(stated):
        raise _impossible(header)
    return int(stated)


def _old_map(tape: Tape, header: Header) -> Parts:
    parts = list(_entries(header.block[386:482], _IN_HEADER, header))
    more = header.block[482] != 0
    while more:
        block = tape.take(BLOCK, "a sparse map")
        parts += _entries(block, _IN_BLOCK, header)
        more = block[504] != 0
        if len(parts) > MOST_PARTS:
            raise _impossible(header)
    return parts


def _entries(content: bytes, count: int, header: Header) -> Iterator[tuple[int, int]]:
    """The entries before the first empty one."""
    for offset, length in _ENTRY.iter_unpack(content[: count * _ENTRY.size]):
        if not offset.strip(b"\0 ") and not length.strip(b"\0 "):
            return
        yield number(offset, header.start), number(length, header.start)


def _map_of_records(header: Header) -> Parts:
    written = header.sparse.get(SPARSE_MAP)
    return _pairs(written.split(b",") if written else [], header)


def _map_in_front(tape: Tape, header: Header) -> Parts:
    """Lines of decimal numbers, in blocks: the number of entries, then offset and length of each."""
    lines: list[bytes] = []
    wanted, left, rest = 1, header.size, b""
    while len(lines) < wanted:
        if left < BLOCK or len(rest) > BLOCK:
            raise _impossible(header)
        *whole, rest = (rest + tape.take(BLOCK, "a sparse map")).split(b"\n")
        lines.extend(whole)
        left -= BLOCK
        wanted = 1 + 2 * _count(lines[0], header) if lines else wanted
    return _pairs(lines[1:wanted], header)


def _count(line: bytes, header: Header) -> int:
    if not _NUMBER.fullmatch(line) or int(line) > MOST_PARTS:
        raise _impossible(header)
    return int(line)


def _pairs(numbers: list[bytes], header: Header) -> Parts:
    if len(numbers) % 2 or len(numbers) > 2 * MOST_PARTS or not all(map(_NUMBER.fullmatch, numbers)):
        raise _impossible(header)
    values = iter(map(int, numbers))
    return list(zip(values, values, strict=True))
