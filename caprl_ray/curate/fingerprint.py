"""The fields of a curation recipe that must not change between the runs of one dataset."""

from typing import Any

from caprl_ray.curate.asking import ANSWER_PROMPT
from caprl_ray.models.resolve import ModelRef
from caprl_ray.output.fingerprint import installed
from caprl_ray.recipe.curate import CurateRecipe
from caprl_ray.recipe.engine_arguments import changing_captions
from caprl_ray.recipe.model import Model


def fingerprint(recipe: CurateRecipe, questioner: ModelRef, answerer: ModelRef) -> dict[str, Any]:
    """Everything that changes questions and answers, as field -> value."""
    fields: dict[str, Any] = {"curate.prompt": ANSWER_PROMPT}
    for name in ("prepare", "prompt", "sampling"):
        fields |= {f"{name}.{key}": value for key, value in getattr(recipe, name).model_dump().items()}
    del fields["prepare.timeout_s"]  # depends on the machine, changes no pixel
    own = recipe.curate.model_dump(exclude={"model", "engine", "replicas"})
    fields |= {f"curate.{key}": value for key, value in own.items()}
    fields |= _model("model", recipe.model, questioner) | _model("curate.model", recipe.curate.model, answerer)
    engines = not (recipe.model.endpoint and recipe.curate.model.endpoint)
    for package in ("vllm", "pillow") if engines else ("pillow",):
        fields[f"version.{package}"] = installed(package)
    return fields


def _model(section: str, settings: Model, model: ModelRef) -> dict[str, Any]:
    fields: dict[str, Any] = {f"{section}.source": model.label}
    fields |= {f"{section}.engine.{name}": value for name, value in changing_captions(settings.engine).items()}
    for accelerator, given in settings.engine_by_accelerator.items():
        changing = changing_captions(given).items()
        fields |= {f"{section}.engine_by_accelerator.{accelerator}.{name}": value for name, value in changing}
    return fields
