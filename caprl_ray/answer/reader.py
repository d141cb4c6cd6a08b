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
    """Start a reader on the event loop on which rewards are asked.

    Args:
        model: a recipe's section `model`: `source`, `engine`; or `endpoint` and `served_name` of a `vllm serve`.
        gpus: the number of GPUs of an engine in this process; ignored for a service.

    Raises RecipeError for a model that is wrong, SystemFailure if it does not start.
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
    """Stop an engine of `start_reader` and its processes. Does nothing to a service."""
    if isinstance(reader, Revival):
        on_loop(reader.stop())
