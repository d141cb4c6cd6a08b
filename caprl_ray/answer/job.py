"""The job `score`: captions -> answers -> scores."""

from functools import partial

import ray
from ray.actor import ActorHandle
from ray.data import Dataset

from caprl_ray.answer import captions, readers
from caprl_ray.answer.captions import Captions
from caprl_ray.answer.columns import CODES, SCORE
from caprl_ray.answer.fingerprint import fingerprint
from caprl_ray.answer.readers import ROWS
from caprl_ray.answer.stage import Answerer
from caprl_ray.engines import launch
from caprl_ray.job import Job
from caprl_ray.models.resolve import ModelRef
from caprl_ray.output.fingerprint import outdated
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.replica.pool import pool
from caprl_ray.score.questions import Questions
from caprl_ray.storage import Storage


def score_job(recipe: ScoreRecipe, *, extend: bool = False) -> tuple[Job, Questions]:
    """The job `score` for a recipe, and its questions. `extend`: also captions that are new. Raises RecipeError or
    SystemFailure if the recipe, the questions, the captions or the model are wrong."""
    storage = Storage(recipe.storage)
    questions = readers.questions_of(recipe, storage)
    found = captions.found(recipe, storage)
    if extend:
        captions.refuse_replaced(found, storage)
    launch.check_engine(recipe)
    captions.check_common(found, questions, storage)
    model = readers.resolved(recipe)
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
        **pool(captions.recipe, counter, ROWS, prompts=readers.prompts(captions.recipe.score, questions)),
    )
