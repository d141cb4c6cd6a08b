"""GPU requests to Ray's autoscaler: for the replicas that run, and for twice as many while all are saturated.

Ray Data's requests for CPUs are right. Its requests for GPUs are wrong in four ways. They persist until the run ends,
so that GPUs idle while the last shard is read. They assume that more input will come. They ignore the type of GPU. They
round down below `replicas.max`.
"""

import time
from collections.abc import Sequence
from typing import Any

from caprl_ray.cluster.optional import ABSENT, miss

GPU_REQUESTS = "GPU requests that follow the replicas"

# The autoscaler grants a request as a whole or not at all, and a node takes some minutes. If a request brings no
# replica within this many seconds, it may exceed the cluster's limit. From then on, request one more replica instead of
# twice as many.
PATIENCE_S = 300.0


def demand_class(base: type, replicas: Sequence[dict[str, float]], full: float) -> type:
    """Ray Data's autoscaler with the pool's own requests in place of those for GPUs.

    Args:
        base: Ray Data's class, `RateBasedClusterAutoscaler` (internals.py finds it).
        replicas: of each pool, in the order of their stages, the resources of one replica, as Ray's autoscaler names
            them.
        full: the load from which on the pool grows (AutoscalingConfig.actor_pool_util_upscaling_threshold).
    """

    class Demand(base):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            self._pools = [_Pool(full) for _ in replicas]
            super().__init__(*arguments, **named)

        def _send_resource_request(self, resource_request: list[dict[str, Any]]) -> None:
            try:
                pools = [pool for operator in self._non_shuffle_ops for pool in operator.get_autoscaling_actor_pools()]
                wanted = [
                    replica
                    for replica, own, pool in zip(replicas, self._pools, pools, strict=False)
                    for _ in range(own.wanted(pool))
                    if replica["GPU"]
                ]
            except ABSENT:  # another Ray knows its pools by other names: its own requests stand
                miss(GPU_REQUESTS)
                super()._send_resource_request(resource_request)
                return
            super()._send_resource_request([bundle for bundle in resource_request if "GPU" not in bundle] + wanted)
            # Ray would repeat the last request while the cluster is mostly idle. Then only the replicas are wanted.
            self._last_resource_request: list[dict[str, Any]] = []

    return Demand


class _Pool:
    """The wanted number of replicas of a pool."""

    def __init__(self, full: float) -> None:
        self._full = full
        self._size, self._since = 0, 0.0  # number of replicas, and since when all are saturated (time.monotonic())

    def wanted(self, pool: Any) -> int:
        """Twice the present number while all are saturated, later one more; never more than the recipe allows."""
        now, size, full = time.monotonic(), pool.current_size(), pool.get_pool_util() >= self._full
        if size != self._size or not full:
            self._size, self._since = size, now
        more = 0 if not full else size if now - self._since < PATIENCE_S else 1
        return int(min(pool.max_size(), size + more))
