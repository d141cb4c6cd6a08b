"""Several blocks at each turn of Ray Data's loop.

After each block, Ray Data computes the usage and the budget of all operators again, and chooses the next block. That
was half of a batch's cost in its loop (benchmarks/results.md). A block for a replica, or for the commit that only
collects it, needs no budget. So up to AT_ONCE such blocks are handed over before Ray computes again. Blocks that start
a task with a CPU are handed over one by one, as before.
"""

from collections.abc import Callable
from typing import Any

from caprl_ray.cluster.optional import ABSENT, miss

AT_ONCE = 16
AT_EACH_TURN = "several blocks at each turn of Ray's loop"


def several(dispatch: Callable[[Any], None]) -> Callable[[Any], None]:
    """Extend Ray's `dispatch`, which hands over one block of an operator's queue: it also hands over the next ones."""

    def dispatched(state: Any) -> None:
        running = _running(state)
        dispatch(state)
        for _ in range(AT_ONCE - 1):
            if running is None or not _free(state, running):
                break
            running = _running(state)
            dispatch(state)

    return dispatched


def _running(state: Any) -> int | None:
    """The number of the operator's tasks; None if this version of Ray has another name for it."""
    try:
        return int(state.op.num_active_tasks())
    except ABSENT:
        miss(AT_EACH_TURN)
        return None


def _free(state: Any, running: int) -> bool:
    """Whether the last block needed no budget, and the operator can take another one."""
    try:
        cheap = bool(state.op.get_autoscaling_actor_pools()) or state.op.num_active_tasks() == running
        open_ = not state.op.has_completed() and state.op.can_add_input()
        return bool(cheap and open_ and state.has_pending_bundles())
    except ABSENT:
        miss(AT_EACH_TURN)
        return False
