"""Read the bytes of an archive in order, as from a tape, and count them. Lengths that it states are never trusted."""

import os
from collections.abc import Callable
from typing import BinaryIO

CHUNK = 1 << 20  # bytes per read at most, so that a size claimed in a header costs no memory


class TarDamaged(Exception):
    """The archive is damaged or ends early.

    The message says what is wrong and at which byte of the uncompressed stream. It is safe to show.
    """


class TarFormat(TarDamaged):
    """The bytes are not an archive. The message names their kind."""


class Tape:
    """Reads the bytes of an archive in order and counts them in `offset`. `front`: bytes that come first."""

    def __init__(self, read: Callable[[int], bytes], front: bytes = b"") -> None:
        self._read = read
        self._front = front
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

    def rest(self) -> int:
        """Skip all that is left; returns the number of bytes."""
        start = self.offset
        while self._chunk(CHUNK):
            pass
        return self.offset - start

    def _chunk(self, size: int) -> bytes:
        if self._front:
            part, self._front = self._front[:size], self._front[size:]
        else:
            part = self._read(size)
        self.offset += len(part)
        return part


class SeekableTape(Tape):
    """A tape that skips by seeking, over a stream of known length."""

    def __init__(self, stream: BinaryIO, length: int, front: bytes = b"") -> None:
        super().__init__(stream.read, front)
        self._stream = stream
        self._length = length

    def skip(self, size: int, what: str) -> None:
        if size > self._length - self.offset:
            raise TarDamaged(f"the archive ends in {what} at byte {self._length}")
        held = min(size, len(self._front))
        self._front = self._front[held:]
        if size > held:
            self._stream.seek(size - held, os.SEEK_CUR)
        self.offset += size

    def rest(self) -> int:
        return max(0, self._length - self.offset)
