"""Choose and start the engine that a recipe names."""

import asyncio
import importlib.util
import os
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from caprl_ray.engines.protocol import Engine, MortalEngine
from caprl_ray.errors import RecipeError, RowFailure, SystemFailure
from caprl_ray.models.resolve import RULES, STUB, WITHOUT_ENGINE, ModelRef
from caprl_ray.recipe.sections import Recipe

NO_ENGINE = (
    "and vLLM is not installed here; install it with pip install 'caprl_ray[gpu]', or 'caprl_ray[cpu]' for a machine "
    "without GPUs, or give model.endpoint."
)


def computes_on_cpu(recipe: Recipe) -> bool:
    """Whether replicas run a model on the CPU cores of their nodes."""
    return needs_engine(recipe) and not recipe.replicas.gpus


def has_engine() -> bool:
    """Whether vLLM is installed here."""
    return importlib.util.find_spec("vllm") is not None


def needs_engine(recipe: Recipe) -> bool:
    """Whether replicas run vLLM themselves."""
    return not (recipe.model.endpoint or recipe.model.source in WITHOUT_ENGINE)


def check_engine(recipe: Recipe) -> None:
    """Raise RecipeError if replicas would run on this machine and it has no engine."""
    if needs_engine(recipe) and not os.environ.get("RAY_ADDRESS") and not has_engine():
        raise RecipeError(f"model.source: {recipe.model.source} needs an engine, {NO_ENGINE}")


# Models for which vLLM on a CPU must be given the architecture of the language model, and its name.
TEXT_ARCHITECTURES = {"qwen3_vl": "Qwen3ForCausalLM"}


def check_on_cpu(recipe: Recipe, model: ModelRef) -> None:
    """Raise RecipeError for a model whose published config.json lacks what vLLM needs on a CPU, and only there."""
    name = TEXT_ARCHITECTURES.get(str(model.config.get("model_type")))
    given = (recipe.model.engine.get("hf_overrides") or {}, model.config)
    if name is None or not computes_on_cpu(recipe):
        return
    if not any((one.get("text_config") or {}).get("architectures") for one in given):
        raise RecipeError(
            f"model.source: on a CPU vLLM starts {recipe.model.source} only if it is told the architecture of the "
            "language model, which its config.json does not name; add 'model.engine.hf_overrides="
            f"{{text_config: {{architectures: [{name}]}}}}', or give replicas.gpus."
        )


def check_goes_on(recipe: Recipe, model: ModelRef) -> None:
    """Raise RecipeError if the recipe's service cannot continue a given beginning of an answer, SystemFailure if it
    does not answer. Also works on an event loop, as in a notebook."""
    if recipe.model.endpoint:
        _run(_check_service(recipe, model))


def _run(check: Coroutine[Any, Any, None]) -> None:
    """Run on an event loop of its own. Where one runs already, asyncio wants another thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(check)
        return
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, check).result()


async def _check_service(recipe: Recipe, model: ModelRef) -> None:
    from caprl_ray.engines.endpoint import EndpointEngine
    from caprl_ray.engines.turn_requests import NO_PREFILL, TRIAL, ignored

    engine = await EndpointEngine.start(recipe, model)
    if not engine.goes_on:
        raise RecipeError(NO_PREFILL)
    try:
        said = (await engine.caption(None, TRIAL, {"temperature": 0.0})).text
    except RowFailure as failure:
        raise RecipeError(ignored(str(failure))) from None
    if said.strip() not in TRIAL.choices:
        raise RecipeError(ignored(repr(said[:60])))


async def start(recipe: Recipe, model: ModelRef) -> Engine:
    """Start the recipe's engine on the running event loop. Raises SystemFailure in one sentence.

    An engine of our own is restarted when it dies. A service at an endpoint is not.
    """
    if recipe.model.endpoint:
        from caprl_ray.engines.endpoint import EndpointEngine

        return await EndpointEngine.start(recipe, model)
    from caprl_ray.engines.revival import Revival

    return await Revival.begin(partial(start_mortal, recipe, model), recipe.engine.stall_timeout_s)


async def start_mortal(recipe: Recipe, model: ModelRef) -> MortalEngine:
    """Start an engine of our own that is not restarted. Raises SystemFailure if arguments or files do not fit,
    EngineDied if its core died during the start."""
    if model.path == STUB:
        from caprl_ray.engines.stub import start_stub

        return await start_stub(recipe)
    if model.path in RULES:
        from caprl_ray.engines.scene_rules import ENGINES

        return ENGINES[model.path]()
    if not has_engine():
        raise SystemFailure(f"model.source: {model.label} needs an engine on every node, {NO_ENGINE}")
    from caprl_ray.engines.vllm_engine import VllmEngine

    return await VllmEngine.start(recipe, model)
