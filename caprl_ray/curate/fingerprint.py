"""The fields of a curation recipe that must not change between the runs of one dataset."""

from dataclasses import asdict
from typing import Any

from caprl_ray.curate.asking import ANSWER_PROMPT
from caprl_ray.models.resolve import ModelRef
from caprl_ray.output.fingerprint import engine_fields, installed
from caprl_ray.recipe.curate import CurateRecipe


def fingerprint(recipe: CurateRecipe, questioner: ModelRef, answerer: ModelRef) -> dict[str, Any]:
    """Everything that changes questions and answers, as field -> value."""
    fields: dict[str, Any] = {"curate.prompt": ANSWER_PROMPT}
    for name in ("prepare", "prompt", "sampling"):
        fields |= {f"{name}.{key}": value for key, value in getattr(recipe, name).model_dump().items()}
    del fields["prepare.timeout_s"]  # depends on the machine, changes no pixel
    own = recipe.curate.model_dump(exclude={"model", "engine", "replicas"})
    fields |= {f"curate.{key}": value for key, value in own.items()}
    fields |= {"model.source": questioner.label, "curate.model.source": answerer.label}
    fields |= engine_fields(recipe.model) | engine_fields(recipe.curate.model, "curate.model")
    if recipe.model.endpoint:  # as in caption/fingerprint.py
        fields |= {f"model.size_rule.{key}": value for key, value in asdict(questioner.size_rule).items()}
    engines = not (recipe.model.endpoint and recipe.curate.model.endpoint)
    for package in ("vllm", "pillow") if engines else ("pillow",):
        fields[f"version.{package}"] = installed(package)
    return fields
