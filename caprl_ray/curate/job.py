"""The job `curate`: images -> prepare -> questions -> answers -> the questions that need the image."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ray.actor import ActorHandle
from ray.data import Dataset

from caprl_ray.caption.columns import check_prompt
from caprl_ray.cluster import resources
from caprl_ray.curate.columns import CODES, CURATED
from caprl_ray.curate.fingerprint import fingerprint
from caprl_ray.curate.stage import Answering, Questioning
from caprl_ray.engines import launch
from caprl_ray.errors import CaprlError, RecipeError
from caprl_ray.job import Job
from caprl_ray.models.resolve import ModelRef, resolve
from caprl_ray.output.fingerprint import outdated
from caprl_ray.prepare.stage import Prepare
from caprl_ray.recipe.curate import COUNT, CurateRecipe
from caprl_ray.recipe.sections import Recipe
from caprl_ray.replica.pool import pool
from caprl_ray.sources import placeholders
from caprl_ray.storage import Storage

ANSWERING = "curate"  # the section of the recipe with the answering model


def curate_job(recipe: CurateRecipe) -> Job:
    """The job `curate` for a recipe. Raises RecipeError or SystemFailure if the recipe or a model is wrong."""
    answering = recipe.answering
    placeholders.load(Storage(recipe.storage), recipe.input)
    launch.check_engine(recipe)
    questioner = resolve(recipe)
    launch.check_on_cpu(recipe, questioner)
    answerer = _answerer(answering)
    _refuse_other_sizes(questioner, answerer)
    return Job(
        name="curate",
        done="curated",
        recipe=recipe,
        readers={ANSWERING: answering},
        adds=CURATED,
        codes=CODES,
        stages=partial(curated, recipe=recipe, questioner=questioner, answerer=answerer),
        engine_on_cpu=launch.computes_on_cpu(recipe) or launch.computes_on_cpu(answering),
        fingerprint=fingerprint(recipe, questioner, answerer),
        check_columns=partial(_check_columns, recipe),
        outdated=outdated,
        record={"models": {"questioner": questioner.label, "answerer": answerer.label}},
    )


def curated(
    rows: Dataset, counter: ActorHandle, *, recipe: CurateRecipe, questioner: ModelRef, answerer: ModelRef
) -> Dataset:
    """Compressed images -> pixels -> questions -> answers. One block of pixels stays one block (docs/design.md, D4)."""
    batch = resources.batch_rows(questioner.size_rule.max_pixels)
    stopped = [counter.until_stopped.remote()]
    shared: dict[str, Any] = {"recipe": recipe, "counter": counter, "stopped": stopped}
    return (
        rows.map_batches(
            Prepare(questioner.size_rule, recipe.prepare, counter), batch_size=batch, batch_format="pyarrow", num_cpus=1
        )
        .repartition(target_num_rows_per_block=batch, strict=True)
        .map_batches(
            Questioning,
            fn_constructor_kwargs={**shared, "model": questioner},
            batch_size=batch,
            batch_format="pyarrow",
            **pool(recipe, counter, batch),
        )
        .map_batches(
            Answering,
            fn_constructor_kwargs={**shared, "model": answerer, "pool": ANSWERING},
            batch_size=batch,
            batch_format="pyarrow",
            **pool(recipe.answering, counter, batch, ANSWERING, _prompts(recipe)),
        )
    )


def _prompts(recipe: CurateRecipe) -> int:
    """The number of prompts per row."""
    return 2 * recipe.curate.times * recipe.curate.questions


def _answerer(answering: Recipe) -> ModelRef:
    with of_answering():
        launch.check_engine(answering)
        model = resolve(answering)
        launch.check_on_cpu(answering, model)
        launch.check_goes_on(answering, model)
        return model


@contextmanager
def of_answering() -> Iterator[None]:
    """Prefix errors about the answering model with the name of its section."""
    try:
        yield
    except CaprlError as error:
        raise type(error)(f"{ANSWERING}.{error}") from None


def _refuse_other_sizes(questioner: ModelRef, answerer: ModelRef) -> None:
    if questioner.size_rule != answerer.size_rule:
        raise RecipeError(
            f"curate.model: {answerer.label} sees images at other sizes than {questioner.label}, which writes the "
            "questions; take two models of one family."
        )


def _check_columns(recipe: CurateRecipe, names: Collection[str]) -> None:
    if COUNT in names:
        raise RecipeError(
            f"input.rename: the source has a column {COUNT}, which in the prompt stands for curate.questions; give it "
            "another name."
        )
    check_prompt(recipe, [*names, COUNT])
