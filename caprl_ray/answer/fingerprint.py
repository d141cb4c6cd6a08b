"""The fields of a scoring recipe that must not change between the runs of one dataset."""

from typing import Any

from caprl_ray.answer.scorer import prompt_name
from caprl_ray.models.resolve import ModelRef
from caprl_ray.output.fingerprint import engine_fields, installed
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.score.questions import Questions

NOT_ASKED = {"questions", "model", "engine", "replicas"}  # of the section `score` (recipe/score.py)


def fingerprint(recipe: ScoreRecipe, model: ModelRef, questions: Questions) -> dict[str, Any]:
    """Everything that changes scores, as field -> value."""
    settings = recipe.score.model_dump(exclude=NOT_ASKED)
    fields: dict[str, Any] = {f"score.{name}": value for name, value in settings.items()}
    fields["score.questions"] = questions.name
    fields["score.prompt"] = prompt_name(recipe.score)
    fields["model.source"] = model.label
    fields |= engine_fields(recipe.model)
    packages = [] if recipe.model.endpoint else ["vllm"]
    for package in [*packages, *(["math-verify"] if "math" in questions.metrics() else ())]:
        fields[f"version.{package}"] = installed(package)
    return fields


def while_captioning(recipe: ScoreRecipe, model: ModelRef, questions: Questions) -> dict[str, Any]:
    """The same for the readers of a run that captions: the model of its fields without a section is another one."""
    fields = {name: value for name, value in fingerprint(recipe, model, questions).items() if name != "score.caption"}
    return {name if not name.startswith("model.") else f"score.{name}": value for name, value in fields.items()}
