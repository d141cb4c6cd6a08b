"""Try a recipe on a sample of its whole input: read, prepare and caption it on this machine or cluster, and leave
nothing behind.

It refuses the same recipes as a run, with the same code, before anything starts.
"""

import math
import random
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from dataclasses import replace as changed
from functools import partial
from itertools import islice, pairwise
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import ray
from pyroaring import BitMap

from caprl_ray import plan, sources
from caprl_ray.caption.job import caption_job
from caprl_ray.cluster import session, shared
from caprl_ray.commands import measure
from caprl_ray.commands.measure import Measured
from caprl_ray.commands.sample import SEED, Drawn, Strata, wanted
from caprl_ray.commands.weights import Reading, Weighted
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.models.resolve import ModelRef, resolve
from caprl_ray.output import lease, place
from caprl_ray.output.folder import Output
from caprl_ray.plan import Unit
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.read.unit import SIZE, Row, tables, unit_rows
from caprl_ray.recipe.sections import Recipe
from caprl_ray.sources import placeholders
from caprl_ray.sources.checks import checked
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage, Stored, join
from caprl_ray.storage.prefetch import prefetched

IMAGES, SECONDS = 256, 30.0
MEGAPIXELS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, math.inf)  # bounds of the histogram of sizes
HEADER = 512  # of a tar: the next one is read when a sample ends


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The measurements.

    Attributes:
        label: the model.
        rows: the sample's rows as the stages left them. Of a block that there was no time for, only those that had
            failed before.
        weighted: what the rows stand for, in their order, if there was time for all.
        units, bytes: of the whole input.
    """

    recipe: Recipe
    label: str
    rows: list[dict[str, Any]]
    weighted: Weighted
    units: int
    bytes: int
    read_images_s: float
    prepare_images_s: float
    measured: Measured

    @property
    def captioned(self) -> list[dict[str, Any]]:
        """The rows with a caption."""
        return [row for row in self.rows if row["caption"] is not None]


def areas(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The megapixels of each row's image; not a number where they are not known."""
    return np.array([row["width"] * row["height"] / 1e6 if row["width"] and row["height"] else np.nan for row in rows])


def silent(step: str) -> None:
    """Report nothing."""


def trial(
    recipe: Recipe,
    images: int,
    seconds: float,
    *,
    whole: bool = False,
    debug: bool = False,
    tell: Callable[[str], None] = silent,
) -> Trial:
    """Try a recipe on about `images` images, and its engine for `seconds`; `whole` captions all of them once. `tell` is
    called after each step.

    Raises RecipeError or SystemFailure as a run would.
    """
    with sampled(recipe, images, debug=debug, tell=tell) as seen:
        blocks, prepare_images_s = measure.prepared(recipe, seen.model, seen.rows)
        tell(f"they were prepared, {prepare_images_s:.1f} images/s on one core; the engine starts")
        measured = measure.measure(recipe, seen.model, blocks, seconds, whole=whole)
        rows = _results(blocks, measured)
    return Trial(
        recipe=recipe,
        label=seen.model.label,
        rows=rows,
        weighted=seen.weighted,
        units=sum(stratum.units for stratum in seen.strata.all),
        bytes=sum(stratum.bytes for stratum in seen.strata.all),
        read_images_s=seen.rows.num_rows / max(seen.seconds, 1e-6),
        prepare_images_s=prepare_images_s,
        measured=measured,
    )


@contextmanager
def sampled(
    recipe: Recipe, images: int, *, debug: bool = False, tell: Callable[[str], None] = silent
) -> Iterator["Seen"]:
    """Read a sample of about `images` images, and keep a connection to Ray while the block runs. The output does not
    change. `tell` is called after each step.

    Raises RecipeError or SystemFailure as a run would.
    """
    job, model = caption_job(recipe), resolve(recipe)
    output = Output.open(job)
    lease.refuse_held(output.storage, output.path)
    with place.untouched(output.path), session.lasting(debug, job.engine_on_cpu):
        seen = _sample(output, model, images)
        tell(f"the recipe is right; the model is {model.label}")
        tell(f"{seen.rows.num_rows} images were read as a sample of the whole input")
        _try_output(output.storage, output.path)
        tell(f"{output.path} can be written")
        with session.session(job, debug):
            yield seen


@dataclass(kw_only=True)
class Seen:
    """The sample in random order, so that a part of it is a sample, too."""

    model: ModelRef
    strata: Strata
    columns: pa.Schema = field(default_factory=lambda: pa.schema([]))
    rows: pa.Table = None
    weighted: Weighted
    seconds: float = 0.0


def _sample(output: Output, model: ModelRef, images: int) -> Seen:
    """Read the sample. Raises RecipeError as planning does."""
    job, storage = output.job, output.storage
    stored, strata = plan.load(storage, output.path) if output.planned else plan.EMPTY, Strata(images)
    columns = stored.columns
    if stored.units:
        for ref in stored.units:
            strata.add(ref)
    else:
        found = checked(sources.plan_units(output.access), job.recipe.input, job.adds, job.check_columns)
        columns = _counted(found, strata)
    drawn = strata.drawn(storage)
    if not drawn:
        raise RecipeError(f"input.paths: no image was found in {', '.join(job.recipe.input.paths)}.")
    schema, began = job.row_schema(columns), time.monotonic()
    rows, readings = _read(output.access, schema, drawn)
    seconds = time.monotonic() - began
    order = random.Random(SEED).sample(range(len(rows)), len(rows))
    table = pa.concat_tables(tables((rows[number] for number in order), schema))
    weighted = Weighted(strata.all, readings, order)
    return Seen(model=model, rows=table, weighted=weighted, strata=strata, seconds=seconds)


def _counted(units: Iterable[Unit], strata: Strata) -> pa.Schema:
    """Count units; returns the columns of all of them."""
    columns = pa.schema([])
    for unit in units:
        strata.add(unit)
        if not columns.equals(unit.columns):
            columns = plan.unified(columns, [unit])
    return columns


def _read(access: Access, schema: pa.Schema, drawn: list[Drawn]) -> tuple[list[Row], list[Reading]]:
    unwanted, rows, readings = placeholders.load(access.storage, access.input), [], []
    read = partial(_read_unit, access, schema, unwanted)
    for found, reading in prefetched(read, enumerate(drawn)):
        rows += found
        readings.append(reading)
    return rows, readings


def _read_unit(
    access: Access, schema: pa.Schema, unwanted: Container[bytes], work: tuple[int, Drawn]
) -> tuple[list[Row], Reading]:
    number, drawn = work
    picked = wanted(drawn.unit, min(drawn.share, drawn.unit.rows or drawn.share), random.Random(f"{SEED} {number}"))
    done = None if picked is None else BitMap(range(drawn.unit.rows or 0)) - picked
    tracked = _Tracked(access.storage.settings)
    found = unit_rows(
        number, drawn.unit, schema=schema, access=access, done=done, placeholders=unwanted,
        read=partial(tracked.samples, changed(access, storage=tracked)),
    )  # fmt: skip
    rows = list(islice(found, drawn.share))
    whole = drawn.unit.rows is None and bool(rows) and rows[-1].get("unit_rows") is not None
    sizes = tracked.sizes(rows)
    if whole:  # what is left of the unit belongs to no row
        sizes = [size * max(drawn.bytes, 1) / sum(sizes) for size in sizes]
    return rows, Reading(drawn=drawn, sizes=sizes, whole=whole)


@dataclass(frozen=True)
class _Tracked(Storage):
    """Storage of one unit that knows how far into its object each sample reaches, with what belongs to no column."""

    streams: list[BinaryIO] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def open(self, stored: Stored, *, piece: int | None = None) -> BinaryIO:
        stream = super().open(stored, piece=piece)
        self.streams.append(stream)
        return stream

    def samples(
        self, access: Access, unit: Unit, done: BitMap, given: Access, left_out: LeftOut
    ) -> Iterator[Sample | None]:
        """The unit's samples. `access` reads by this storage."""
        positions = unit.kind == "webdataset" and unit.entries[0].stored.path.lower().endswith(".tar")
        for sample in sources.read_unit(unit, done, access, left_out):
            if positions:  # those of a compressed shard are the decoder's, which reads ahead
                self.ends.append(max(1, self.streams[-1].tell() - HEADER))
            yield sample

    def sizes(self, rows: list[Row]) -> list[float]:
        """The stored bytes of the rows: from one sample's end to the next, or else of their columns."""
        if len(self.ends) < len(rows):
            return [float(max(1, row[SIZE])) for row in rows]
        return [float(max(1, end - start)) for start, end in pairwise([0, *self.ends[: len(rows)]])]


def _results(blocks: list[Any], measured: Measured) -> list[dict[str, Any]]:
    """The rows as the stages left them; of a block that there was no time for only those that had failed before."""
    names = ["key", "width", "height", "caption", "flags", "prompt_tokens", "caption_tokens", "code", "detail"]
    rows: list[dict[str, Any]] = []
    for number, block in enumerate(blocks):
        table = measured.captioned.get(number)
        if table is None:
            before = ray.get(block)
            table = before.filter(before["code"].is_valid())
        rows += table.select(names).to_pylist()
    return rows


def _try_output(storage: Storage, path: str) -> None:
    test = join(path, shared.PROBE)
    try:
        storage.put(test, b"test")
        storage.delete(test)
    except OSError as error:
        raise SystemFailure(f"output.path: {path} cannot be written ({error.strerror}).") from None
