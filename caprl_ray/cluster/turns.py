"""Less work at each turn of Ray Data's loop, which has one thread for all replicas.

After each block, Ray Data computes the usage and the budget of all operators again, and chooses the next block. That
was half of a batch's cost in its loop (benchmarks/results.md). A block for a replica, or for the commit that only
collects it, needs no budget. So up to AT_ONCE such blocks are handed over before Ray computes again. Blocks that start
a task with a CPU are handed over one by one, as before.
"""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from caprl_ray.cluster.optional import ABSENT, miss

AT_ONCE = 16
AT_EACH_TURN = "several blocks at each turn of Ray's loop"
# Usage is computed anew at each turn, which takes a tenth of a second, but not twice in a turn without a reason.
FRESH_S = 0.05
ONCE = "budgets that are computed once at each turn of Ray's loop"
# How soon the main thread sees that the run has ended. Ray Data looks a hundred times a second.
LOOK_S = 0.1
CALM = "a main thread that sleeps while Ray's loop works"

Counts = list[tuple[int, int, int]]


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


def once(update: Callable[[Any], None]) -> Callable[[Any], None]:
    """Ray's `update_usages`, as one that computes nothing twice in a turn.

    It computes after FRESH_S, after each block that came, each task that ended, each task that needs a CPU, and after
    AT_ONCE tasks of a pool of replicas.
    """
    computed: WeakKeyDictionary[Any, tuple[float, Counts | None]] = WeakKeyDictionary()

    def updated(manager: Any) -> None:
        now, counts = time.monotonic(), _counts(manager)
        at, before = computed.get(manager, (0.0, None))
        if counts is None or counts != before or now - at >= FRESH_S:
            computed[manager] = now, counts
            update(manager)

    return updated


def _counts(manager: Any) -> Counts | None:
    """What was started, what came and what ended, by operator; None if another Ray counts by other names."""
    try:
        return [_counted(operator) for operator in manager._topology]
    except ABSENT:
        miss(ONCE)
        return None


def _counted(operator: Any) -> tuple[int, int, int]:
    metrics, at_once = operator._metrics, AT_ONCE if operator.get_autoscaling_actor_pools() else 1
    return metrics.num_tasks_submitted // at_once, metrics.num_task_outputs_generated, metrics.num_tasks_finished


def calm(get: Callable[..., Any]) -> Callable[..., Any]:
    """Ray's `get_output_blocking`, as one that looks for output only every LOOK_S.

    Only for this thread's datasets. Others may have consumers, and Ray must see that they wait.
    """
    here = threading.get_ident()

    def got(state: Any, *split: Any) -> Any:
        while threading.get_ident() == here and _nothing_yet(state, *split):
            time.sleep(LOOK_S)
        return get(state, *split)

    return got


def _nothing_yet(state: Any, *split: Any) -> bool:
    try:
        return not (state._finished or state._exception or state.output_queue.has_next(*split))
    except ABSENT:  # another Ray has other names
        miss(CALM)
        return False


def rounded(own: Callable[..., Any]) -> Callable[..., Any]:
    """Ray's `safe_round`, which leaves whole numbers alone. `round` writes each number as text and reads it again."""

    def quickly(value: Any, digits: int | None = None) -> Any:
        return value if type(value) is float and value.is_integer() else own(value, digits)

    return quickly


def finished_soon(own: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Ray's `has_execution_finished`, which first looks whether input may still come.

    Ray asks all operators many times a turn, and imports a module each time. Raises AttributeError if this Ray decides
    by something else.
    """
    last = SimpleNamespace(_is_execution_marked_finished=False, _inputs_complete=False, num_active_tasks=lambda: 0)
    ended = SimpleNamespace(**vars(last) | {"_inputs_complete": True})
    marked = SimpleNamespace(**vars(last) | {"_is_execution_marked_finished": True})
    if own(last) or not own(ended) or not own(marked):
        raise AttributeError

    def has_execution_finished(operator: Any) -> bool:
        return bool(operator._is_execution_marked_finished or operator._inputs_complete) and own(operator)

    return has_execution_finished


def completed_soon(own: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Ray's `has_completed`, which first looks whether the operator has finished, as `finished_soon`."""
    last = SimpleNamespace(has_execution_finished=lambda: False, has_next=lambda: False)
    ended = SimpleNamespace(has_execution_finished=lambda: True, has_next=lambda: False)
    if own(last) or not own(ended):
        raise AttributeError

    def has_completed(operator: Any) -> bool:
        return bool(operator.has_execution_finished()) and own(operator)

    return has_completed


def unasked(arguments: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Ray's arguments of a replica's task, as those of one that never waits until its blocks are taken.

    Otherwise the driver tells the replica what it has taken. A replica's task has one block, so that it never has more
    ready. Those of other threads' datasets may have many.
    """
    here = threading.get_ident()

    def without(*given: Any, **named: Any) -> dict[str, Any]:
        unasked_for = {"_generator_backpressure_num_objects": -1} if threading.get_ident() == here else {}
        return arguments(*given, **named) | unasked_for

    return without
