"""Admission control for retries: requests that were running when the engine died run again in ever smaller groups."""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager


class Admission:
    """Lets requests in that may run concurrently, on one event loop.

    `limits[n]` is how many requests that survived n crashes may run at once, and only with others of n crashes. None
    means any number, together with all others of None. Requests that have seen a crash go first, and among them those
    with fewer crashes: they are least likely to be the cause.
    """

    def __init__(self, limits: Sequence[int | None]) -> None:
        self._limits = limits
        self._inside = 0
        self._deaths = 0  # crashes that the running requests have seen
        self._arrivals = itertools.count()
        self._waiting: list[tuple[tuple[bool, int], int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def admitted(self, deaths: int) -> AsyncIterator[None]:
        """Wait for a place, and hold it."""
        place = asyncio.get_running_loop().create_future()
        free = self._limits[deaths] is None
        rank = (free, 0 if free else deaths)
        heapq.heappush(self._waiting, (rank, next(self._arrivals), deaths, place))
        self._admit()
        try:
            await place
            yield
        finally:
            if not place.cancelled():  # otherwise it was never let in
                self._inside -= 1
                self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][2]):
            _, _, deaths, place = heapq.heappop(self._waiting)
            if not place.done():  # otherwise the waiting request was cancelled
                self._inside += 1
                self._deaths = deaths
                place.set_result(None)

    def _fits(self, deaths: int) -> bool:
        most = self._limits[deaths]
        if not self._inside:
            return True
        if most is None:
            return self._limits[self._deaths] is None
        return deaths == self._deaths and self._inside < most
