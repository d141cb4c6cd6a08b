"""Run slow calls for the next few items while the first is in use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

# Objects that one read task fetches at the same time. A store answers each after tens of milliseconds, and one read
# task alone must keep up with a GPU (about 40 images/s). Memory holds at most as many images.
FETCHED_AHEAD = 8


def prefetched(function: Callable[[In], Out], items: Iterable[In], ahead: int | None = None) -> Iterator[Out]:
    """`map` in threads, in the order of the items, with at most `ahead` of them (FETCHED_AHEAD) running or waiting."""
    ahead = ahead or FETCHED_AHEAD
    pool = ThreadPoolExecutor(ahead)
    waiting: deque[Future[Out]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # The calls have ended then, and not yet the threads: a garbage collection that ends this generator may run
        # inside of `threading`, whose lock the end of a thread needs.
        pool.shutdown(wait=False, cancel_futures=True)
        wait([call for call in waiting if not call.cancelled()])
