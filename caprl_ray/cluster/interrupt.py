"""Stop the run from a thread: interrupt the main thread, which waits in Ray, as Ctrl-C would."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[Callable[[Exception], None]]:
    """Give a function that ends the block with an error, from any thread. Only its first call counts.

    Python can interrupt only the main thread. In another thread the error is raised when the block ends by itself.
    After the block the function does nothing. If SIGINT was ignored, as in background jobs of a shell, SIGINTs from
    elsewhere stay ignored.
    """
    reasons: list[Exception] = []
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if reasons:
            raise KeyboardInterrupt
        if callable(before):
            before(number, frame)  # Ctrl-C, or the block around this one

    installed = threading.current_thread() is threading.main_thread() and (callable(before) or before == signal.SIG_IGN)
    if installed:
        signal.signal(signal.SIGINT, interrupt)
    lock, over = threading.Lock(), False

    def stop(error: Exception) -> None:
        with lock:
            if not over:
                reasons.append(error)
                if len(reasons) == 1:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    try:
        try:
            yield stop
        finally:
            with lock:
                over = True
            if installed:
                signal.signal(signal.SIGINT, before)
    except KeyboardInterrupt:
        if not reasons:
            raise
    if reasons:
        raise reasons[0]
