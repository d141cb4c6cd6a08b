"""Read untrusted tar archives from a stream, member by member.

Archives may be plain or compressed (unpacked.py), several in one file, and without their end marker. Nothing is written
to disk, and no header is trusted: a size only says how far to read or to seek forward, and a seek never goes past the
known length of the stream.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from caprl_ray.plan.left_out import LeftOut
from caprl_ray.prepare import kinds
from caprl_ray.sources.sparse import Sparse
from caprl_ray.sources.tape import CHUNK, SeekableTape, Tape, TarDamaged, TarFormat
from caprl_ray.sources.tar_header import (
    BLOCK,
    EXTENSION_KINDS,
    LABEL_KIND,
    LINK_KINDS,
    SPECIAL_KINDS,
    VOLUME_KIND,
    Header,
    extend,
    is_header,
    parse,
    read_extension,
)
from caprl_ray.sources.unpacked import FREE_INFLATION, MAX_INFLATION, Unpacked, compression

__all__ = ["Member", "Streamed", "TarDamaged", "TarFormat", "read_members", "stream_members"]

# Most zeros after the end marker that count as padding: writers pad to records of 10 KiB, or of some hundred KiB. A
# file that was allocated before it was written has many more.
PADDING = 1 << 20
# Most zeros that are searched for another archive after them.
MOST_ZEROS = 16 << 20
MOST_SPARSE = 64 << 20  # bytes of a streamed sparse file, because it is read as a whole


@dataclass(frozen=True, kw_only=True)
class Member:
    """A regular file of an archive. `content` is None if the file is larger than its limit."""

    name: str
    size: int
    content: bytes | None


@dataclass(frozen=True)
class Streamed:
    """A regular file of an archive that is read in pieces. `name` is as it is stored."""

    name: bytes
    size: int
    pieces: Iterator[bytes]

    @property
    def text(self) -> str:
        """The name as `Member` has it."""
        return self.name.decode("utf-8", "backslashreplace")


def read_members(
    stream: BinaryIO, *, limit: Callable[[str], int], left_out: LeftOut, shard: str = "", length: int | None = None
) -> Iterator[Member]:
    """Yield the regular files of one or several tar archives, in order. Sparse files are yielded with their holes.

    Raises TarDamaged; TarFormat if the bytes are not an archive at all. An OSError of the stream itself passes through.

    Args:
        stream: the archive, at its start. It is left open. Without `length` it is only read, never sought in.
        limit: returns the most bytes to hold of a member, given its name; a larger member has no content, and with 0
            nothing is held. It is called once per member, in order, before the member's content is read.
        left_out: counts links, devices, and what is wrong with the end of the file.
        shard: the name of the file in `left_out`.
        length: the length of the stream in bytes, if it can seek: content is then skipped by seeking, except in a
            compressed stream.
    """
    archive, unpacked = _opened(stream, left_out, shard, length)
    yield from archive.members(limit)
    if unpacked and unpacked.junk:
        left_out.add("after_end", f"{unpacked.junk} bytes after the end of {shard}")


def stream_members(stream: BinaryIO, length: int) -> Iterator["Streamed"]:
    """Yield the same files as `read_members`, each to be read in pieces before the next one is asked for. The unread
    rest is skipped. Raises TarDamaged as `read_members` does, and for a sparse file that is too large."""
    archive, _ = _opened(stream, LeftOut(), "", length)
    yield from archive.streamed()


def _opened(stream: BinaryIO, left_out: LeftOut, shard: str, length: int | None) -> tuple["_Archives", Unpacked | None]:
    front = _read(stream, BLOCK)
    unpacked = Unpacked(stream, front) if compression(front) and not is_header(front) else None
    return _Archives(_tape(stream, front, unpacked, length), left_out, shard), unpacked


def _read(stream: BinaryIO, size: int) -> bytes:
    content = b""
    while len(content) < size and (part := stream.read(size - len(content))):
        content += part
    return content


def _tape(stream: BinaryIO, front: bytes, unpacked: Unpacked | None, length: int | None) -> Tape:
    """The archive's bytes at their start. Raises TarFormat if they are not an archive."""
    inside = f" in {unpacked.kind}" if unpacked else ""
    if unpacked:
        front = Tape(unpacked.read).read(BLOCK)
    if any(front) and not is_header(front) and front[257:262] != b"ustar":
        raise TarFormat(f"the bytes are {kinds.kind(front)}{inside}, not a tar archive")
    if not front:
        raise TarFormat(f"there are no bytes{inside}")
    if unpacked or length is None:
        return Tape(unpacked.read if unpacked else stream.read, front)
    return SeekableTape(stream, length, front)


class _Archives:
    """The archives of one tape."""

    def __init__(self, tape: Tape, left_out: LeftOut, shard: str) -> None:
        self._tape = tape
        self._left_out = left_out
        self._shard = shard
        self._expanded = 0
        self._given = 0  # bytes of a streamed member that were read

    def members(self, limit: Callable[[str], int]) -> Iterator[Member]:
        """Yield the files. Members that are neither file nor folder are counted."""
        for header in self._files():
            yield self._sparse(header, limit) if header.is_sparse else self._file(header, limit)

    def streamed(self) -> Iterator["Streamed"]:
        """Yield the files. Each must be read, in pieces, before the next one."""
        for header in self._files():
            if header.is_sparse:
                member = self._sparse(header, lambda _: MOST_SPARSE)
                if member.content is None:
                    raise TarDamaged(f"a sparse member of {member.size} bytes at byte {header.start}")
                yield Streamed(header.name, member.size, iter([member.content]))
                continue
            pieces = self._pieces(header.size)
            yield Streamed(header.name, header.size, pieces)
            self._tape.skip(header.size - self._given, "a member")
            self._tape.skip(-header.size % BLOCK, "a member")

    def _pieces(self, size: int) -> Iterator[bytes]:
        self._given = 0
        return self._read_pieces(size)

    def _read_pieces(self, size: int) -> Iterator[bytes]:
        while self._given < size:
            piece = self._tape.take(min(CHUNK, size - self._given), "a member")
            self._given += len(piece)
            yield piece

    def _files(self) -> Iterator[Header]:
        """Yield the headers of the files, with their extension headers applied."""
        extended: dict[bytes, bytes] = {}
        while (header := self._next_header()) is not None:
            if header.kind in EXTENSION_KINDS:
                extended |= read_extension(self._tape, header)
                continue
            header, extended = extend(header, extended), {}
            if header.is_sparse or header.is_file:
                yield header
            else:
                self._other(header)
        if extended:
            raise TarDamaged(f"an extension header without its member ends at byte {self._tape.offset}")

    def _next_header(self) -> Header | None:
        """The next header, also that of another archive after this one's end; None at the end of the last one."""
        start, block = self._tape.offset, self._tape.read(BLOCK)
        if len(block) == BLOCK and not any(block):
            start, block = self._behind_end(start)
            if not block:
                return None
        elif not any(block):
            self._left_out.add("no_end_marker", self._shard)
            return None
        if len(block) < BLOCK:
            raise TarDamaged(f"the archive ends in a header at byte {self._tape.offset}")
        return parse(block, start)

    def _behind_end(self, end: int) -> tuple[int, bytes]:
        """Continue after a zero block. Returns the position and header of another archive, or an empty block."""
        tape = self._tape
        while tape.offset - end <= MOST_ZEROS and (block := tape.read(BLOCK)):
            start = tape.offset - len(block)
            if block.count(0) == len(block):
                continue
            if is_header(block):
                return start, block
            self._after_end(len(block) + tape.rest())
            return start, b""
        padding = tape.offset - end + tape.rest()
        if padding > PADDING:
            self._after_end(padding)
        return end, b""

    def _after_end(self, count: int) -> None:
        self._left_out.add("after_end", f"{count} bytes after the end of {self._shard}")

    def _file(self, header: Header, limit: Callable[[str], int]) -> Member:
        """Read or skip the content of a file."""
        padding = -header.size % BLOCK
        content = self._tape.take(header.size, "a member") if header.size <= limit(header.text) else None
        self._tape.skip(padding if content is not None else header.size + padding, "a member")
        return Member(name=header.text, size=header.size, content=content)

    def _sparse(self, header: Header, limit: Callable[[str], int]) -> Member:
        """Read or skip a sparse file. Its size with holes is limited like the inflated size of a compressed stream."""
        sparse = Sparse(self._tape, header)
        if sparse.size > limit(header.text):
            sparse.skip()
            return Member(name=header.text, size=sparse.size, content=None)
        self._expanded += sparse.size
        if self._expanded > FREE_INFLATION + MAX_INFLATION * self._tape.offset:
            raise TarDamaged(f"sparse members expand more than {MAX_INFLATION} to 1 by byte {self._tape.offset}")
        return Member(name=header.text, size=sparse.size, content=sparse.read())

    def _other(self, header: Header) -> None:
        """Skip members that are not files, and count them. Folders and labels are not counted: they hold no image."""
        if header.kind in LINK_KINDS:
            self._left_out.add("link", header.text)
        elif header.kind in SPECIAL_KINDS:
            self._left_out.add("special", header.text)
        elif header.kind == VOLUME_KIND:
            self._left_out.add("volume_part", header.text)
        elif not header.is_folder and header.kind != LABEL_KIND:
            self._left_out.add("other_member", header.text)
        self._tape.skip(header.stored + -header.stored % BLOCK, "a member")
