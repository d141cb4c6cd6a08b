"""What reaches into the internals of Ray."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.execution.operators import map_operator
from ray.data._internal.execution.operators.map_transformer import BatchMapTransformFn
from ray.data._internal.execution.streaming_executor_state import OutputBackpressureGuard
from ray.data._internal.output_buffer import OutputBlockSizeOption
from ray.data._internal.planner import plan_udf_map_op

from caprl_ray.cluster.demand import Demand
from caprl_ray.cluster.local import replaced
from caprl_ray.cluster.resources import ACCELERATOR, GROWN_OVER_TAKEN
from caprl_ray.recipe.sections import Recipe


def without_statistics() -> AbstractContextManager[None]:
    """Ray Data keeps statistics of every block for a summary at the end, 3.6 kB each: gigabytes in the driver for some
    millions of images (benchmarks/memory.py). Nobody reads it; a caller's own datasets keep theirs."""
    return replaced(map_operator, "to_stats", lambda blocks: [])


def batches_as_they_come() -> AbstractContextManager[None]:
    """Each batch that prepare or a replica returns is a block as it is (D4), at once: Ray would hold pixels back until
    there are TARGET_BLOCK_BYTES of them, and the engine would wait."""

    def unshaped(*arguments: Any, **named: Any) -> BatchMapTransformFn:
        named["output_block_size_option"] = OutputBlockSizeOption(disable_block_shaping=True)
        return BatchMapTransformFn(*arguments, **named)

    return replaced(plan_udf_map_op, "BatchMapTransformFn", unshaped)


def fed() -> AbstractContextManager[None]:
    """An operator that runs nothing and cannot begin with what it has gets its next block, at once.

    Where an object store is small, Ray lets an operator have no more blocks while one is left with the next, and that
    one may wait for more rows to make a whole batch. Both would wait ten seconds, for each batch, Ray's loop turning as
    fast as it can (benchmarks/results.md).
    """
    unblocks = OutputBackpressureGuard._evaluate_unblock_raw

    def starves(guard: OutputBackpressureGuard, operator: PhysicalOperator) -> bool:
        return unblocks(guard, operator) or any(
            not after.num_active_tasks() and not guard._topology[after].has_pending_bundles()
            for after in guard._resource_manager.get_downstream_eligible_ops(operator)
        )

    return replaced(OutputBackpressureGuard, "_evaluate_unblock_raw", starves)


def own_demand(recipe: Recipe) -> AbstractContextManager[None]:
    """Nodes with GPUs come and go with the replicas (demand.py)."""
    if not recipe.replicas.gpus:
        return nullcontext()
    replica: dict[str, Any] = {"GPU": recipe.replicas.gpus}
    if recipe.replicas.accelerator_type:
        replica[ACCELERATOR + recipe.replicas.accelerator_type] = 0.001  # as Ray has it of an actor
    own = partial(Demand, replica=replica, full=GROWN_OVER_TAKEN)
    return replaced(rate_based_cluster_autoscaler, "RateBasedClusterAutoscaler", own)


def attempt() -> int | None:
    """How often Ray has started the task that runs here before; None outside of Ray's workers.

    Ray counts it up whatever ended the worker, the whole node included, and also when it makes a lost block again.
    Its runtime context does not give the number; `tests/faults/test_prepare_deaths.py` shows that it is right.
    """
    if not ray.is_initialized():
        return None  # asking for the runtime context would start Ray
    worker = ray.get_runtime_context().worker
    return worker.core_worker.get_current_task_attempt_number() if worker.mode == ray.WORKER_MODE else None
