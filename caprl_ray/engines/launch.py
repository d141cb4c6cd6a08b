"""Which engine a recipe names, and how it starts."""

from functools import partial

from caprl_ray.engines.protocol import Engine, MortalEngine
from caprl_ray.models.resolve import STUB, ModelRef
from caprl_ray.recipe.sections import Recipe


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
