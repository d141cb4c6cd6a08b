"""Run slow calls for the next few items while the current one is in use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

# Objects that one read task fetches at the same time. A store answers each after tens of milliseconds, and one read
# task alone must keep up with a GPU (about 40 images/s). Memory holds at most as many images.
FETCHED_AHEAD = 8
THREADS = "reader"  # prefix of the threads' names


@contextmanager
def readers(most: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads for calls that only read. If the block ends early, it does not wait for running calls, because
    a store may take minutes to fail."""
    pool, whole = ThreadPoolExecutor(most, thread_name_prefix=THREADS), False
    try:
        yield pool
        whole = True
    finally:
        pool.shutdown(wait=whole, cancel_futures=True)


def prefetched(function: Callable[[In], Out], items: Iterable[In], ahead: int | None = None) -> Iterator[Out]:
    """`map` in threads, in the order of the items, with at most `ahead` of them (FETCHED_AHEAD) running or waiting.

    The function must only read: if the iteration ends early, nothing waits for running calls.
    """
    ahead = ahead or FETCHED_AHEAD
    with readers(ahead) as pool:
        waiting: deque[Future[Out]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
