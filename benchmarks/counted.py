"""Local storage that counts its reads like requests to a bucket."""

import io
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.s3_stream import RANGE_BYTES


@dataclass(frozen=True)
class Counted(Storage):
    """Counts each read of a raw stream as one request. `sizes` has the bytes of each request."""

    sizes: list[int] = field(default_factory=list)

    def open(self, stored: Stored, *, piece: int | None = None) -> BinaryIO:
        return io.BufferedReader(_CountedFile(stored.path, self.sizes), piece or RANGE_BYTES)

    def read(self, path: str) -> bytes:
        with _CountedFile(path, self.sizes) as file:
            return file.readall()


class _CountedFile(io.FileIO):
    def __init__(self, path: str, sizes: list[int]) -> None:
        super().__init__(path)
        self._sizes = sizes

    def readinto(self, buffer: Any) -> int:
        self._sizes.append(super().readinto(buffer))
        return self._sizes[-1]

    def readall(self) -> bytes:
        content = super().readall()
        self._sizes.append(len(content))
        return content
