"""Stop the run from a thread: the main thread waits in Ray, and is interrupted as Ctrl-C would."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stoppable() -> Iterator[Callable[[Exception], None]]:
    """Hands out a function that ends the block with an error, the first that it is called with, from any thread.

    Only Python's main thread can be interrupted: elsewhere the error is raised when the block ends by itself. After the
    block the function does nothing.
    """
    reasons: list[Exception] = []
    lock, over = threading.Lock(), False

    def stop(error: Exception) -> None:
        with lock:
            if not over:
                reasons.append(error)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    try:
        try:
            yield stop
        finally:
            with lock:
                over = True
    except KeyboardInterrupt:
        if not reasons:
            raise
    if reasons:
        raise reasons[0]
