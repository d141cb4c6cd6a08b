"""Engines: what turns one image and one prompt into a caption. The rest of the job cannot tell them apart (D9)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from caprl_ray.engines import gpu
from caprl_ray.model import STUB, ModelRef
from caprl_ray.recipe import Recipe

# Requests to an endpoint at once, where the recipe is silent: what one service of a 3B model carries well.
ENDPOINT_CONCURRENCY = 64
# On a CPU. With half as many the embedded model takes 1.4 times as long, for vLLM's steps are mostly Python then
# (benchmarks/results.md).
CPU_SEQUENCES = 128


@dataclass(frozen=True, kw_only=True)
class Picture:
    """RGB pixels at the size that the model sees: `pixels` is height x width x 3 bytes."""

    pixels: memoryview
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What an engine wrote for one image."""

    text: str
    finish_reason: str
    prompt_tokens: int | None  # None where a service does not say
    caption_tokens: int | None


class Engine(Protocol):
    """An engine on an event loop of its own.

    `caption` raises RowFailure where this one request is at fault and SystemFailure where every request would be.
    """

    @property
    def control_tokens(self) -> Sequence[str]:
        """What the model's chat format is made of, to be cut out of the dataset's own texts."""
        ...

    async def caption(self, picture: Picture, prompt: str) -> Completion:
        """Caption one picture; `prompt` is the user's turn, the engine adds its chat format."""
        ...


class EngineDied(Exception):
    """An engine's core is gone, or was ended because it hung. Never leaves a replica: `revival` starts another."""


class MortalEngine(Engine, Protocol):
    """An Engine whose core may die: `caption` then raises EngineDied."""

    @property
    def steps(self) -> int:
        """Grows with every step that the core has computed for any row, long before a caption is whole."""
        ...

    def stop(self) -> None:
        """End the core, dead or alive: afterwards no process of it is left."""
        ...


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


def computes_on_cpu(recipe: Recipe) -> bool:
    """Whether replicas run a model on the cores of their nodes."""
    return not (recipe.replicas.gpus or recipe.model.endpoint or recipe.model.source == STUB)


async def start(recipe: Recipe, model: ModelRef) -> Engine:
    """Start the engine that the recipe names, on the running event loop. Raises SystemFailure in one sentence.

    A service at an endpoint is others' to keep alive; an engine of our own is started again when it dies.
    """
    if recipe.model.endpoint:
        from caprl_ray.engines.endpoint import EndpointEngine

        return await EndpointEngine.start(recipe, model)
    from caprl_ray.engines.revival import Revival

    return await Revival.begin(partial(_start_mortal, recipe, model), recipe.engine.stall_timeout_s)


async def _start_mortal(recipe: Recipe, model: ModelRef) -> MortalEngine:
    if model.path == STUB:
        from caprl_ray.engines.stub import start_stub

        return await start_stub(recipe)
    from caprl_ray.engines.vllm_engine import VllmEngine

    return await VllmEngine.start(recipe, model)
