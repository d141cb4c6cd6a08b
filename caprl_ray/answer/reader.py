"""A reader of captions for a reward, outside of a scoring run: an engine in this process, or a service."""

from collections.abc import Mapping
from typing import Any

from caprl_ray.engines import launch
from caprl_ray.engines.protocol import Engine
from caprl_ray.engines.revival import Revival
from caprl_ray.models.resolve import resolve
from caprl_ray.recipe.load import parse_as
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.score.reward import on_loop


def start_reader(model: Mapping[str, Any], *, gpus: float = 0) -> Engine:
    """Start a language model that answers questions about captions.

    Args:
        model: a recipe's section `model`: `source` and `engine` for vLLM in a child process, or `source`, `endpoint`
            and `served_name` of a running `vllm serve`.
        gpus: the number of GPUs of the child process; 0 runs on the CPU. Not used for a service.

    Returns: The reader, for the functions that compute rewards.

    Raises:
        RecipeError: the model is wrong, or the service cannot continue a text.
        SystemFailure: the engine does not start, or the service does not answer.
    """
    document = {
        "input": {"paths": ["-"]},
        "output": {"path": "-"},
        "score": {"questions": ["-"], "system": ""},
        "replicas": {"gpus": gpus},
        "model": dict(model),
    }
    recipe = parse_as(ScoreRecipe, document)
    found = resolve(recipe)
    launch.check_engine(recipe)
    launch.check_goes_on(recipe, found)
    return on_loop(launch.start(recipe, found))


def stop_reader(reader: Engine) -> None:
    """Stop a reader of `start_reader` and its processes. Does nothing to a service."""
    if isinstance(reader, Revival):
        on_loop(reader.stop())
