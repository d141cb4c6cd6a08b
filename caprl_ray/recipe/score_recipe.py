"""The recipe of the job that scores captions, and of the readers of a run that scores while it captions."""

from typing import Any

from pydantic import model_validator

from caprl_ray.errors import RecipeError
from caprl_ray.recipe.load import parse_as
from caprl_ray.recipe.model import Model
from caprl_ray.recipe.sampling import Sampling
from caprl_ray.recipe.score import ANSWERER, Score, check_system
from caprl_ray.recipe.sections import Recipe

# Fields that the section `score` has only in a captioning recipe. In a scoring recipe they are sections.
READER = ("model", "engine", "replicas")
# Sections of a captioning recipe that a scoring recipe cannot have.
FOREIGN = ("prepare", "prompt", "prompts", "sampling", "quality")


class ScoreRecipe(Recipe):
    """The recipe of a scoring run. Its input is captions, and its output is scores."""

    model: Model = Model(source=ANSWERER)
    sampling: Sampling = Sampling(max_tokens=64)  # score.mode decides how answers are sampled
    score: Score  # type: ignore[assignment]

    @model_validator(mode="before")
    @classmethod
    def _only_scoring(cls, document: Any) -> Any:
        foreign = [name for name in FOREIGN if isinstance(document, dict) and name in document]
        if foreign:
            raise ValueError(f"{foreign[0]} is for captioning; a recipe for scoring cannot have it")
        score = document.get("score") if isinstance(document, dict) else None
        reader = [name for name in READER if isinstance(score, dict) and name in score]
        if reader:
            raise ValueError(
                f"score.{reader[0]} is for a captioning recipe; in a recipe for scoring, give the section {reader[0]}"
            )
        model = document.get("model") if isinstance(document, dict) else None
        if isinstance(model, dict) and "source" not in model:
            document = {**document, "model": {"source": ANSWERER, **model}}
        return document

    @model_validator(mode="after")
    def _check_answerer(self) -> "ScoreRecipe":
        check_system(self.model, self.score)
        return self

    @property
    def text_only(self) -> bool:
        return True


def reader_recipe(recipe: Recipe) -> ScoreRecipe:
    """The recipe that the readers of a captioning recipe run. The recipe must have `score`. Raises RecipeError."""
    assert recipe.score, "only a recipe with the section score has readers"
    score = recipe.score
    document = {"model": score.model, "engine": score.engine, "replicas": score.replicas, "score": score}
    shared = {"input": recipe.input, "failures": recipe.failures, "storage": recipe.storage, "output": recipe.output}
    try:
        return parse_as(ScoreRecipe, {**document, **shared})
    except RecipeError as error:
        raise in_section(error) from None


def in_section(error: RecipeError) -> RecipeError:
    """The error with `score.` before the field, as the captioning recipe has it."""
    said = str(error)
    return error if said.startswith("score.") else RecipeError(f"score.{said}")
