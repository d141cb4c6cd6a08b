"""The fields of a scoring recipe that must not change between the runs of one dataset."""

from typing import Any

from caprl_ray.answer.writer import prompt_name
from caprl_ray.models.resolve import ModelRef
from caprl_ray.output.fingerprint import installed
from caprl_ray.recipe.engine_arguments import changing_captions
from caprl_ray.recipe.score import ScoreRecipe
from caprl_ray.score.questions import Questions


def fingerprint(recipe: ScoreRecipe, model: ModelRef, questions: Questions) -> dict[str, Any]:
    """Everything that changes scores, as field -> value."""
    settings = recipe.score.model_dump(exclude={"questions"})
    fields: dict[str, Any] = {f"score.{name}": value for name, value in settings.items()}
    fields["score.questions"] = questions.name
    fields["score.prompt"] = prompt_name(recipe.score)
    fields["model.source"] = model.label
    arguments = {"model.engine": recipe.model.engine} | {
        f"model.engine_by_accelerator.{name}": given for name, given in recipe.model.engine_by_accelerator.items()
    }
    for section, given in arguments.items():
        fields |= {f"{section}.{name}": value for name, value in changing_captions(given).items()}
    packages = [] if recipe.model.endpoint else ["vllm"]
    for package in [*packages, *(["math-verify"] if "math" in questions.metrics() else ())]:
        fields[f"version.{package}"] = installed(package)
    return fields
