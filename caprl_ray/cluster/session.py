"""Ray's settings that the job depends on, each in this one place with its reason, and the errors that Ray wraps."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar

import ray
from ray.data import DataContext

from caprl_ray.cluster import cores, failures, internals, local, messages, resources
from caprl_ray.cluster.optional import missed
from caprl_ray.cluster.resources import ACCELERATOR, GROWN_OVER_TAKEN, TARGET_BLOCK_BYTES, accelerators
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.recipe.sections import Recipe

NO_PROGRESS_S = 1800.0  # Ray Data's default


@contextmanager
def session(recipe: Recipe, debug: bool) -> Iterator[None]:
    """What a captioning run needs of Ray: a connection, the replicas' GPUs, and the settings of Ray Data."""
    with connected(debug):
        _check_gpus(recipe)
        _check_output(recipe)
        configure(DataContext.get_current(), debug)
        # Replicas may be waited for; that nothing moves for longer than that is a fault of the cluster's.
        DataContext.get_current().execution_no_progress_timeout_s = recipe.replicas.wait_s + NO_PROGRESS_S
        with ExitStack() as patches:
            for patch in _patches(recipe):
                patches.enter_context(patch)
            without = missed()
            if without:
                sys.stderr.write(f"caprl-ray: {without}.\n")
            yield


def _patches(recipe: Recipe) -> Iterator[AbstractContextManager[None]]:
    yield internals.without_statistics()
    yield internals.batches_as_they_come()
    yield internals.fed()
    if recipe.replicas.gpus:
        yield internals.replicas_demand(resources.replica_bundle(recipe), GROWN_OVER_TAKEN)
    if local.connected():
        yield internals.lean_data()


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
        with nullcontext() if debug or local.connected() else messages.briefly():
            yield
    except Exception as error:
        own = failures.own_error(error) or failures.full_disk(error) or failures.stuck(error)
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
            local.start(debug=debug)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SystemFailure(f"Ray: no cluster answers at {address or 'this machine'} ({error}).") from error


def _check_gpus(recipe: Recipe) -> None:
    """On this machine's own cluster, which never grows, a missing GPU would be waited for without end."""
    there, pinned = ray.cluster_resources(), recipe.replicas.accelerator_type
    gpus = there.get("GPU", 0)
    if not os.environ.get("RAY_ADDRESS") and gpus < recipe.replicas.gpus * recipe.replicas.min:
        raise RecipeError(
            f"replicas.gpus: {recipe.replicas.gpus:g} for each of {recipe.replicas.min} replicas, but this machine has "
            f"{gpus:g} GPUs; give replicas.gpus=0 to run on the CPU."
        )
    if not os.environ.get("RAY_ADDRESS") and pinned and ACCELERATOR + pinned not in there:
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
    internals.more_blocks_ready(context)
    internals.metadata_at_once()
    # Ray's own wrapper loses its cause on the way to the driver, and with it our sentence.
    context.raise_original_map_exception = True
    # A replica that starts again where the last one's memory is not yet free must not end the run. That replicas which
    # died come back, with their tasks, without end is Ray Data's default (max_restarts, max_task_retries);
    # attempts.py bounds what a row may do with it.
    context.actor_init_retry_on_errors = True
    context.autoscaling_config.actor_pool_util_upscaling_threshold = GROWN_OVER_TAKEN
    context.enable_progress_bars = debug  # our own line says it
    context.print_on_execution_start = debug
    if not debug:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors come as our own sentence
        warnings.filterwarnings("ignore", module="ray")
