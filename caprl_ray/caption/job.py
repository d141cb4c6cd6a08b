"""The job `caption`: images -> prepare -> caption -> captions, and if the recipe has `score` -> answer -> scores."""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.data import Dataset

from caprl_ray.answer import readers as reading
from caprl_ray.caption import join
from caprl_ray.caption.columns import AGAIN, CAPTION, CODES, check_prompt, output_columns
from caprl_ray.caption.fingerprint import fingerprint
from caprl_ray.caption.join import Readers
from caprl_ray.caption.scoring import POOL, CaptionReader
from caprl_ray.caption.stage import Captioner
from caprl_ray.cluster import resources
from caprl_ray.engines import launch
from caprl_ray.job import Job
from caprl_ray.models.resolve import ModelRef, resolve
from caprl_ray.output.fingerprint import outdated
from caprl_ray.prepare.stage import Prepare
from caprl_ray.recipe.sections import Recipe
from caprl_ray.replica.pool import batch_rows, pool
from caprl_ray.score.questions import Questions
from caprl_ray.sources import placeholders
from caprl_ray.storage import Storage


def caption_job(recipe: Recipe) -> Job:
    """The job `caption` for a recipe. Raises RecipeError and SystemFailure as `models.resolve.resolve`,
    `sources.placeholders.load` and `caption.join.readers_of` do."""
    placeholders.load(Storage(recipe.storage), recipe.input)
    launch.check_engine(recipe)
    model = resolve(recipe)
    launch.check_on_cpu(recipe, model)
    job = Job(
        name="caption",
        done="captioned",
        recipe=recipe,
        adds=output_columns(recipe),
        again=(CAPTION[0].name, AGAIN.name),
        codes=CODES,
        stages=partial(captioned, recipe=recipe, model=model),
        engine_on_cpu=launch.computes_on_cpu(recipe),
        fingerprint=fingerprint(recipe, model),
        check_columns=partial(check_prompt, recipe),
        outdated=outdated,
        record={"model": _recorded(recipe, model)},
    )
    return _scored(job, model) if recipe.score else job


def captioned(
    rows: Dataset,
    counter: ActorHandle,
    *,
    recipe: Recipe,
    model: ModelRef,
    scores: tuple[Readers, Questions] | None = None,
    replaced: bool = True,
    most_bytes: int | None = None,
) -> Dataset:
    """Compressed images -> pixels -> captions, and with `scores` -> answers -> scores.

    One block of pixels is one caption batch and one block of captions (docs/design.md, D4). `replaced`: the run watches
    its replicas (watch/replicas.py). Otherwise, a replica whose engine does not start ends the run. `most_bytes`: Ray
    would split a batch of captions that is larger, if its rows may be large.
    """
    # Batches of answers and of a caller's own columns are bounded by their bytes, so these are not larger.
    pixels = model.size_rule.max_pixels
    bounded = scores is not None or most_bytes is not None
    batch = resources.batch_rows(pixels) if bounded else batch_rows(recipe, pixels)
    prepare = Prepare(model.size_rule, recipe.prepare, counter)
    # Shared by all replicas. Without a watcher, nothing stops a run, and the counter would wait for ever.
    stopped = [counter.until_stopped.remote()] if replaced else []
    captions = (
        rows.map_batches(prepare, batch_size=batch, batch_format="pyarrow", num_cpus=1)
        .repartition(target_num_rows_per_block=batch, strict=True)
        .map_batches(
            Captioner,
            fn_constructor_kwargs={
                "recipe": recipe,
                "model": model,
                "counter": counter,
                "last": scores is None,
                "replaced": replaced,
                "most_bytes": most_bytes,
                "rows": batch,
                "stopped": stopped,
            },
            batch_size=batch,
            batch_format="pyarrow",
            **pool(recipe, counter, batch),
        )
    )
    return captions if scores is None else _answered(captions, counter, recipe, *scores, stopped)


def _answered(
    captions: Dataset,
    counter: ActorHandle,
    recipe: Recipe,
    readers: Readers,
    questions: Questions,
    stopped: list[ray.ObjectRef],
) -> Dataset:
    """Captions -> answers -> scores. One block of captions is one batch of answers and one block of scores."""
    return captions.map_batches(
        CaptionReader,
        fn_constructor_kwargs={
            "recipe": recipe,
            "readers": readers,
            "counter": counter,
            "questions": ray.put(questions),
            "stopped": stopped,
        },
        batch_size=readers.rows,  # the blocks already have this size, but Ray Data requires a number with GPUs
        batch_format="pyarrow",
        **pool(
            readers.recipe,
            counter,
            readers.rows,
            POOL,
            recipe.captions * reading.prompts(readers.recipe.score, questions),
        ),
    )


def _scored(job: Job, model: ModelRef) -> Job:
    """The same job with a second pool, which scores what the first one writes."""
    recipe = job.recipe
    readers, questions = join.readers_of(recipe, resources.batch_rows(model.size_rule.max_pixels))

    def check_columns(names: Collection[str]) -> None:
        check_prompt(recipe, names)
        join.check_column(readers, names)

    return replace(
        job,
        stages=partial(captioned, recipe=recipe, model=model, scores=(readers, questions)),
        readers={POOL: readers.recipe},
        engine_on_cpu=job.engine_on_cpu or launch.computes_on_cpu(readers.recipe),
        fingerprint={**job.fingerprint, **readers.fingerprint},
        check_columns=check_columns,
        check_units=partial(join.with_common, readers, questions),
        record={**job.record, "reader": _recorded(readers.recipe, readers.model)},
    )


def _recorded(recipe: Recipe, model: ModelRef) -> dict[str, Any]:
    """A model as run.json names it."""
    return {"source": recipe.model.source, "revision": recipe.model.revision, "commit": model.revision}
