"""The resources that operators and actors request from Ray: block and batch sizes, shares of CPUs, places."""

import inspect
import math
import warnings
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from caprl_ray.cluster import internals
from caprl_ray.recipe.sections import Recipe

# The size at which Ray splits a block. It bounds the compressed images of one prepare task, and the pixels of one block
# (batch_rows). A block of captions is no larger: a row has at most 512 KiB of metadata (input.max_metadata_bytes),
# captions of 64 Ki characters, and the best of them once more.
TARGET_BLOCK_BYTES = 32 * 2**20
WHOLE_BLOCK_BYTES = TARGET_BLOCK_BYTES * 3 // 2  # from here on Ray cuts a block


MOST_BATCH_ROWS, FEWEST_BATCH_ROWS = 32, 4
# The driver has one thread for all replicas, and a row costs it less in a larger batch (benchmarks/results.md). So a
# pool of more than this many replicas has larger batches, and one of three times as many the largest. They take more of
# each node's object store (benchmarks/README.md), and captions are committed later, so that small pools have small
# ones.
REPLICAS_A_BATCH, MOST_TIMES = 16, 3


# Reading and writing wait for storage. They must not take whole cores away from decoding.
READ_CPUS, WRITE_CPUS = 0.25, 0.25


# Batches queued at a replica, relative to batches in progress: enough that the next one is there when one ends, but
# few, because no other replica can take them. The pool grows when replicas have nearly that many.
QUEUED_OVER_TAKEN, GROWN_OVER_TAKEN = 1.25, 1.2


WAITING = "waiting"  # the group of an actor's methods that wait, beside its one thread for all others

NODE_LABEL = "ray.io/node-id"  # Ray gives every node this label
REPLACES = "max_consecutive_actor_init_deaths"  # Ray Data's setting
ACCELERATOR = "accelerator_type:"  # prefix of Ray's resources for types of GPU


def batch_rows(max_pixels: int, replicas: int = 1) -> int:
    """Rows of one block of pixels, which is one caption batch of at most TARGET_BLOCK_BYTES, and of up to MOST_TIMES as
    many bytes and rows for a large pool of `replicas`.

    Ray would cut a larger batch of captions where the text of a caption ends, and a block that is made again would be
    cut elsewhere (docs/design.md, D4). So batches are larger only where Ray is told to leave all whole.
    """
    times = max(1, min(MOST_TIMES, replicas // REPLICAS_A_BATCH))
    if times > 1 and not internals.whole_batches():
        times = 1
    return max(FEWEST_BATCH_ROWS, min(times * MOST_BATCH_ROWS, times * TARGET_BLOCK_BYTES // (3 * max_pixels)))


def beside_driver(kind: type) -> ActorHandle:
    """An actor without resources on the driver's own node: the run ends with that node anyway.

    If the actor dies, Ray restarts it empty and repeats the calls. Its calls are not listed among the cluster's tasks:
    there are some for each batch, and each costs the caller, the actor and the head's record of tasks.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
    options["enable_task_events"] = False
    return ray.remote(**options, concurrency_groups={WAITING: 1})(kind).remote()


def replica_resources(recipe: Recipe) -> dict[str, Any]:
    """The resources of a replica. It reserves no CPU: the engine and prepare share the cores."""
    pinned = recipe.replicas.accelerator_type
    return {"num_gpus": recipe.replicas.gpus, "num_cpus": 0} | ({"accelerator_type": pinned} if pinned else {})


def replica_bundle(recipe: Recipe) -> dict[str, float]:
    """The resources of a replica, as Ray's autoscaler names them."""
    replica: dict[str, float] = {"GPU": recipe.replicas.gpus}
    if recipe.replicas.accelerator_type:
        replica[ACCELERATOR + recipe.replicas.accelerator_type] = 0.001  # Ray's own amount for an actor
    return replica


def replica_pool(recipe: Recipe, in_flight: int, struck: Callable[[], Collection[str]]) -> dict[str, Any]:
    """Arguments of `map_batches` for the pool of replicas, each of which takes `in_flight` batches at once.

    `struck` gives the ids of nodes that get no more replicas. Ray Data asks before it makes a replica.
    """
    # Before Ray 2.59 the number of concurrent calls is an option of the actor, not of the strategy.
    in_strategy = "max_concurrent_calls_per_actor" in inspect.signature(ActorPoolStrategy).parameters
    strategy = ActorPoolStrategy(
        min_size=recipe.replicas.min,
        max_size=recipe.replicas.most,
        max_tasks_in_flight_per_actor=math.ceil(QUEUED_OVER_TAKEN * in_flight),
        enable_true_multi_threading=True,
        **({"max_concurrent_calls_per_actor": in_flight} if in_strategy else {}),
    )
    options = {} if in_strategy else {"max_concurrency": in_flight}
    return {"compute": strategy, **options, **replica_resources(recipe), **_placed(struck)}


def _placed(struck: Callable[[], Collection[str]]) -> dict[str, Any]:
    """Keep new replicas away from excluded nodes. Ray 2.64 will not have this argument; then a replica on such a node
    leaves by itself."""
    if "ray_remote_args_fn" not in inspect.signature(Dataset.map_batches).parameters:
        return {}

    def elsewhere() -> dict[str, Any]:
        nodes = sorted(struck())
        return {"label_selector": {NODE_LABEL: f"!in({','.join(nodes)})"}} if nodes else {}

    warnings.filterwarnings("ignore", message=".*ray_remote_args_fn. is deprecated")
    return {"ray_remote_args_fn": elsewhere}


def replaces_actors() -> bool:
    """Whether the run replaces an actor whose constructor fails: by Ray itself from 2.58 on, by internals.py before.
    Otherwise such an actor would end the run, and session.py lets constructors be retried without limit."""
    context = DataContext.get_current()
    return hasattr(context, REPLACES) or context.actor_init_max_retries >= 0


def able_nodes(recipe: Recipe) -> dict[str, str]:
    """The living nodes that are large enough for a replica, by id with their names."""
    needs = replica_bundle(recipe).items()
    return {
        node["NodeID"]: _name(node["NodeManagerAddress"], node["NodeID"])
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(name, 0) >= amount for name, amount in needs)
    }


def node_name() -> str:
    """The name of this process's node in messages."""
    return _name(ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id())


def _name(address: str, node: str) -> str:
    return f"{address} ({node[:8]})"


def accelerators() -> set[str]:
    """The types of GPU of this node, by all of Ray's names for each; empty outside of Ray."""
    if not ray.is_initialized():
        return set()
    here = ray.get_runtime_context().get_node_id()
    resources: dict[str, float] = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == here), {})
    return {name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR)}
