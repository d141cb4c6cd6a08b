"""Stop the run from a thread: interrupt the main thread, which waits in Ray, as Ctrl-C would."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

REPEAT_S = 1.0
# An interrupted block has this long for its cleanup, such as leaving Ray, before it is interrupted again.
CLEANUP_S = 30.0


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread in the middle of a block that a thread stops."""


@contextmanager
def interruptible() -> Iterator[Callable[[Exception], None]]:
    """Give a function that ends the block with an error, from any thread. Only its first call counts.

    The interrupt is repeated until the block has ended, because code in between may swallow one: `__del__`, a weakref's
    callback, a bare `except`. A block that already unwinds is left alone for CLEANUP_S.

    Python can interrupt only the main thread. In another thread the error is raised when the block ends by itself.
    After the block the function does nothing. If SIGINT was ignored, as in background jobs of a shell, SIGINTs from
    elsewhere stay ignored.
    """
    before = signal.getsignal(signal.SIGINT)
    installed = threading.current_thread() is threading.main_thread() and (callable(before) or before == signal.SIG_IGN)
    block = _Block(before, installed)
    if installed:
        signal.signal(signal.SIGINT, block.interrupt)
    try:
        try:
            yield block.stop
        finally:
            block.end()  # may itself be interrupted
    except (Exception, KeyboardInterrupt) as error:
        block.end()
        if not block.reasons:
            raise
        raise block.reasons[0] from error
    finally:
        if installed:
            signal.signal(signal.SIGINT, before)  # first runs the handler of a signal that has come
    if block.reasons:
        raise block.reasons[0]


class _Block:
    """The shared state of the block, the threads that may stop it, and the signal handler."""

    def __init__(self, before: object, installed: bool) -> None:
        self.reasons: list[Exception] = []
        self._before = before
        self._installed = installed
        self._raised: float | None = None
        self._lock = threading.Lock()
        self._stopped, self._over = threading.Event(), threading.Event()
        # Started now: when the process has no more threads or memory, it must still be stopped.
        threading.Thread(target=self._repeat, name="interrupt", daemon=True).start()

    def stop(self, error: Exception) -> None:
        with self._lock:
            if self._over.is_set():
                return
            self.reasons.append(error)
            self._stopped.set()
            if len(self.reasons) == 1:
                self._send()

    def end(self) -> None:
        """After this no more signals are sent."""
        with self._lock:
            self._over.set()
            self._stopped.set()

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. The signal may be ours, of the block around this one, or Ctrl-C."""
        if self.reasons:
            if self._over.is_set() or self._unwinds():
                return
            self._raised = time.monotonic()
            raise Interrupted
        if callable(self._before):
            self._before(number, frame)

    def _unwinds(self) -> bool:
        if self._raised is None or time.monotonic() - self._raised > CLEANUP_S:
            return False
        error, seen = sys.exc_info()[1], set[int]()
        while error is not None and id(error) not in seen:
            if isinstance(error, Interrupted):
                return True
            seen.add(id(error))
            error = error.__context__
        return False

    def _repeat(self) -> None:
        self._stopped.wait()
        while not self._over.wait(REPEAT_S):
            with self._lock:
                if not self._over.is_set():
                    self._send()

    def _send(self) -> None:
        if self._installed:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
