"""Print each kind of message from Ray about its cluster once, as one line, and nothing of its C++ logger.

Ray tells every driver about each repeated task and each lost worker. For a lost node it adds twenty lines of a log. On
spot capacity these are pages, and the progress line is lost among them.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from caprl_ray.cluster import internals
from caprl_ray.text import plain

NAMES = re.compile(r"[0-9a-f]{8,}|\d[\d.:]*")  # ids, addresses and counts do not make another kind
LONGEST = 240
MOST_KINDS = 50  # names of machines may make kinds


def kind(line: str) -> str:
    """A line without ids, addresses and counts, so that equal kinds compare equal."""
    return NAMES.sub("", line)


class EachKindOnce:
    """Replaces Ray's function that prints such a message on the driver."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._said: set[str] = set()

    def __call__(self, data: dict[str, Any], ignore_prefix: bool) -> None:
        for message in data["lines"]:
            line = plain(message).strip().partition("\n")[0][:LONGEST]
            name = kind(line)
            if name in self._said or len(self._said) > MOST_KINDS:
                continue
            self._said.add(name)
            more = "there are further kinds of messages, which are left out; --debug shows all"
            with suppress(OSError, ValueError):  # closed; an exception would end Ray's thread
                self._say(line if len(self._said) <= MOST_KINDS else more, self._stream or sys.stderr)

    def _say(self, line: str, stream: TextIO) -> None:
        clear = "\r\x1b[K" if stream.isatty() else ""  # the progress line
        stream.write(f"{clear}Ray: {line}\n")
        stream.flush()


STDERR = 2  # what the logger writes to, whatever sys.stderr is
LOGGED = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,.]+ [DIWEF] \d+ \d+\] .*\.cc:\d+: ")


@contextmanager
def without_logger() -> Iterator[None]:
    """Leave out the lines that Ray's C++ logger writes to stderr while the block runs: it ignores Python's streams.

    Other lines come at the end of the block.
    """
    try:
        there = os.dup(STDERR)
    except OSError:  # closed
        yield
        return
    with tempfile.TemporaryFile() as said, os.fdopen(there, "wb", buffering=0) as stream:
        sys.stderr.flush()
        os.dup2(said.fileno(), STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(there, STDERR)
            said.seek(0)
            for line in said:
                if not LOGGED.match(line):
                    stream.write(line)


_say_once = EachKindOnce()


@contextmanager
def briefly() -> Iterator[None]:
    """Let Ray print each kind of message once in this process, while the block runs."""
    with internals.messages_to(_say_once):
        yield
