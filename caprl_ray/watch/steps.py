"""The progress of a step before or after the run itself that reads or writes many objects."""

import sys
import time
from typing import TextIO

TERMINAL_SECONDS, PLAIN_SECONDS = 1.0, 15.0
CLEAR = "\r\x1b[K"  # clears the line on a terminal


class Steps:
    """Writes a line every second on a terminal and every 15 seconds elsewhere; nothing for steps that are faster."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._step = ""
        self._told = 0.0
        self._shown = False

    def __call__(self, step: str, done: int, total: int) -> None:
        """Report that `done` of `total` objects of this step are done."""
        now = time.monotonic()
        if step != self._step:
            self._step, self._told = step, now
        if done < total and now - self._told >= (TERMINAL_SECONDS if self._terminal else PLAIN_SECONDS):
            self._told, self._shown = now, True
            line = f"{step}: {done:,} of {total:,} objects"
            self._stream.write(f"{CLEAR}{line}" if self._terminal else f"{line}\n")
            self._stream.flush()
        elif done == total and self._terminal and self._shown:
            self._shown = False
            self._stream.write(CLEAR)
