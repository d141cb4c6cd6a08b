"""Who may be under way together. Those that were under way when a process died are set apart, further at each death."""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager


class Admission:
    """Lets in at once only what may be under way together, on one event loop.

    `limits[n]` is how many may be inside, together with others of n deaths only, of those that have seen n deaths;
    None means any number, together with all others of None. Who has seen a death goes before who has not, and fewer
    deaths before more: what most likely is not at fault gets through first.
    """

    def __init__(self, limits: Sequence[int | None]) -> None:
        self._limits = limits
        self._inside = 0
        self._deaths = 0  # that those inside have seen
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
            if not place.cancelled():  # else it was never let in
                self._inside -= 1
                self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][2]):
            _, _, deaths, place = heapq.heappop(self._waiting)
            if not place.done():  # else whoever waited for it has been cancelled
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
