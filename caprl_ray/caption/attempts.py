"""Find the row that kills a whole replica, with a count of batches that began and did not end.

Ray restarts a replica that died and runs its tasks again, without limit and without knowing why. So each batch is
counted before its rows are sent, by an actor outside the replica. A batch that keeps coming back is split up, as
engines/revival.py does within a replica.
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

# Concurrency limit by the number of failed attempts. The first two crashes may have an external cause; after that a
# batch runs alone in its replica.
COMPANY = (None, None, 1)
ALONE = len(COMPANY) - 1
# From this count on the rows of a batch run one at a time, and a row that was running at DEATHS_ALONE crashes is not
# sent again. Invariant: a row kills a replica at most five times: twice with anything, once with its batch, twice
# alone.
ROW_BY_ROW, DEATHS_ALONE = 3, 2


class Attempts:
    """A replica's reports to the counter actor (watch/counter.py). Use it on one event loop."""

    def __init__(self, counter: ActorHandle) -> None:
        self._counter = counter
        self._node = ray.get_runtime_context().get_node_id()
        self._admission = Admission(COMPANY)

    async def caption(
        self, task: str, rows: list[dict[str, Any]], caption: Callable[[list[dict[str, Any]]], Awaitable[Results]]
    ) -> Results:
        """Caption a batch by `caption`: its rows together, until that has killed the replica too often.

        `task` is Ray's id of the task. It stays when Ray runs the task again. It tells apart equal rows of datasets
        without a plan.
        """
        keys = [_digest([task, repr((row["unit"], row["index"]))]) for row in rows]
        key = _digest(keys)
        async with self._admission.admitted(0):
            begun = await self._counter.begin.remote(key, self._node)
            if not begun:  # nearly always: one question is the whole cost
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
        """Caption one row, or fail it at once if it has killed the replica before."""
        if await self._counter.begin.remote(key, self._node) >= DEATHS_ALONE:
            return RowFailure("engine_crash", "the replica died each time, twice with this row alone")
        (result,) = await caption([row])
        await self._counter.end.remote([key])
        return result


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha1("\n".join(parts).encode(), usedforsecurity=False).hexdigest()
