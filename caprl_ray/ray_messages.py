"""What Ray says of its cluster while a run goes on: a line of each kind, once.

It tells every driver of each task that it runs again, each worker and each node that is lost, the latter with twenty
lines of a log: pages for a pool on spot capacity, in which the progress line is not found again.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ray._private import worker

from caprl_ray.own_ray import replaced

NAMES = re.compile(r"[0-9a-f]{8,}|\d[\d.:]*")  # ids, addresses and counts, which do not make another kind
LONGEST = 240


class EachKindOnce:
    """In the place of Ray's function that prints on the driver: what comes from workers goes there all the same."""

    def __init__(self, prints: Callable[..., None], stream: TextIO = sys.stderr) -> None:
        self._prints = prints
        self._stream = stream
        self._said: set[str] = set()

    def __call__(self, data: dict[str, Any], ignore_prefix: bool) -> None:
        if data["pid"] != "raylet":
            self._prints(data, ignore_prefix)
            return
        for message in data["lines"]:
            sentence = message.strip().partition("\n")[0].partition(". ")[0][:LONGEST]
            kind = NAMES.sub("", sentence)
            if kind not in self._said:
                self._said.add(kind)
                clear = "\r\x1b[K" if self._stream.isatty() else ""  # of the progress line
                self._stream.write(f"{clear}Ray: {sentence}\n")
                self._stream.flush()


@contextmanager
def briefly() -> Iterator[None]:
    """Inside of it Ray says each kind of thing once."""
    with replaced(worker, "print_to_stdstream", EachKindOnce(worker.print_to_stdstream)):
        yield
