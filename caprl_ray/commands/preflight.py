"""`caprl-ray preflight`: try everything that a run needs on a few images, in a minute or two. Leaves nothing behind."""

import time
from collections.abc import Callable
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from caprl_ray import plan, sources
from caprl_ray.caption.columns import check_prompt, output_columns
from caprl_ray.caption.job import caption_job
from caprl_ray.caption.stage import Captioner
from caprl_ray.cluster import resources, session, shared
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.models.resolve import ModelRef, resolve
from caprl_ray.prepare.stage import Prepare
from caprl_ray.read.unit import tables, unit_rows
from caprl_ray.recipe.engine_arguments import shown
from caprl_ray.recipe.sections import Recipe
from caprl_ray.rows.schema import row_schema
from caprl_ray.sources import placeholders
from caprl_ray.sources.checks import checked
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage, join

T = TypeVar("T")

IMAGES = 8
UNITS = 100  # whose columns are checked; planning all of a large input would take minutes


def preflight(recipe: Recipe, *, debug: bool = False) -> int:
    """Try a recipe on IMAGES images; print the captions and the rates.

    Returns the exit code: 0 if at least one image was captioned, otherwise 3. Raises RecipeError or SystemFailure as a
    run would.
    """
    job = caption_job(recipe)
    model = resolve(recipe)
    images, seconds = _timed(_first_images, recipe)
    print(f"input: {images.num_rows} images read in {seconds:.2f} s, {_failures(images)}")
    _try_output(Storage(recipe.storage), recipe.output.path)
    print(f"output: {recipe.output.path} can be written")
    prepared, seconds = _timed(Prepare(model.size_rule, recipe.prepare), images)
    print(f"prepare: {images.num_rows / seconds:.1f} images/s on one core, {_failures(prepared)}")
    with session.session(job, debug):
        captioned = _caption(recipe, model, prepared)
    for row in captioned.select(["key", "caption", "code", "detail"]).to_pylist():
        print(f"  {row['key']}: {row['caption'] or ' '.join(filter(None, [row['code'], row['detail']]))}")
    return 0 if captioned["caption"].null_count < captioned.num_rows else 3


def _first_images(recipe: Recipe) -> pa.Table:
    access = Access.of(recipe)
    found = checked(sources.plan_units(access), recipe.input, output_columns(recipe), partial(check_prompt, recipe))
    units = list(islice(found, UNITS))  # all of them, unless the input is large
    if not units:
        raise RecipeError(f"input.paths: no image was found in {', '.join(recipe.input.paths)}.")
    schema = row_schema(plan.unified(pa.schema([]), units), output_columns(recipe))
    unwanted = placeholders.load(access.storage, access.input)
    rows = chain.from_iterable(
        unit_rows(number, unit, schema=schema, access=access, placeholders=unwanted)
        for number, unit in enumerate(units)
        if unit.kind == units[0].kind
    )
    return pa.concat_tables(tables(islice(rows, IMAGES), schema))


def _try_output(storage: Storage, path: str) -> None:
    test = join(path, shared.PROBE)
    try:
        storage.put(test, b"test")
        storage.delete(test)
    except OSError as error:
        raise SystemFailure(f"output.path: {path} cannot be written ({error.strerror}).") from None


def _caption(recipe: Recipe, model: ModelRef, prepared: pa.Table) -> pa.Table:
    actor = ray.remote(**resources.replica_resources(recipe))(Captioner)
    replica, seconds = _timed(_start, actor, recipe, model, prepared.slice(0, 0))
    print(f"model: {model.label} started in {seconds:.1f} s")
    arguments = ray.get(replica.engine_arguments.remote())
    if arguments:
        print(f"engine: {' '.join(f'{name}={value}' for name, value in shown(arguments).items())}")
    captioned, seconds = _timed(lambda: ray.get(replica.__call__.remote(prepared)))
    tokens = sum(filter(None, captioned["caption_tokens"].to_pylist()))
    rate = f"{captioned.num_rows / seconds:.2f} images/s, {tokens / seconds:.0f} caption tokens/s"
    print(f"caption: {rate} for {captioned.num_rows} at once, {_failures(captioned)}")
    return captioned


def _start(actor: Any, recipe: Recipe, model: ModelRef, nothing: pa.Table) -> ActorHandle:
    """Start a replica and send it an empty batch, because a replica reports a failed start at its first batch."""
    replica = actor.remote(recipe, model, None)
    ray.get(replica.__call__.remote(nothing))
    return replica


def _failures(rows: pa.Table) -> str:
    return f"{rows.num_rows - rows['code'].null_count} failed"


def _timed(action: Callable[..., T], *arguments: Any) -> tuple[T, float]:
    began = time.monotonic()
    result = action(*arguments)
    return result, time.monotonic() - began
