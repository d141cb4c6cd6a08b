"""How many requests an engine runs at once, and how many batches keep it busy."""

import math

from caprl_ray.engines import gpu
from caprl_ray.recipe.sections import Recipe

# Requests to an endpoint at once by default: one service of a 3B model carries that many well.
ENDPOINT_CONCURRENCY = 64


# Sequences at once on a CPU. With half as many the embedded model takes 1.4 times as long, because vLLM's steps are
# mostly Python then (benchmarks/results.md).
CPU_SEQUENCES = 128


def batches_in_flight(recipe: Recipe, rows: int) -> int:
    """The number of batches of `rows` that a replica must hold so that its engine, with `max_num_seqs` places, never
    drains.

    A replica holds a batch until its longest caption is written; the batch's other places go to rows of other batches.
    The longest of n lengths that vary like an exponential distribution is 1 + 1/2 + ... + 1/n times their mean. So that
    factor times `max_num_seqs` rows keep every place taken. With a factor of two, a third of an engine with 64 places
    idles if one caption in twenty runs to the limit (benchmarks/flow.py).
    """
    longest = sum(1 / n for n in range(1, rows + 1))
    return math.ceil(max_num_seqs(recipe) * longest / rows)


def max_num_seqs(recipe: Recipe) -> int:
    """How many sequences an engine runs at once: the recipe's number, or the default of a CPU, a GPU or an endpoint.

    The driver does not know the GPU on which a replica will land, and assumes the largest. An engine on a smaller GPU
    runs fewer (gpu.gpu_defaults). Further rows wait in the replica, which costs host memory and no time.
    """
    if recipe.model.endpoint:
        return recipe.model.concurrency or ENDPOINT_CONCURRENCY
    most = recipe.model.engine.get("max_num_seqs", gpu.MOST_SEQUENCES if recipe.replicas.gpus else CPU_SEQUENCES)
    return max(
        int(most), *(int(more.get("max_num_seqs", 0)) for more in recipe.model.engine_by_accelerator.values()), 0
    )
