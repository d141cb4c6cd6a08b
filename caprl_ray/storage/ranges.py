"""Read one version of an object as a stream of exact ranges, from any store.

Each range is a request of its own. So the store can refuse another version in the middle of a read, an incomplete range
can be fetched again, and connections stay open between ranges.
"""

import io
import os
from abc import abstractmethod
from typing import Any, BinaryIO, cast

from caprl_ray.storage.stored import Stored

# Bytes of one request of a stream: enough to hide its latency, and few enough for each read task to hold.
RANGE_BYTES = 8 * 2**20
# A seek back, or this far forward, suggests that more will follow (skipping tar members). So the next range is small,
# enough for headers. At a shorter seek the bytes between are read: a store sends about this much in the time of one
# more request (30 ms at 70 MB/s). Ranges grow while reads are sequential, until they have their full size again. So
# unused bytes stay below a few times the used ones, and sequential reading after a seek costs four more requests.
JUMP_BYTES = 2 * 2**20
RANGE_BYTES_AFTER_JUMP, RANGE_GROWTH = 64 * 2**10, 4


def buffered(ranges: "Ranges", piece: int | None, most: int = RANGE_BYTES) -> BinaryIO:
    """The object from its start. `piece` is the number of bytes per request; by default the stream decides."""
    return cast("BinaryIO", io.BufferedReader(ranges, piece) if piece else _Stream(ranges, most))


class _Stream(io.BufferedReader):
    """An object's ranges, buffered. Sees every seek, also one inside the buffer."""

    raw: "Ranges"

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        before = self.tell()
        position = super().seek(offset, whence)
        if not 0 <= position - before < JUMP_BYTES:
            self.raw.jumped()
        return position


class Ranges(io.RawIOBase):
    """One version of an object as a raw stream. Each read is one request for exactly its bytes.

    A read may fill less than the whole buffer, as any raw stream may: see JUMP_BYTES.
    """

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._position = 0
        self._begun = False
        self._most: int | None = None

    def jumped(self) -> None:
        """Fetch a small range next. Has no effect before the first read, because a reader seeks when it starts."""
        if self._begun:
            self._most = RANGE_BYTES_AFTER_JUMP

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._stored.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = len(buffer) if self._most is None else min(len(buffer), self._most)
        content = self.read(wanted)
        buffer[: len(content)] = content
        if self._most is not None:
            self._most = self._most * RANGE_GROWTH if wanted < len(buffer) else None
        return len(content)

    def readall(self) -> bytes:
        return self.read(self._stored.size)

    def read(self, size: int = -1) -> bytes:
        end = self._stored.size if size < 0 else min(self._stored.size, self._position + size)
        if self._position >= end:
            return b""
        content = self._fetch(self._position, end)
        self._begun = True
        self._position = end
        return content

    @abstractmethod
    def _fetch(self, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`, all of them. Raises SourceChanged for another version."""
