"""What Ray says of its cluster while a run goes on: a line of each kind, once.

It tells every driver of each task that it runs again, each worker and each node that is lost, the latter with twenty
lines of a log: pages for a pool on spot capacity, in which the progress line is not found again.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from ray._private import worker

from caprl_ray.cluster.local import replaced
from caprl_ray.text import plain

NAMES = re.compile(r"[0-9a-f]{8,}|\d[\d.:]*")  # ids, addresses and counts, which do not make another kind
LONGEST = 240


class EachKindOnce:
    """In the place of Ray's function that prints such a message on the driver."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._said: set[str] = set()

    def __call__(self, data: dict[str, Any], ignore_prefix: bool) -> None:
        for message in data["lines"]:
            line = plain(message).strip().partition("\n")[0][:LONGEST]
            kind = NAMES.sub("", line)
            if kind not in self._said:
                self._said.add(kind)
                with suppress(OSError, ValueError):  # closed; Ray's thread would end with it
                    self._say(line, self._stream or sys.stderr)

    def _say(self, line: str, stream: TextIO) -> None:
        clear = "\r\x1b[K" if stream.isatty() else ""  # of the progress line
        stream.write(f"{clear}Ray: {line}\n")
        stream.flush()


_say_once = EachKindOnce()


@contextmanager
def briefly() -> Iterator[None]:
    """Inside of it Ray says each kind of thing once; again in this process, it does not say it again."""
    with replaced(worker, "print_to_stdstream", _say_once):
        yield
