"""The readers of a run: their questions and their model."""

from caprl_ray.answer import curated
from caprl_ray.cluster import resources
from caprl_ray.engines import launch
from caprl_ray.errors import RecipeError
from caprl_ray.models.resolve import ModelRef, resolve
from caprl_ray.recipe.score import Score
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.score.ask import MOST_RAW
from caprl_ray.score.questions import Questions
from caprl_ray.score.read import read
from caprl_ray.storage import Storage

# Rows in a batch of the job `score`. With five questions of four options, each in four rotations and again blind, eight
# captions have 320 prompts, more than an engine runs at once.
ROWS = 8
ROW_BYTES = 512 * 2**10  # of a row's other columns, at most (input.max_metadata_bytes)


def questions_of(
    recipe: ScoreRecipe, storage: Storage, answers_bytes: int = resources.TARGET_BLOCK_BYTES // ROWS - ROW_BYTES
) -> Questions:
    """The questions of a recipe. The bytes of a row's answers are limited, so that Ray does not split a block of rows
    (docs/design.md, D4).

    Raises RecipeError if questions are wrong, do not fit the mode or are too many, SystemFailure if storage fails.
    """
    questions = read(storage, recipe.score, curated.parts(storage, recipe.score))
    _check_prompts(recipe, questions)
    _check_size(recipe.score, questions, answers_bytes)
    return questions


def resolved(recipe: ScoreRecipe) -> ModelRef:
    """The readers' model. Raises RecipeError and SystemFailure as `resolve` does, and for a service that cannot
    continue a given beginning of an answer."""
    model = resolve(recipe)
    launch.check_on_cpu(recipe, model)
    if recipe.score.mode != "prism":
        launch.check_goes_on(recipe, model)
    return model


def prompts(settings: Score, questions: Questions) -> int:
    """The least number of prompts per caption."""
    images = max(1, len(set(questions.digests.tolist())))
    each = {"sampled": 1, "prism": settings.samples, "deterministic": settings.rotations or 2}[settings.mode]
    return max(1, len(questions) // images * each)


def _check_prompts(recipe: ScoreRecipe, questions: Questions) -> None:
    """Raise RecipeError if the mode and the questions' prompts do not fit."""
    own, mode = questions.own_prompts(), recipe.score.mode
    if mode == "prism" and own < len(questions):
        raise RecipeError(
            "score.mode: prism needs questions with prompts of their own, as CapRL's evaluation files have; "
            f"{len(questions) - own:,} questions have none. Give score.mode=deterministic for these."
        )
    if mode != "prism" and own:
        raise RecipeError(
            f"score.mode: {mode} uses the standard prompt, but {own:,} questions have a prompt of their own; give "
            "score.mode=prism."
        )
    if recipe.model.endpoint and mode == "prism" and questions.without_system():
        raise RecipeError(
            "model.endpoint: the questions' prompts have no system turn, and the service's own chat template may add "
            "one; give model.source without an endpoint."
        )


def _check_size(settings: Score, questions: Questions, allowed: int) -> None:
    """Raise RecipeError if the answers of a row could have more bytes."""
    most, text = questions.most_about()
    options = max(2, questions.most_options())
    asked = {"sampled": settings.draws, "prism": settings.samples, "deterministic": settings.rotations or options}
    times = 2 * asked[settings.mode] + 1
    raw = MOST_RAW if settings.mode == "prism" else 256
    if times * (text + most * (2 * raw + 256)) > allowed:
        raise RecipeError(
            f"score.questions: an image has {most:,} questions, which is too many for one row; split the file, or ask "
            "less often (score.rotations, score.samples, score.draws)."
        )
