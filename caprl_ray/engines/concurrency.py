"""How many requests an engine works on at once, and how many batches keep it busy."""

import math

from caprl_ray.engines import gpu
from caprl_ray.recipe.sections import Recipe

# Requests to an endpoint at once, where the recipe is silent: what one service of a 3B model carries well.
ENDPOINT_CONCURRENCY = 64


# On a CPU. With half as many the embedded model takes 1.4 times as long, for vLLM's steps are mostly Python then
# (benchmarks/results.md).
CPU_SEQUENCES = 128


def batches_in_flight(recipe: Recipe, rows: int) -> int:
    """How many batches of `rows` a replica must hold so that its engine, which runs `max_num_seqs` at once, never
    drains.

    A batch is held until its longest caption is written, while its other rows' places go to rows of other batches. The
    longest of n lengths that vary as much as an exponential distribution's is 1 + 1/2 + ... + 1/n times their mean:
    so many times `max_num_seqs` rows keep every place taken. With twice as many, a third of an engine of 64 idles where
    one caption in twenty runs to the limit (benchmarks/flow.py).
    """
    longest = sum(1 / n for n in range(1, rows + 1))
    return math.ceil(max_num_seqs(recipe) * longest / rows)


def max_num_seqs(recipe: Recipe) -> int:
    """How many sequences an engine runs at once: the recipe's, or what two cores carry, or at most so many on a GPU.

    The driver does not know which GPU a replica will land on and assumes the largest. An engine on a smaller one runs
    fewer (gpu.gpu_defaults); the rows beyond them wait in the replica, which costs host memory and no time. At an
    endpoint it is how many requests are under way at once.
    """
    if recipe.model.endpoint:
        return recipe.model.concurrency or ENDPOINT_CONCURRENCY
    most = recipe.model.engine.get("max_num_seqs", gpu.MOST_SEQUENCES if recipe.replicas.gpus else CPU_SEQUENCES)
    return max(
        int(most), *(int(more.get("max_num_seqs", 0)) for more in recipe.model.engine_by_accelerator.values()), 0
    )
