"""The job `score`: captions -> answers -> scores."""

import math
from functools import partial

import ray
from ray.actor import ActorHandle
from ray.data import Dataset

from caprl_ray.answer import captions
from caprl_ray.answer.captions import Captions
from caprl_ray.answer.columns import CODES, SCORE
from caprl_ray.answer.fingerprint import fingerprint
from caprl_ray.answer.stage import ROWS, Answerer
from caprl_ray.caption.fingerprint import outdated
from caprl_ray.cluster import resources
from caprl_ray.engines import concurrency, launch
from caprl_ray.errors import RecipeError
from caprl_ray.job import Job
from caprl_ray.models.resolve import ModelRef, resolve
from caprl_ray.recipe.score import Score, ScoreRecipe
from caprl_ray.score.ask import MOST_RAW
from caprl_ray.score.questions import Questions
from caprl_ray.score.read import read
from caprl_ray.storage import Storage


def score_job(recipe: ScoreRecipe) -> tuple[Job, Questions]:
    """The job that scores by a recipe, and its questions. Raises RecipeError and SystemFailure for what is wrong with
    the recipe, the questions, the captions or the model."""
    storage = Storage(recipe.storage)
    questions = read(storage, recipe.score)
    _check_prompts(recipe, questions)
    _check_size(recipe.score, questions)
    found = captions.found(recipe, storage)
    launch.check_engine(recipe)
    captions.check_common(found, questions, storage)
    model = resolve(recipe)
    launch.check_on_cpu(recipe, model)
    if recipe.score.mode != "prism":
        launch.check_goes_on(recipe, model)
    settings = recipe.model
    job = Job(
        name="score",
        done="scored",
        recipe=found.recipe,
        adds=SCORE,
        codes=CODES,
        stages=partial(scored, captions=found, model=model, questions=questions),
        needs_image=False,
        engine_on_cpu=launch.computes_on_cpu(recipe),
        fingerprint=fingerprint(recipe, model, questions),
        check_columns=partial(captions.check_columns, found),
        outdated=outdated,
        record={"model": {"source": settings.source, "revision": settings.revision, "commit": model.revision}},
    )
    return job, questions


def scored(
    rows: Dataset, counter: ActorHandle, *, captions: Captions, model: ModelRef, questions: Questions
) -> Dataset:
    """Captions -> answers -> scores. One batch of rows is one block of scores (docs/design.md, D4)."""
    in_flight = max(2, math.ceil(concurrency.batches_in_flight(captions.recipe, ROWS) / _prompts(captions, questions)))
    return rows.repartition(target_num_rows_per_block=ROWS, strict=True).map_batches(
        Answerer,
        fn_constructor_kwargs={
            "captions": captions,
            "model": model,
            "counter": counter,
            "questions": ray.put(questions),
            "stopped": [counter.until_stopped.remote()],
        },
        batch_size=ROWS,
        batch_format="pyarrow",
        **resources.replica_pool(captions.recipe, in_flight, partial(_struck, counter)),
    )


def _struck(counter: ActorHandle) -> list[str]:
    """The ids of nodes that get no more replicas."""
    return list(ray.get(counter.struck.remote()))


def _prompts(captions: Captions, questions: Questions) -> int:
    """How many prompts a caption has, at least."""
    settings = captions.recipe.score
    images = max(1, len(set(questions.digests.tolist())))
    each = {"sampled": 1, "prism": settings.samples, "deterministic": settings.rotations or 2}[settings.mode]
    return max(1, len(questions) // images * each)


def _check_prompts(recipe: ScoreRecipe, questions: Questions) -> None:
    """Raise RecipeError if the mode and the questions' prompts do not fit."""
    own, mode = questions.own_prompts(), recipe.score.mode
    if mode == "prism" and own < len(questions):
        raise RecipeError(
            "score.mode: prism needs questions with prompts of their own, as CapRL's evaluation files have; "
            f"{len(questions) - own:,} questions have none. Take deterministic for them."
        )
    if mode != "prism" and own:
        raise RecipeError(
            f"score.mode: {mode} asks by a prompt of ours, and {own:,} questions have their own; give score.mode=prism."
        )
    if recipe.model.endpoint and mode == "prism" and questions.without_system():
        raise RecipeError(
            "model.endpoint: the questions' prompts have no system turn, and the service's own chat template may add "
            "one; give model.source without an endpoint."
        )


def _check_size(settings: Score, questions: Questions) -> None:
    """Raise RecipeError if a block of answers could be larger than Ray leaves in one piece (docs/design.md, D4)."""
    most, text = questions.most_about()
    options = max(2, questions.most_options())
    asked = {"sampled": settings.draws, "prism": settings.samples, "deterministic": settings.rotations or options}
    times = 2 * asked[settings.mode] + 1
    raw = MOST_RAW if settings.mode == "prism" else 256
    size = ROWS * times * (text + most * (2 * raw + 256)) + ROWS * 512 * 2**10
    if size > resources.TARGET_BLOCK_BYTES:
        raise RecipeError(
            f"score.questions: an image has {most:,} questions, which is too many for one row; split the file, or ask "
            "less often (score.rotations, score.samples, score.draws)."
        )
