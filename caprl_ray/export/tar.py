"""Write tars that depend on nothing but their members: no times, no owners."""

import tarfile
from collections.abc import Iterable
from typing import BinaryIO

BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
MODE = 0o444


def header(name: bytes, size: int) -> bytes:
    """The header of a member, as tarfile makes it. The common one, of a short name, is put together ten times as fast:
    it differs from the next one in its name, its size and its checksum."""
    if len(name) > tarfile.LENGTH_NAME or size >= 8**11 or b"\0" in name:
        return _made(name, size)
    first = name.ljust(100, b"\0") + SAME[100:124] + b"%011o\0" % size + SAME[136:148]
    checksum = sum(first) + SUM_OF_REST
    return first + b"%06o\0" % checksum + SAME[155:]


def _made(name: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    info.size, info.mode = size, MODE
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


SAME = _made(b"", 0)
SUM_OF_REST = 8 * ord(" ") + sum(SAME[156:])  # the checksum counts itself as spaces


class TarWriter:
    """Writes members one after another to a file that can seek."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.offset = 0

    def add(self, name: bytes, size: int, pieces: Iterable[bytes]) -> None:
        """Write a member of a known size. Its name is stored as it is."""
        self._write(header(name, size))
        start = self.offset
        for piece in pieces:
            self._write(piece)
        assert self.offset - start == size, "a member has the size that its header states"
        self._write(bytes(-size % BLOCK))

    def back_to(self, offset: int) -> None:
        """Take back everything that was written after an offset."""
        self._file.seek(offset)
        self._file.truncate()
        self.offset = offset

    def close(self) -> None:
        """Write the end of the archive. The file is left open."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.offset % RECORD))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self.offset += len(content)
