"""The search for the row that ends a whole replica: a count, kept outside of it, of what was begun and not finished.

Ray starts a replica that died again and runs its tasks again, without end and without knowing why. So every batch is
counted before its rows are sent, and one that keeps coming back is taken apart as `revival` does within a replica.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle

from caprl_ray.engines.admission import Admission
from caprl_ray.errors import RowFailure
from caprl_ray.rows.stage import Changes

Results = Sequence[Changes | RowFailure]

# How many batches may be under way with one that was begun so often and not finished: the first deaths may come from
# outside, then it is alone in its replica.
COMPANY = (None, None, 1)
ALONE = len(COMPANY) - 1
# From this count on its rows go one at a time, and a row that was under way at so many deaths is not sent again.
# Invariant: a row ends a replica at most five times: twice with anything, once with its batch, twice alone.
ROW_BY_ROW, DEATHS_ALONE = 3, 2


class Attempts:
    """What a replica tells the counter (counter.py); used on one event loop."""

    def __init__(self, counter: ActorHandle) -> None:
        self._counter = counter
        self._node = ray.get_runtime_context().get_node_id()
        self._admission = Admission(COMPANY)

    async def caption(
        self, task: str, rows: list[dict[str, Any]], caption: Callable[[list[dict[str, Any]]], Awaitable[Results]]
    ) -> Results:
        """Caption a batch by `caption`, its rows together as long as that has not ended the replica too often.

        `task` is Ray's id of the task, which stays when the task is run again: datasets without a plan may hold the
        same rows many times, and none of them may be blamed for another.
        """
        keys = [_digest([task, repr((row["unit"], row["index"]))]) for row in rows]
        key = _digest(keys)
        async with self._admission.admitted(0):
            begun = await self._counter.begin.remote(key, self._node)
            if not begun:  # as nearly always: one question is all that it costs
                results = await caption(rows)
                self._counter.end.remote([key])
                return results
        await self._counter.put_off.remote(key)
        async with self._admission.admitted(min(begun, ALONE)):
            await self._counter.begin.remote(key, self._node)
            if begun < ROW_BY_ROW:
                results = await caption(rows)
            else:
                results = [await self._alone(own, row, caption) for own, row in zip(keys, rows, strict=True)]
        self._counter.end.remote([key, *(keys if begun >= ROW_BY_ROW else ())])
        return results

    async def _alone(
        self, key: str, row: dict[str, Any], caption: Callable[[list[dict[str, Any]]], Awaitable[Results]]
    ) -> Changes | RowFailure:
        """Caption one row, or fail it without another try where that has ended the replica before."""
        if await self._counter.begin.remote(key, self._node) >= DEATHS_ALONE:
            return RowFailure("engine_crash", "the replica died each time, twice with this row alone")
        (result,) = await caption([row])
        await self._counter.end.remote([key])
        return result


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha1("\n".join(parts).encode(), usedforsecurity=False).hexdigest()
