"""Cancel unfinished captions when the run stops; the next run captions these rows."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from caprl_ray.errors import RowFailure
from caprl_ray.rows.codes import UNFINISHED

T = TypeVar("T")


class Cut:
    """Wraps awaitables of one event loop, and cancels all of them at `now`."""

    def __init__(self) -> None:
        self._stopped = asyncio.Event()

    def now(self) -> None:
        """Cancel everything. Call it on the event loop."""
        self._stopped.set()

    async def __call__(self, work: Coroutine[Any, Any, T]) -> T | RowFailure:
        """The result of `work`, or a RowFailure of code UNFINISHED if the run stops first."""
        if self._stopped.is_set():
            work.close()
            return RowFailure(UNFINISHED)
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stopped.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        return RowFailure(UNFINISHED) if task.cancelled() else task.result()
