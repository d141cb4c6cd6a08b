"""The display of a running job: a live view on a terminal, lines elsewhere.

Output of others, such as Ray's messages, appears above the view.
"""

import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live

from caprl_ray.watch.status import Status
from caprl_ray.watch.view import fits, view
from caprl_ray.watch.words import line

# Seconds between two lines: at the start, and as often as a longer pause follows, and at most.
FIRST_S, LINES_EACH, LONGEST_S = 15.0, 8, 60.0


class Screen(Protocol):
    """Shows statuses and notes. `show` may be called every second."""

    def begin(self) -> None: ...

    def note(self, text: str) -> None: ...

    def show(self, status: Status, *, last: bool = False) -> None: ...

    def end(self) -> None: ...


def screen(stream: TextIO, *, debug: bool = False) -> Screen:
    """The display for a stream. With `debug`, other programs write to the terminal too, so lines are used."""
    console = Console(file=stream)
    return Lines(stream) if debug or not fits(console) else LiveView(console)


class Lines:
    """Writes a line after 15 seconds, then less and less often, but at least every minute."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._told = 0
        self._due = clock() + FIRST_S

    def begin(self) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Write a note."""
        self._stream.write(f"caprl-ray: {text}.\n")
        self._stream.flush()

    def show(self, status: Status, *, last: bool = False) -> None:
        """Write a line if it is time."""
        now = self._clock()
        if now < self._due and not (last and self._told):
            return
        self._told += 1
        self._due = now + min(LONGEST_S, FIRST_S * (1 + self._told // LINES_EACH))
        self._stream.write(f"{line(status)}\n")
        self._stream.flush()

    def end(self) -> None:
        """Nothing."""


class LiveView:
    """Draws the view again and again in one place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(
            console=console,
            auto_refresh=False,
            redirect_stderr=True,
            redirect_stdout=sys.stdout.isatty(),  # otherwise it goes to a file, and stays there
        )

    def begin(self) -> None:
        """Take the terminal."""
        self._live.start()

    def note(self, text: str) -> None:
        """Write a note above the view."""
        self._console.print(f"caprl-ray: {text}.", markup=False, highlight=False, soft_wrap=True)

    def show(self, status: Status, *, last: bool = False) -> None:
        """Draw the view."""
        self._live.update(view(status, self._console.width), refresh=True)

    def end(self) -> None:
        """Leave the last view there and give the terminal back."""
        self._live.stop()
