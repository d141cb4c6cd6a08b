"""Write tars that depend on nothing but their members: no times, no owners."""

import tarfile
from collections.abc import Iterable
from typing import BinaryIO

BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
MODE = 0o444


class TarWriter:
    """Writes members one after another to a file that can seek."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.offset = 0

    def add(self, name: bytes, size: int, pieces: Iterable[bytes]) -> None:
        """Write a member of a known size. Its name is stored as it is."""
        info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
        info.size, info.mode = size, MODE
        self._write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
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
