"""Find the row that kills a whole replica, by counting batches that began and did not end.

Ray restarts a replica that died and runs its tasks again, without limit and without knowing why. So each batch is
counted before its rows are sent, by an actor outside the replica. A batch that keeps coming back is split up, as
engines/revival.py does within a replica.
"""

import collections
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from ray.actor import ActorHandle

from caprl_ray.engines.admission import Admission
from caprl_ray.errors import RowFailure
from caprl_ray.rows.stage import Changes

Results = Sequence[Changes | RowFailure]

# A batch with at most this many crashes may run together with any other, because most crashes have an external cause.
UNSUSPECTED = 2
# After this many crashes alone, a row is not sent again.
DEATHS_ALONE = 2


def company(in_flight: int) -> tuple[int | None, ...]:
    """The number of batches that may run at once, by the number of their crashes.

    Any number for the first UNSUSPECTED counts, then half of the `in_flight` batches of a replica, and half of those at
    each further crash: three crashes from outside still leave a quarter of the engine's places in use. Invariant: a
    batch runs alone once it has seen 1 + max(1, floor(log2(in_flight))) crashes: two for 3 batches, eight for 141.
    """
    halves = [in_flight >> n for n in range(1, in_flight.bit_length())]
    return (*[None] * UNSUSPECTED, *(halves or [1]))


class Attempts:
    """A replica's reports to the counter actor (watch/counter.py). Use it on one event loop.

    A batch that has crashed a replica alone runs row by row. Invariant: a row kills a replica at most len(company) - 1
    times with other batches, once with its own batch, and DEATHS_ALONE times alone.
    """

    def __init__(self, counter: ActorHandle, node: str, in_flight: int) -> None:
        self._counter, self._node = counter, node
        limits = company(in_flight)
        self._admission = Admission(limits)
        self._alone = len(limits) - 1
        self._ended: collections.deque[str] = collections.deque()

    def ended(self) -> tuple[str, ...]:
        """The batches that have ended since the last call. The caller must report them to the counter, in the message
        about a batch (watch/batch.py). Call it from any thread."""
        taken: list[str] = []
        with suppress(IndexError):  # another thread may take the last one
            while True:
                taken.append(self._ended.popleft())
        return tuple(taken)

    async def caption(
        self, task: str, rows: list[dict[str, Any]], caption: Callable[[list[dict[str, Any]]], Awaitable[Results]]
    ) -> Results:
        """Caption a batch with `caption`: all rows together, or row by row if the batch has killed the replica too
        often.

        `task` is Ray's id of the task, which stays the same when Ray repeats the task. It distinguishes equal rows of
        datasets without a plan.
        """
        keys = [_digest([task, repr((row["unit"], row["index"]))]) for row in rows]
        key = _digest(keys)
        async with self._admission.admitted(0):
            begun = await self._counter.begin.remote(key, self._node)
            if not begun:  # nearly always: this one call is the whole cost
                results = await caption(rows)
                self._ended.append(key)
                return results
        await self._counter.put_off.remote(key)
        row_by_row = begun > self._alone
        async with self._admission.admitted(min(begun, self._alone)):
            await self._counter.begin.remote(key, self._node)
            if row_by_row:
                results = [await self._single(own, row, caption) for own, row in zip(keys, rows, strict=True)]
            else:
                results = await caption(rows)
        self._counter.end.remote([key, *(keys if row_by_row else ())])
        return results

    async def _single(
        self, key: str, row: dict[str, Any], caption: Callable[[list[dict[str, Any]]], Awaitable[Results]]
    ) -> Changes | RowFailure:
        """Caption one row, or fail it at once if it has killed the replica before."""
        if await self._counter.begin.remote(key, self._node) >= DEATHS_ALONE:
            return RowFailure("engine_crash", "the replica died each time, twice with this row alone")
        (result,) = await caption([row])
        await self._counter.end.remote([key])
        return result


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha1("\n".join(parts).encode(), usedforsecurity=False).hexdigest()
