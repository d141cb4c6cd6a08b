"""Several blocks at each turn of Ray Data's loop.

Ray Data hands over one block, then computes the usage and the budget of all operators anew, and chooses the next block.
That was half of what a batch costs in its loop (benchmarks/results.md). A block for a replica, or one that the commit
only collects, takes nothing of any budget. So up to AT_ONCE of them are handed over before Ray computes again. Whatever
starts a task that needs a CPU is chosen one by one, as before.
"""

from collections.abc import Callable
from typing import Any

from caprl_ray.cluster.optional import ABSENT, miss

AT_ONCE = 16
AT_EACH_TURN = "several blocks at each turn of Ray's loop"


def several(dispatch: Callable[[Any], None]) -> Callable[[Any], None]:
    """Ray's `dispatch`, which hands one block of an operator's queue over, as one that hands over those that follow."""

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
    """The number of the operator's tasks; None if another Ray counts by another name."""
    try:
        return int(state.op.num_active_tasks())
    except ABSENT:
        miss(AT_EACH_TURN)
        return None


def _free(state: Any, running: int) -> bool:
    """Whether the last block needed nothing of a budget, and another one is there and can be taken."""
    try:
        cheap = bool(state.op.get_autoscaling_actor_pools()) or state.op.num_active_tasks() == running
        open_ = not state.op.has_completed() and state.op.can_add_input()
        return bool(cheap and open_ and state.has_pending_bundles())
    except ABSENT:
        miss(AT_EACH_TURN)
        return False
