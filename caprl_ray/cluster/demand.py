"""What a run asks Ray's autoscaler for: the GPUs that its replicas have, and twice as many while all are full.

Ray Data's own requests hold for CPUs. Its requests for GPUs are too large and too small: it repeats the last one until
the run ends, so that GPUs idle while the last shard is read; it counts on any input to last; it does not say of which
type they are; and it rounds the last replica away that the recipe allows.
"""

import time
from typing import Any

from ray.data._internal.actor_autoscaler import AutoscalingActorPool
from ray.data._internal.cluster_autoscaler.rate_based_cluster_autoscaler import RateBasedClusterAutoscaler

# The autoscaler meets a request as a whole or not at all. One that brings no replica for so long, where a node takes
# some minutes, may be for more than the cluster may have: from then on it is for one more, instead of twice as many.
PATIENCE_S = 300.0


class Demand(RateBasedClusterAutoscaler):  # type: ignore[misc]
    """Ray Data's requests, with what the pool of replicas wants in place of what they say about GPUs.

    Args:
        replica: the resources of one replica, as Ray's autoscaler names them.
        full: the pool's load from which on it grows (AutoscalingConfig.actor_pool_util_upscaling_threshold).
        others: as for RateBasedClusterAutoscaler.
    """

    def __init__(self, *others: Any, replica: dict[str, float], full: float, **more: Any) -> None:
        self.replica, self.full = replica, full
        self.size, self.since = 0, 0.0  # the pool's replicas, and since when they have been full (time.monotonic())
        super().__init__(*others, **more)

    def _send_resource_request(self, resource_request: list[dict[str, Any]]) -> None:
        pools = [pool for operator in self._non_shuffle_ops for pool in operator.get_autoscaling_actor_pools()]
        replicas = [self.replica] * sum(self._wanted(pool) for pool in pools)
        super()._send_resource_request([bundle for bundle in resource_request if "GPU" not in bundle] + replicas)
        # Ray would repeat it where little of the cluster is used: then the replicas are all that is wanted.
        self._last_resource_request: list[dict[str, Any]] = []

    def _wanted(self, pool: AutoscalingActorPool) -> int:
        """How many replicas there should be."""
        now, size, full = time.monotonic(), pool.current_size(), pool.get_pool_util() >= self.full
        if size != self.size or not full:
            self.size, self.since = size, now
        more = 0 if not full else size if now - self.since < PATIENCE_S else 1
        return int(min(pool.max_size(), size + more))
