"""The job `caption`: images -> prepare -> caption -> captions."""

from functools import partial

import ray
from ray.actor import ActorHandle
from ray.data import Dataset

from caprl_ray.caption.columns import AGAIN, CAPTION, CODES, check_prompt, output_columns
from caprl_ray.caption.fingerprint import fingerprint, outdated
from caprl_ray.caption.stage import Captioner
from caprl_ray.cluster import resources
from caprl_ray.engines import concurrency, launch
from caprl_ray.job import Job
from caprl_ray.models.resolve import ModelRef, resolve
from caprl_ray.prepare.stage import Prepare
from caprl_ray.recipe.sections import Recipe
from caprl_ray.sources import placeholders
from caprl_ray.storage import Storage


def caption_job(recipe: Recipe) -> Job:
    """The job that captions by a recipe. Raises RecipeError and SystemFailure as `models.resolve.resolve` and
    `sources.placeholders.load` do."""
    placeholders.load(Storage(recipe.storage), recipe.input)
    launch.check_engine(recipe)
    model = resolve(recipe)
    launch.check_on_cpu(recipe, model)
    settings = recipe.model
    return Job(
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
        record={"model": {"source": settings.source, "revision": settings.revision, "commit": model.revision}},
    )


def captioned(
    rows: Dataset,
    counter: ActorHandle,
    *,
    recipe: Recipe,
    model: ModelRef,
    replaced: bool = True,
    most_bytes: int | None = None,
) -> Dataset:
    """Compressed images -> pixels -> captions.

    One block of pixels is one caption batch and one block of captions (docs/design.md, D4). `replaced` says whether
    something watches the replicas (watch/replicas.py). If not, one whose engine does not start ends the run.
    `most_bytes` is the size from which on Ray would cut a batch of captions, if its rows may be large.
    """
    batch = resources.batch_rows(model.size_rule.max_pixels)
    prepare = Prepare(model.size_rule, recipe.prepare, counter)
    # Shared by all replicas. Where nothing watches, nothing stops a run, and the counter would wait for ever.
    stopped = [counter.until_stopped.remote()] if replaced else []
    in_flight = concurrency.batches_in_flight(recipe, batch)
    return (
        rows.map_batches(prepare, batch_size=batch, batch_format="pyarrow", num_cpus=1)
        .repartition(target_num_rows_per_block=batch, strict=True)
        .map_batches(
            Captioner,
            fn_constructor_kwargs={
                "recipe": recipe,
                "model": model,
                "counter": counter,
                "replaced": replaced,
                "most_bytes": most_bytes,
                "stopped": stopped,
            },
            batch_size=batch,
            batch_format="pyarrow",
            **resources.replica_pool(recipe, in_flight, partial(_struck, counter)),
        )
    )


def _struck(counter: ActorHandle) -> list[str]:
    """The ids of nodes that get no more replicas."""
    return list(ray.get(counter.struck.remote()))
