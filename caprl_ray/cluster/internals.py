"""All uses of Ray's internals. Each function makes the job faster, quieter or cheaper; none is required.

A function looks for its place in Ray by name. If this Ray has no such place, or CAPRL_RAY_PLAIN=1 is set, the function
does nothing and a run says once what is missing (optional.py). All imports of private modules are inside functions, so
that this module imports under every version of Ray.
"""

import importlib.util
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from caprl_ray.cluster.ahead import NOT_AHEAD, policy_class
from caprl_ray.cluster.demand import GPU_REQUESTS, demand_class
from caprl_ray.cluster.optional import ABSENT, miss, optional
from caprl_ray.cluster.turns import (
    AT_EACH_TURN,
    CALM,
    ONCE,
    calm,
    completed_soon,
    finished_soon,
    once,
    rounded,
    several,
    unasked,
)

# Blocks that a task may have ready for Ray's loop, which comes by some ten times a second. With Ray's two, one prepare
# task of small pictures hands over 12 to 20 batches a second, however many replicas wait for them
# (benchmarks/results.md, Scale).
BLOCKS_READY = 4
METADATA_THREAD = "RAY_DATA_METADATA_PREFETCH_ON_THREAD"  # Ray's own variable

WHOLE = "blocks that are handed on at once"
STEADY = "steady flow through a small object store"
STOPS = "a quick end when the run is stopped"
REPLACED = "a new replica for each whose engine does not start"

Place = tuple[Any, str, object]
Patch = AbstractContextManager[None]


def _replaced(name: str, *places: Callable[[], Place]) -> Patch:
    """Put our objects where Ray looks for its own, while the block runs. `name` says what is missing without them.

    Each place gives the owner, the attribute and our object.
    """
    found = [optional(name, partial(_found, place)) for place in places]
    patches = [patch for patch in found if patch]
    return _all(patches) if len(patches) == len(places) else nullcontext()


def _found(place: Callable[[], Place]) -> Patch:
    owner, attribute, own = place()
    getattr(owner, attribute)  # raises AttributeError where Ray has no such name
    return _put(owner, attribute, own)


@contextmanager
def _put(owner: Any, attribute: str, own: object) -> Iterator[None]:
    kept = inspect.getattr_static(owner, attribute)  # a static method as such
    setattr(owner, attribute, own)
    try:
        yield
    finally:
        setattr(owner, attribute, kept)


@contextmanager
def _all(patches: list[Patch]) -> Iterator[None]:
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


# Ray Data's executor


def without_statistics() -> Patch:
    """Keep no statistics of blocks: 3.6 kB each, gigabytes in the driver for some millions of images.

    Measured by benchmarks/memory.py. The caller's own datasets keep theirs.
    """

    def place() -> Place:
        from ray.data._internal.execution.operators import map_operator

        return map_operator, "to_stats", lambda blocks: []

    return _replaced("a driver whose memory does not grow with the blocks", place)


def batches_as_they_come() -> Patch:
    """Pass on each batch of prepare and of a replica at once, as one block.

    Ray would collect pixels until it has TARGET_BLOCK_BYTES of them, and the engine would wait.
    """

    return _replaced(WHOLE, _unshaped)


def whole_batches() -> bool:
    """Whether `batches_as_they_come` is possible, so that Ray cuts no batch, however large."""
    return optional(WHOLE, lambda: _found(_unshaped)) is not None


def _unshaped() -> Place:
    from ray.data._internal.execution.operators.map_transformer import BatchMapTransformFn
    from ray.data._internal.output_buffer import OutputBlockSizeOption
    from ray.data._internal.planner import plan_udf_map_op

    unshaped = OutputBlockSizeOption(disable_block_shaping=True)

    def batches(*arguments: Any, **named: Any) -> Any:
        return BatchMapTransformFn(*arguments, **(named | {"output_block_size_option": unshaped}))

    return plan_udf_map_op, "BatchMapTransformFn", batches


def fed() -> Patch:
    """Give an idle operator the blocks that it needs to form a batch.

    In a small object store Ray gives an operator no more blocks while one waits in its queue, and the operator may
    wait for more rows to fill a batch. Each batch would then take ten seconds, and Ray's loop would use a whole core
    (benchmarks/results.md).
    """

    def place() -> Place:
        from ray.data._internal.execution.streaming_executor_state import OutputBackpressureGuard

        unblocks = OutputBackpressureGuard._evaluate_unblock_raw

        def idle(guard: Any, operator: Any) -> bool:
            try:
                return not operator.num_active_tasks() and not guard._topology[operator].has_pending_bundles()
            except ABSENT:  # another Ray keeps its queues elsewhere
                miss(STEADY)
                return False

        def starves(guard: Any, operator: Any) -> bool:
            manager = getattr(guard, "_resource_manager", None)
            after = getattr(manager, "get_downstream_eligible_ops", lambda _: ())
            return unblocks(guard, operator) or any(idle(guard, one) for one in after(operator))

        return OutputBackpressureGuard, "_evaluate_unblock_raw", starves

    return _replaced(STEADY, place)


def not_far_ahead() -> Patch:
    """Let no pool of replicas run far ahead of the next one (ahead.py)."""

    def place() -> Place:
        from ray.data._internal.execution import backpressure_policy as module
        from ray.data._internal.execution import streaming_executor

        policies = module.get_backpressure_policies
        own = policy_class(module.BackpressurePolicy)

        def with_own(*arguments: Any) -> list[Any]:
            return [*policies(*arguments), own(*arguments)]

        return streaming_executor, "get_backpressure_policies", with_own

    return _replaced(NOT_AHEAD, place)


def several_at_each_turn() -> Patch:
    """Hand over several blocks before Ray computes all budgets anew (turns.py)."""

    def place() -> Place:
        from ray.data._internal.execution.streaming_executor_state import OpState

        OpState.has_pending_bundles  # noqa: B018 (raises AttributeError where Ray has no such name)
        return OpState, "dispatch_next_task", several(OpState.dispatch_next_task)

    return _replaced(AT_EACH_TURN, place)


def usage_once() -> Patch:
    """Compute usage and budgets once at each turn of Ray's loop, round quickly, and ask quickly who has finished
    (turns.py)."""

    def update() -> Place:
        from ray.data._internal.execution.resource_manager import ResourceManager

        return ResourceManager, "update_usages", once(ResourceManager.update_usages)

    def rounding() -> Place:
        from ray.data._internal.execution.interfaces import execution_options as module

        return module, "safe_round", rounded(module.safe_round)

    def finished() -> Place:
        from ray.data._internal.execution.interfaces.physical_operator import PhysicalOperator

        return PhysicalOperator, "has_execution_finished", finished_soon(PhysicalOperator.has_execution_finished)

    def completed() -> Place:
        from ray.data._internal.execution.interfaces.physical_operator import PhysicalOperator

        return PhysicalOperator, "has_completed", completed_soon(PhysicalOperator.has_completed)

    return _replaced(ONCE, update, rounding, finished, completed)


def calm_waiting() -> Patch:
    """Let the main thread look for output ten times a second, not a hundred times (turns.py)."""

    def place() -> Place:
        from ray.data._internal.execution.streaming_executor_state import OpBufferQueue, OpState

        OpBufferQueue.has_next  # noqa: B018 (raises AttributeError where Ray has no such name)
        return OpState, "get_output_blocking", calm(OpState.get_output_blocking)

    return _replaced(CALM, place)


def blocks_without_leave() -> Patch:
    """Let a replica's task end without waiting until its block is taken, if it has one block (turns.py)."""
    if not whole_batches():
        return nullcontext()

    def place() -> Place:
        from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

        own = unasked(ActorPoolMapOperator._apply_default_actor_task_remote_args)
        return ActorPoolMapOperator, "_apply_default_actor_task_remote_args", staticmethod(own)

    return _replaced("fewer messages to the replicas", place)


def ended_by(stopping: Callable[[], bool]) -> Patch:
    """When a run is stopped, drop rows that were read and prepared, so that the last write begins at once.

    Without it the remaining read tasks run one after the other, and their rows pass all stages.
    """

    def place() -> Place:
        from ray.data._internal.execution import streaming_executor as module

        update = module.update_operator_states

        def updated(topology: Any) -> None:
            if stopping():
                try:
                    _drop(topology)
                except ABSENT:  # another Ray has other names: rows in flight pass through
                    miss(STOPS)
            update(topology)

        return module, "update_operator_states", updated

    return _replaced(STOPS, place)


def _drop(topology: Any) -> None:
    """Empty the operators before the last stage, and its queue. The further output of its tasks is written."""
    write = next(reversed(topology))
    last = write.input_dependencies[0]
    upstream = list(topology)[: list(topology).index(last)]
    for operator in upstream:
        operator.mark_execution_finished()
        topology[operator].output_queue.clear()
    last.clear_internal_input_queue()


def replicas_replaced(most: int) -> Patch:
    """Replace replicas that do not start, up to `most` in a row, as Ray does from 2.58 on. Earlier versions end the
    run."""
    return _replaced(REPLACED, partial(_tolerant, most))


def can_replace() -> bool:
    """Whether `replicas_replaced` is possible."""
    return optional(REPLACED, lambda: _found(partial(_tolerant, 0))) is not None


def _tolerant(most: int) -> Place:
    import ray
    from ray.data._internal.execution.operators.actor_pool_map_operator import _ActorPool

    ready = _ActorPool.pending_to_running
    failed = 0

    def joined(pool: Any, ref: Any) -> Any:
        nonlocal failed
        try:
            actor = ready(pool, ref)
        except ray.exceptions.RayError:
            failed += 1
            if failed > most:
                raise
            return None  # the pool has removed this actor, and Ray Data creates another one
        failed = 0
        return actor

    return _ActorPool, "pending_to_running", joined


def more_blocks_ready(context: Any) -> None:
    """Let a task have BLOCKS_READY blocks ready for Ray's loop."""

    def reach() -> bool:
        name = "_max_num_blocks_in_streaming_gen_buffer"
        getattr(context, name)  # raises AttributeError where Ray has no such field
        setattr(context, name, BLOCKS_READY)
        return True

    optional("more blocks of a task at each turn of Ray's loop", reach)


def metadata_at_once() -> None:
    """Fetch the metadata of blocks in Ray's loop itself.

    With Ray's thread for it a task hands over its ready blocks in every second turn of the loop only, some eight a
    second, and the engine waits (benchmarks/results.md). Ray 2.56 has no such thread.
    """
    if METADATA_THREAD in os.environ:
        return

    def reach() -> bool:
        if importlib.util.find_spec("ray.data._internal.execution.metadata_fetcher") is None:
            return True  # this Ray has no such thread
        from ray.data._internal.execution import metadata_fetcher as module

        getattr(module, "_PREFETCH_ON_THREAD")  # noqa: B009 (raises AttributeError where Ray has no such name)
        module._PREFETCH_ON_THREAD = False
        return True

    optional("blocks that are handed over in each turn of Ray's loop", reach)


# The cluster's autoscaler


def replicas_demand(replicas: Sequence[dict[str, float]], full: float) -> Patch:
    """Ask the cluster's autoscaler for the GPUs of the replicas of each pool (demand.py)."""

    def place() -> Place:
        from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler as module

        base = module.RateBasedClusterAutoscaler
        base._send_resource_request  # noqa: B018 (raises AttributeError where Ray has no such name)
        own = demand_class(base, replicas, full)
        return module, "RateBasedClusterAutoscaler", own

    return _replaced(GPU_REQUESTS, place)


# A Ray of this process's own (local.py)


def lean_start(*, debug: bool) -> Patch:
    """Start Ray without the processes that only a cluster needs, and without their output unless `debug`."""

    def dashboard() -> Place:
        from ray._private import services

        return services, "start_api_server", lambda *_, **__: ("", None)

    def autoscaler() -> Place:
        from ray._private.node import Node

        return Node, "start_monitor", lambda _: None

    def logs() -> Place:
        from ray._private.node import Node

        return Node, "start_log_monitor", lambda _: None

    name = "a quick start of Ray on this machine"
    return _replaced(name, dashboard, autoscaler, *(() if debug else (logs,)))


def started_here() -> bool:
    """Whether this process has started the Ray that it is connected to; False where Ray does not tell."""

    def reach() -> bool:
        from ray._private import worker

        return bool(worker._global_node.is_head())

    return bool(optional("at once a word about GPUs that a Ray of this machine lacks", reach))


def session_folder() -> Path | None:
    """The folder of the session's logs and sockets, for a Ray that this process has started."""

    def reach() -> Path:
        from ray._private import worker

        return Path(worker._global_node.get_session_dir_path())

    return optional("a Ray of this machine that leaves no logs", reach)


def no_worker_logs() -> None:
    """Print nothing that Ray tells this driver about its workers, for the rest of the process."""

    def reach() -> bool:
        from ray._private import worker

        getattr(worker, "_worker_logs_enabled")  # noqa: B009 (raises AttributeError where Ray has no such name)
        worker._worker_logs_enabled = False
        return True

    optional("a Ray of this machine that prints nothing", reach)


def lean_data() -> Patch:
    """Run Ray Data without two actors: one shares machines between datasets, the other feeds a dashboard."""

    def coordinator() -> Place:
        from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler as module
        from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import AutoscalingCoordinator

        from caprl_ray.cluster.local import this_machine

        return module, "DefaultAutoscalingCoordinator", this_machine(AutoscalingCoordinator)

    def statistics() -> Place:
        from ray.data._internal.execution import streaming_executor

        from caprl_ray.cluster.local import NoStatistics

        return streaming_executor, "_StatsManager", NoStatistics

    return _replaced("a quick start of Ray Data on this machine", coordinator, statistics)


def messages_to(show: Callable[..., None]) -> Patch:
    """Let `show` print what Ray tells the driver about its cluster (messages.py)."""

    def place() -> Place:
        from ray._private import worker

        return worker, "print_to_stdstream", show

    return _replaced("short messages about lost nodes", place)


# Ray's facts about a task


def attempt_number() -> int | None:
    """How many earlier attempts the task that runs here has had; None where Ray does not tell.

    Ray counts up whatever ended the worker, the whole node included, and also when it rebuilds a lost block. Its
    runtime context does not give the number. tests/faults/test_prepare_deaths.py shows that it is right.
    """

    def reach() -> int:
        import ray

        return int(ray.get_runtime_context().worker.core_worker.get_current_task_attempt_number())

    return optional("Ray's own count of a task's attempts", reach)
