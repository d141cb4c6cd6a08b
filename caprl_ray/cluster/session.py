"""The connection to Ray and the settings of Ray Data, each with its reason."""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar

import ray
from ray.data import DataContext

from caprl_ray.cluster import cores, failures, internals, local, messages, resources, shared, signals
from caprl_ray.cluster.begun import begun
from caprl_ray.cluster.optional import missed
from caprl_ray.cluster.reachable import check_address
from caprl_ray.cluster.resources import ACCELERATOR, GROWN_OVER_TAKEN, TARGET_BLOCK_BYTES, accelerators
from caprl_ray.errors import CaprlError, RecipeError, SystemFailure
from caprl_ray.job import Job
from caprl_ray.recipe.sections import Recipe

# Replicas in a row that do not start. Only a fault that watch/replicas.py does not see comes to so many.
MOST_REPLACED = 200
NO_PROGRESS_S = 1800.0  # Ray Data's default
LONG_SOCKET = "AF_UNIX path length"  # in Ray's message: the kernel takes 107 bytes


@contextmanager
def session(
    job: Job, debug: bool, *, guarded: bool = True, stopping: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """A connection to Ray with everything that a run needs: GPUs, settings, and the optional internals.

    `guarded`: Ray Data ends an execution without progress, even if the input is still being listed. `stopping`: returns
    whether the run is being stopped.
    """
    recipe = job.recipe
    begun.set()
    with connected(debug):
        if job.has_replicas:
            check_pools(job.pools, grows=bool(os.environ.get("RAY_ADDRESS")))
        shared.check_paths(recipe)
        configure(DataContext.get_current(), debug)
        DataContext.get_current().execution_no_progress_timeout_s = no_progress_s(job)
        if not guarded:
            DataContext.get_current().execution_no_progress_timeout_s = -1
        with ExitStack() as patches:
            patches.enter_context(_replaced_replicas(DataContext.get_current()))
            for patch in _patches(job, stopping):
                patches.enter_context(patch)
            without = missed()
            if without:
                sys.stderr.write(f"caprl-ray: {without}.\n")
            yield


def no_progress_s(job: Job) -> float:
    """The longest time without progress: the wait for replicas, and a margin. Longer is a fault of the cluster."""
    recipes = job.pools.values() or [job.recipe]
    return max(recipe.replicas.wait_s for recipe in recipes) + NO_PROGRESS_S


def _patches(job: Job, stopping: Callable[[], bool]) -> Iterator[AbstractContextManager[None]]:
    yield internals.without_statistics()
    yield internals.batches_as_they_come()
    yield internals.fed()
    yield internals.ended_by(stopping)
    yield internals.usage_once()
    yield internals.calm_waiting()
    yield internals.blocks_without_leave()
    pools = job.pools.values()
    if any(recipe.replicas.gpus for recipe in pools):
        yield internals.replicas_demand(list(map(resources.replica_bundle, pools)), GROWN_OVER_TAKEN)
    if job.readers:
        yield internals.not_far_ahead()  # asked before each block
    else:
        yield internals.several_at_each_turn()
    if local.connected():
        yield internals.lean_data()


_lasting: ContextVar[bool | None] = ContextVar("lasting", default=None)  # the value of `debug` inside of such a block


@contextmanager
def lasting(debug: bool, engine_on_cpu: bool = False) -> Iterator[None]:
    """Keep one Ray connection for the whole block. Ray is started lazily, because starting it takes seconds.

    If Ray starts on this machine for an engine on its CPU, cores are reserved for that engine.
    """
    there_before = ray.is_initialized()
    apart = engine_on_cpu and not there_before and not os.environ.get("RAY_ADDRESS")
    token = _lasting.set(debug)
    with cores.apart() if apart else nullcontext():
        try:
            with _left(there_before, debug):
                yield
        finally:
            _lasting.reset(token)


@contextmanager
def _left(there_before: bool, debug: bool) -> Iterator[None]:
    """Disconnect from Ray at the end, if it was not there before. If the system failed, Ray's logs may say why."""
    keep = debug
    try:
        yield
    except Exception as error:
        keep = keep or not isinstance(error, CaprlError) or isinstance(error, SystemFailure)
        raise
    finally:
        if not there_before:
            local.stop(keep=keep)


@contextmanager
def connected(debug: bool = False) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray on this machine; disconnect afterwards.

    An exception of ours from a worker is raised as itself, without Ray's wrapper. Some exceptions of Ray become one
    sentence.
    """
    started_here, lasts = not ray.is_initialized(), _lasting.get()
    debug = debug if lasts is None else lasts
    if started_here:
        _connect(debug)
    # A Ray that was started here prints nothing about itself unless `debug` is given.
    quiet = nullcontext() if debug or local.connected() else messages.briefly()
    with _left(not started_here or lasts is not None, debug), quiet:
        try:
            yield
        except Exception as error:
            own = failures.own_error(error) or failures.full_disk(error) or failures.stuck(error)
            if own is None:
                raise
            raise own from error


def _connect(debug: bool) -> None:
    if not debug:  # the output of Ray's C++ side, for instance about a metrics agent that it does not find
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # prevents a warning about a future default of Ray
    address = os.environ.get("RAY_ADDRESS")
    if address:
        check_address("RAY_ADDRESS", address)
    try:
        with signals.kept(), nullcontext() if debug else messages.without_logger():
            _init(address, debug)
    except CaprlError:
        raise
    except Exception as error:  # Ray has no class of its own for a node that does not start in time
        raise _no_cluster(address, error) from error


def _init(address: str | None, debug: bool) -> None:
    if address:
        ray.init(address, log_to_driver=debug, logging_level=logging.INFO if debug else logging.ERROR)
    else:
        sys.stderr.write("caprl-ray: starting Ray on this machine ...\n")  # it takes seconds, or most of a minute
        sys.stderr.flush()
        local.start(debug=debug)
        slow = local.slow_store()
        if slow:
            sys.stderr.write(f"caprl-ray: {slow}.\n")


def joined() -> bool:
    """Connect a process that only uses Ray to its cluster, if it is not connected. Returns whether nodes may join it.

    Raises SystemFailure if nothing answers at RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not ray.is_initialized():
        if address:
            check_address("RAY_ADDRESS", address)
        try:
            ray.init()
        except Exception as error:
            raise _no_cluster(address, error) from error
    return not internals.started_here()


def _no_cluster(address: str | None, error: Exception) -> SystemFailure:
    if address:
        return SystemFailure(f"Ray: no cluster answers at {address} ({error}).")
    if LONG_SOCKET in str(error):
        folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        return SystemFailure(
            f"Ray: the paths of its sockets are too long in {folder}; set RAY_TMPDIR to a folder with a "
            "short path, such as /tmp, and run the same command again."
        )
    return SystemFailure(
        f"Ray: it did not start on this machine ({str(error).rstrip('.')}); run the same command again when the "
        "machine is less busy."
    )


def check_pools(pools: Mapping[str, Recipe], *, grows: bool) -> None:
    """Refuse more GPUs than a cluster that does not grow has, for each pool of replicas and for all pools together."""
    for name, recipe in pools.items():
        try:
            check_gpus(recipe, grows=grows)
        except RecipeError as error:
            raise RecipeError(f"{name}.{error}" if name else str(error)) from None
    there = ray.cluster_resources().get("GPU", 0)
    wanted = {name: recipe.replicas.gpus * recipe.replicas.min for name, recipe in pools.items()}
    if not grows and sum(wanted.values()) > there:
        fields = [f"{name}.replicas" if name else "replicas" for name in wanted]
        raise RecipeError(
            f"{' and '.join(fields)}: they need {' + '.join(f'{gpus:g}' for gpus in wanted.values())} GPUs at the "
            f"least, but this machine has {there:g}; let them share one, such as with "
            f"{' and '.join(f'{field}.gpus=0.5' for field in fields)}."
        )


def check_gpus(recipe: Recipe, *, grows: bool) -> None:
    """Refuse more GPUs than a cluster that does not grow has: the run would wait for ever.

    A Ray that was started on this machine never grows.
    """
    there, pinned = ray.cluster_resources(), recipe.replicas.accelerator_type
    gpus = there.get("GPU", 0)
    if not grows and gpus < recipe.replicas.gpus * recipe.replicas.min:
        raise RecipeError(
            f"replicas.gpus: {recipe.replicas.gpus:g} for each of {recipe.replicas.min} replicas, but this machine has "
            f"{gpus:g} GPUs; give replicas.gpus=0 to run on the CPU."
        )
    if not grows and pinned and ACCELERATOR + pinned not in there:
        raise RecipeError(
            f"replicas.accelerator_type: {pinned}, but this machine has {', '.join(sorted(accelerators())) or 'none'}."
        )


def wait_for_replicas(context: DataContext, recipe: Recipe) -> None:
    """Let Ray Data end an execution without progress only after replicas have been waited for."""
    context.execution_no_progress_timeout_s = recipe.replicas.wait_s + NO_PROGRESS_S


def _replaced_replicas(context: DataContext) -> AbstractContextManager[None]:
    """Replace replicas whose engine does not start on their node. watch/replicas.py ends a run in which none starts."""
    if hasattr(context, resources.REPLACES):
        setattr(context, resources.REPLACES, MOST_REPLACED)
        return nullcontext()
    if internals.can_replace():
        return internals.replicas_replaced(MOST_REPLACED)
    context.actor_init_max_retries = -1
    return nullcontext()


def configure(context: DataContext, debug: bool) -> None:
    """Set what the pipeline needs of Ray Data."""
    context.target_max_block_size = TARGET_BLOCK_BYTES
    internals.more_blocks_ready(context)
    internals.metadata_at_once()
    # Ray's wrapper would lose its cause, and with it our message, on the way to the driver.
    context.raise_original_map_exception = True
    # A replica that restarts before the GPU's memory is free must not end the run. Ray Data restarts dead replicas and
    # their tasks without limit by default (max_restarts, max_task_retries); replica/attempts.py bounds what a row can
    # do with that.
    context.actor_init_retry_on_errors = True
    context.autoscaling_config.actor_pool_util_upscaling_threshold = GROWN_OVER_TAKEN
    context.enable_progress_bars = debug  # the progress line replaces them
    context.print_on_execution_start = debug
    if not debug:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors become one sentence
        warnings.filterwarnings("ignore", module="ray")
