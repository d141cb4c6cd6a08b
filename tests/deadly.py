"""Storage whose streams end the process at certain bytes, as a page that crashes Arrow does."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, Final

from caprl_ray.storage import Storage, Stored
from tests.checkout import ROOT

DEEDS: Final[dict[bytes, Callable[[], Any]]] = {
    b"<segfault>": lambda: ctypes.string_at(0),
    b"<abort>": os.abort,
    b"<kill>": lambda: os.kill(os.getpid(), signal.SIGKILL),
    b"<no memory>": lambda: (_ for _ in ()).throw(MemoryError),
}


class DeadlyStorage(Storage):
    """The real storage, except for streams of the input. Notes each death and its process in the file `notes`."""

    notes = ""

    def __reduce__(self) -> tuple[Any, ...]:
        """By import, also in Ray's workers, which have this class by value and hand it on to a child."""
        sys.path.insert(0, str(ROOT))
        from tests.deadly import DeadlyStorage as Imported

        return Imported.noting, (Storage(self.settings), self.notes)

    @classmethod
    def noting(cls, storage: Storage, notes: str) -> "DeadlyStorage":
        made = cls(storage.settings)
        object.__setattr__(made, "notes", notes)
        return made

    def open(self, stored: Stored, *, piece: int | None = None) -> BinaryIO:
        stream = super().open(stored, piece=piece)
        return stream if "/out/" in stored.path else _Deadly(stream, self.notes)  # type: ignore[return-value]


class _Deadly:
    def __init__(self, stream: BinaryIO, notes: str) -> None:
        self._stream = getattr(stream, "raw", stream)  # whose reads are those of exactly the wanted bytes
        self._whole = stream
        self._notes = notes

    def __enter__(self) -> "_Deadly":
        return self

    def __exit__(self, *_: object) -> None:
        self._whole.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._stream.read(size)
        for words, deed in DEEDS.items():
            # Not in a page's header nor in a footer, which hold the least and the largest value.
            if words + b"!" in content:
                note(self._notes, f"{words.decode()} {os.getpid()}")
                deed()
            if b"<once>!" in content and not os.path.exists(self._notes + ".once"):
                note(self._notes + ".once", str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
        return content


def note(notes: str, line: str) -> None:
    if notes:
        with open(notes, "a", encoding="utf-8") as file:
            file.write(line + "\n")
