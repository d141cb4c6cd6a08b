"""SIGINT (Ctrl-C), SIGTERM, and SIGHUP of a terminal that was closed: the first one asks a run to end, the second one
ends it at once."""

import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """Raised in the main thread by a SIGTERM or SIGHUP, as KeyboardInterrupt is by a SIGINT."""


class Signals:
    """The shared state of this process's handler and the run."""

    def __init__(self) -> None:
        self.first: int | None = None
        """The signal that came first."""
        self.asked = threading.Event()
        """Set when a run that may end by itself is asked to."""
        self._graceful = False

    @contextmanager
    def answered(self) -> Iterator[None]:
        """While the block runs, the first signal only sets `asked`, and the block ends itself in good order."""
        self._graceful = True
        try:
            yield
        finally:
            self._graceful = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if number == signal.SIGHUP:
            _leave_terminal()
            if self.first is not None:  # a shell and the system may both send one, a moment apart
                return
        again, self.first = self.first is not None, self.first or number
        if self._graceful and not again:
            self.asked.set()
        else:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _leave_terminal() -> None:
    """Write nothing more to a terminal, because a closed one answers each line with an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        with suppress(OSError):  # one that is closed
            if stat.S_ISCHR(os.fstat(output).st_mode):
                os.dup2(nowhere, output)
    os.close(nowhere)


_current: Signals | None = None


@contextmanager
def handled() -> Iterator[Signals]:
    """Handle the signals while the block runs. A block inside of another one shares its Signals.

    Python can do so in the main thread only; elsewhere no signal comes. A signal that was ignored, as SIGINT is in
    background jobs of a shell, stays ignored.
    """
    global _current  # noqa: PLW0603 (the handlers of a process are one, too)
    outermost = _current is None
    signals = _current = _current or Signals()
    mine = outermost and threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in NUMBERS if mine}
    taken = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
        if outermost:
            _current = None


@contextmanager
def kept() -> Iterator[None]:
    """Keep the handlers that are set, while the block connects to Ray. Ray sets its own for SIGTERM, which print a
    dump.

    Processes that Ray starts meanwhile get no SIGHUP: they inherit the blocked signal, which this process handles after
    the block. A terminal that is closed sends one to each, and a run needs them to commit finished rows.
    """
    mine = _current is not None and threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in NUMBERS if mine}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # not set from Python
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
