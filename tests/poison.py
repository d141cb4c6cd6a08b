"""A `prepare` that crashes or hangs when an image's bytes say so, as a faulty decoder written in C would."""

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any, Final

from caprl_ray.prepare import decode as real
from caprl_ray.prepare.decode import Prepared

DEEDS: Final[dict[bytes, Callable[[], Any]]] = {
    b"<segfault>": lambda: ctypes.string_at(0),
    b"<abort>": os.abort,
    b"<exit>": lambda: os._exit(3),
    b"<sleep>": lambda: time.sleep(3600),
    b"<sleep with the lock>": lambda: ctypes.PyDLL(None).sleep(
        3600
    ),  # PyDLL keeps the interpreter's lock, as CDLL does not
    b"<wait>": lambda: time.sleep(1.5),
    b"<no memory>": lambda: (_ for _ in ()).throw(MemoryError),
}


def prepare(image: bytes, *, notes: str | None = None, **settings: Any) -> Prepared:
    """Do what the image says and add a line with it and our process id to `notes`; then run the real `prepare`."""
    for words, deed in DEEDS.items():
        if image.endswith(words):
            note(notes, f"{words.decode()} {os.getpid()}")
            deed()
    return real.prepare(image, **settings)


def note(notes: str | None, line: str) -> None:
    """Append a line to the file `notes`."""
    if notes:
        with open(notes, "a", encoding="utf-8") as file:
            file.write(line + "\n")
