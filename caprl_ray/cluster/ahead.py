"""Limit the rows that wait between one pool of replicas and the next.

Ray Data lets rows wait between two stages until they fill its share of the object store. Captions are small, so hours
of captioning could wait for their scores, uncommitted, and a killed run would lose them. Ray would also see a busy pool
of captioners and let it grow, although readers are missing.
"""

from typing import Any

from caprl_ray.cluster.optional import ABSENT, miss

# The limit of waiting rows: the size of an object of the output, and more for many replicas.
WAITING, WAITING_EACH = 2048, 512
NOT_AHEAD = "captions that do not run far ahead of their scores"


def policy_class(base: type) -> type:
    """A backpressure policy of Ray Data, whose class is `base`: a pool gets no more tasks while too many of its rows
    wait for the next pool."""

    class NotFarAhead(base):  # type: ignore[misc]
        def can_add_input(self, operator: Any) -> bool:
            try:
                after = _next_pool(operator)
                return after is None or _waiting(operator, after) < _most(after)
            except ABSENT:  # another Ray counts by other names
                miss(NOT_AHEAD)
                return True

    return NotFarAhead


def _next_pool(operator: Any) -> Any:
    """The operator with the next pool of actors after one that has a pool itself; None if there is none."""
    if not operator.get_autoscaling_actor_pools():
        return None
    after = list(operator.output_dependencies)
    while after and not after[0].get_autoscaling_actor_pools():
        after = list(after[0].output_dependencies)
    return after[0] if after else None


def _waiting(operator: Any, after: Any) -> int:
    return int(operator.metrics.row_outputs_taken - after.metrics.rows_inputs_of_submitted_tasks)


def _most(after: Any) -> int:
    replicas: int = sum(pool.current_size() for pool in after.get_autoscaling_actor_pools())
    return max(WAITING, WAITING_EACH * replicas)
