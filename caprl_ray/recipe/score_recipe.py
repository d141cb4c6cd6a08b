"""The recipe of the job that scores captions, and of the readers of a run that scores while it captions."""

from typing import Any

from pydantic import model_validator

from caprl_ray.errors import RecipeError
from caprl_ray.recipe.load import parse_as
from caprl_ray.recipe.model import Model
from caprl_ray.recipe.sampling import Sampling
from caprl_ray.recipe.score import ANSWERER, Score, check_system
from caprl_ray.recipe.sections import Recipe

# Sections of captioning, which a recipe for scoring cannot have.
READER = ("model", "engine", "replicas")  # of the section `score`, likewise
FOREIGN = ("prepare", "prompt", "prompts", "sampling", "quality")


class ScoreRecipe(Recipe):
    """The recipe of a scoring run: captions go in, scores come out."""

    model: Model = Model(source=ANSWERER)
    sampling: Sampling = Sampling(max_tokens=64)  # score.mode says how answers are sampled
    score: Score  # type: ignore[assignment]

    @model_validator(mode="before")
    @classmethod
    def _only_scoring(cls, document: Any) -> Any:
        foreign = [name for name in FOREIGN if isinstance(document, dict) and name in document]
        if foreign:
            raise ValueError(f"{foreign[0]} is for captioning; a recipe for scoring says in score how it asks")
        score = document.get("score") if isinstance(document, dict) else None
        reader = [name for name in READER if isinstance(score, dict) and name in score]
        if reader:
            raise ValueError(
                f"score.{reader[0]} is for a recipe that captions; in a recipe for scoring {reader[0]} is the reader's"
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
    """The recipe of the readers of a captioning recipe with the section `score`. Raises RecipeError."""
    assert recipe.score, "only a recipe with the section score has readers"
    score = recipe.score
    document = {"model": score.model, "engine": score.engine, "replicas": score.replicas, "score": score}
    shared = {"input": recipe.input, "failures": recipe.failures, "storage": recipe.storage, "output": recipe.output}
    try:
        return parse_as(ScoreRecipe, {**document, **shared})
    except RecipeError as error:
        raise in_section(error) from None


def in_section(error: RecipeError) -> RecipeError:
    """An error about a reader, which names the fields of the section `score`."""
    said = str(error)
    return error if said.startswith("score.") else RecipeError(f"score.{said}")
