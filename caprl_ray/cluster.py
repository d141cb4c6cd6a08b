"""Ray's settings that the job depends on, each in this one place with its reason, and the errors that Ray wraps."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.data import DataContext
from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler
from ray.data._internal.execution import metadata_fetcher
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.execution.operators import map_operator
from ray.data._internal.execution.operators.map_transformer import BatchMapTransformFn
from ray.data._internal.execution.streaming_executor_state import OutputBackpressureGuard
from ray.data._internal.output_buffer import OutputBlockSizeOption
from ray.data._internal.planner import plan_udf_map_op
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from caprl_ray import cores, own_ray, ray_messages
from caprl_ray.demand import Demand
from caprl_ray.errors import CaprlError, RecipeError, SystemFailure
from caprl_ray.own_ray import replaced
from caprl_ray.recipe import Recipe

# How much a block may hold before Ray cuts it: of compressed images, where it bounds what one prepare task takes at
# once, and of pixels (batch_rows). A block of captions holds less: a row carries at most 256 KiB of metadata and a
# caption of 64 Ki characters, and a batch has at most MOST_BATCH_ROWS rows: 16 MiB.
TARGET_BLOCK_BYTES = 32 * 2**20
MOST_BATCH_ROWS, FEWEST_BATCH_ROWS = 32, 4
# Reading and writing wait for storage: they must not take whole cores away from decoding.
READ_CPUS, WRITE_CPUS = 0.25, 0.25
# Batches that lie with a replica, over those that it takes at once: enough that the next one is there when one is done,
# and few, for another replica cannot have them. The pool grows where replicas have nearly that many.
QUEUED_OVER_TAKEN, GROWN_OVER_TAKEN = 1.25, 1.2
# Blocks that a task may have ready for Ray's loop, which comes by some ten times a second. With Ray's two, one prepare
# task of small pictures hands over 12 to 20 batches a second and no more, however many replicas wait for them
# (benchmarks/results.md, Scale).
BLOCKS_READY = 4
NO_PROGRESS_S = 1800.0  # Ray Data's default
ACCELERATOR = "accelerator_type:"  # how Ray's resources for types of GPU begin
METADATA_THREAD = "RAY_DATA_METADATA_PREFETCH_ON_THREAD"  # Ray's own variables
SPILL_FOLDER = "RAY_object_spilling_directory"


def batch_rows(max_pixels: int) -> int:
    """Rows of one block of pixels, which is one caption batch: at most TARGET_BLOCK_BYTES of them."""
    return max(FEWEST_BATCH_ROWS, min(MOST_BATCH_ROWS, TARGET_BLOCK_BYTES // (3 * max_pixels)))


@contextmanager
def session(recipe: Recipe, debug: bool) -> Iterator[None]:
    """What a captioning run needs of Ray: a connection, the replicas' GPUs, and the settings of Ray Data."""
    with connected(debug):
        _check_gpus(recipe)
        _check_output(recipe)
        configure(DataContext.get_current(), debug)
        # Replicas may be waited for; that nothing moves for longer than that is a fault of the cluster's.
        DataContext.get_current().execution_no_progress_timeout_s = recipe.replicas.wait_s + NO_PROGRESS_S
        plain = own_ray.plain_data() if own_ray.connected() else nullcontext()
        with _without_statistics(), _own_demand(recipe), _batches_as_they_come(), _fed(), plain:
            yield


def _without_statistics() -> AbstractContextManager[None]:
    """Ray Data keeps statistics of every block for a summary at the end, 3.6 kB each: gigabytes in the driver for some
    millions of images (benchmarks/memory.py). Nobody reads it; a caller's own datasets keep theirs."""
    return replaced(map_operator, "to_stats", lambda blocks: [])


def _batches_as_they_come() -> AbstractContextManager[None]:
    """Each batch that prepare or a replica returns is a block as it is (D4), at once: Ray would hold pixels back until
    there are TARGET_BLOCK_BYTES of them, and the engine would wait."""

    def unshaped(*arguments: Any, **named: Any) -> BatchMapTransformFn:
        named["output_block_size_option"] = OutputBlockSizeOption(disable_block_shaping=True)
        return BatchMapTransformFn(*arguments, **named)

    return replaced(plan_udf_map_op, "BatchMapTransformFn", unshaped)


def _fed() -> AbstractContextManager[None]:
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


def _own_demand(recipe: Recipe) -> AbstractContextManager[None]:
    """Nodes with GPUs come and go with the replicas (demand.py)."""
    if not recipe.replicas.gpus:
        return nullcontext()
    replica: dict[str, Any] = {"GPU": recipe.replicas.gpus}
    if recipe.replicas.accelerator_type:
        replica[ACCELERATOR + recipe.replicas.accelerator_type] = 0.001  # as Ray has it of an actor
    own = partial(Demand, replica=replica, full=GROWN_OVER_TAKEN)
    return replaced(rate_based_cluster_autoscaler, "RateBasedClusterAutoscaler", own)


_lasting: ContextVar[bool | None] = ContextVar("lasting", default=None)  # its `debug`, inside of one


@contextmanager
def lasting(debug: bool, engine_on_cpu: bool = False) -> Iterator[None]:
    """A connection made inside of it is left at its end only: Ray takes seconds to start, and may not be needed.

    Where Ray is started on this machine for an engine that computes on its cores, some are kept for that.
    """
    there_before = ray.is_initialized()
    apart = engine_on_cpu and not there_before and not os.environ.get("RAY_ADDRESS")
    token = _lasting.set(debug)
    with cores.apart() if apart else nullcontext():
        try:
            yield
        finally:
            _lasting.reset(token)
            if not there_before:
                ray.shutdown()


@contextmanager
def connected(debug: bool = False) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine; leave it afterwards.

    An exception of ours that a worker raised leaves as itself, without what Ray wraps around it; so does the sentence
    for a disk that is full of Ray's own objects.
    """
    started_here, lasts = not ray.is_initialized(), _lasting.get()
    debug = debug if lasts is None else lasts
    if started_here:
        _connect(debug)
    try:
        # A Ray that was started here says nothing of itself unless `debug` is given.
        with nullcontext() if debug or own_ray.connected() else ray_messages.briefly():
            yield
    except Exception as error:
        own = own_error(error) or _full_disk(error) or _stuck(error)
        if own is None:
            raise
        raise own from error
    finally:
        if started_here and lasts is None:
            ray.shutdown()


def _connect(debug: bool) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray would warn about its own future default
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address, log_to_driver=debug, logging_level=logging.INFO if debug else logging.ERROR)
        else:
            own_ray.start(debug=debug)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SystemFailure(f"Ray: no cluster answers at {address or 'this machine'} ({error}).") from error


def _full_disk(error: Exception) -> SystemFailure | None:
    """The sentence for blocks that neither Ray's object store nor the disk that it spills to had room for."""
    if not any(isinstance(cause, ray.exceptions.OutOfDiskError) for cause in _causes(error)):
        return None
    folder = os.environ.get(SPILL_FOLDER) or ray.get_runtime_context().worker.node.get_session_dir_path()
    where = " on one of the nodes, unless they were started with another" if os.environ.get("RAY_ADDRESS") else ""
    return SystemFailure(
        f"Ray: its object store is full, and so is the disk that it spills to ({folder}{where}); make room there, or "
        f"start Ray with {SPILL_FOLDER} naming a folder on a larger disk, and run the same command again to resume."
    )


def _stuck(error: Exception) -> SystemFailure | None:
    """The sentence for a run in which nothing moved for longer than replicas may be waited for."""
    if not isinstance(error, ray.data.exceptions.ExecutionTimeoutError):
        return None
    return SystemFailure(
        "Ray: nothing was read, prepared, captioned or written for longer than replicas.wait_s and half an hour; see "
        "that the cluster has CPUs for reading and prepare, and run the same command again to resume."
    )


def _check_gpus(recipe: Recipe) -> None:
    """On this machine's own cluster, which never grows, a missing GPU would be waited for without end."""
    resources, pinned = ray.cluster_resources(), recipe.replicas.accelerator_type
    gpus = resources.get("GPU", 0)
    if not os.environ.get("RAY_ADDRESS") and gpus < recipe.replicas.gpus * recipe.replicas.min:
        raise RecipeError(
            f"replicas.gpus: {recipe.replicas.gpus:g} for each of {recipe.replicas.min} replicas, but this machine has "
            f"{gpus:g} GPUs; give replicas.gpus=0 to run on the CPU."
        )
    if not os.environ.get("RAY_ADDRESS") and pinned and ACCELERATOR + pinned not in resources:
        raise RecipeError(
            f"replicas.accelerator_type: {pinned}, but this machine has {', '.join(sorted(accelerators())) or 'none'}."
        )


def _check_output(recipe: Recipe) -> None:
    """A job's working directory is a copy of its own on every node, which Ray removes: captions there would be lost."""
    path = recipe.output.path
    relative = "://" not in path and not os.path.isabs(os.path.expanduser(path))
    if relative and ray.get_runtime_context().runtime_env.get("working_dir"):
        raise RecipeError(
            f"output.path: {path} is relative, and Ray removes a job's working directory after it; "
            "give a path that every node shares."
        )


def configure(context: DataContext, debug: bool) -> None:
    """Set what the pipeline needs of Ray Data."""
    context.target_max_block_size = TARGET_BLOCK_BYTES
    context._max_num_blocks_in_streaming_gen_buffer = BLOCKS_READY
    # Ray's own wrapper loses its cause on the way to the driver, and with it our sentence.
    context.raise_original_map_exception = True
    # A replica that starts again where the last one's memory is not yet free must not end the run. That replicas which
    # died come back, with their tasks, without end is Ray Data's default (max_restarts, max_task_retries);
    # attempts.py bounds what a row may do with it.
    context.actor_init_retry_on_errors = True
    # Where a thread of its own asks for the metadata of blocks, a task hands over the two blocks that it may have ready
    # in every second turn of Ray's loop only: some eight a second, and the engine waits (benchmarks/results.md).
    if METADATA_THREAD not in os.environ:
        metadata_fetcher._PREFETCH_ON_THREAD = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = GROWN_OVER_TAKEN
    context.enable_progress_bars = debug  # our own line says it
    context.print_on_execution_start = debug
    if not debug:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors come as our own sentence
        warnings.filterwarnings("ignore", module="ray")


def beside_driver(kind: type) -> ActorHandle:
    """An actor of a class, without resources, on the driver's own node, which no run outlives anyway.

    Where it dies all the same it starts again, with nothing in it, and what it was asked is asked again.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(**options)(kind).remote()


def replica_resources(recipe: Recipe) -> dict[str, Any]:
    """What Ray reserves for a replica. Its processor time is left to the engine, and to whoever prepares beside it."""
    pinned = recipe.replicas.accelerator_type
    return {"num_gpus": recipe.replicas.gpus, "num_cpus": 0} | ({"accelerator_type": pinned} if pinned else {})


def accelerators() -> set[str]:
    """The types of GPU of the node that this runs on, by all of Ray's names for each; nothing outside of Ray."""
    if not ray.is_initialized():
        return set()
    here = ray.get_runtime_context().get_node_id()
    resources: dict[str, float] = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == here), {})
    return {name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR)}


def attempt() -> int | None:
    """How often Ray has started the task that runs here before; None outside of Ray's workers.

    Ray counts it up whatever ended the worker, the whole node included, and also when it makes a lost block again.
    Its runtime context does not give the number; `tests/test_prepare_deaths.py` shows that it is right.
    """
    if not ray.is_initialized():
        return None  # asking for the runtime context would start Ray
    worker = ray.get_runtime_context().worker
    return worker.core_worker.get_current_task_attempt_number() if worker.mode == ray.WORKER_MODE else None


def own_error(error: BaseException) -> CaprlError | None:
    """The sentence that a worker raised, out of what Ray wrapped around it; None where there is none.

    An OSError that names its path, as those of `Storage` do, is one too.
    """
    for cause in _causes(error):
        # Ray's own errors may also look like their causes: the cause itself comes after them.
        if isinstance(cause, CaprlError) and not isinstance(cause, ray.exceptions.RayError):
            # Ray adds lines of advice to the message of whatever passes through it.
            return type(cause)(str(cause).partition("\n")[0])
    return _named_fault(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that stands behind it, nearest first."""
    seen: list[BaseException] = []
    queue: list[Any] = [error]
    while queue:
        current = queue.pop(0)
        if isinstance(current, BaseException) and current not in seen:
            yield current
            seen.append(current)
            queue += [getattr(current, "cause", None), current.__cause__, current.__context__]


def _named_fault(error: BaseException | None) -> SystemFailure | None:
    """The sentence for an OSError that names its path, as all of `Storage` do, where it is what a worker raised."""
    while isinstance(error, ray.exceptions.RayError):
        error = getattr(error, "cause", None)
    return SystemFailure.of(error) if isinstance(error, OSError) and error.filename else None
