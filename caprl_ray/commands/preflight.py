"""`caprl-ray preflight`: try a recipe on a sample of its whole input, in about two minutes. Leaves nothing behind.

It refuses what a run would refuse, by the same code, before anything starts.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import ray
from pyroaring import BitMap

from caprl_ray import plan, sources
from caprl_ray.caption.job import caption_job
from caprl_ray.cluster import session, shared
from caprl_ray.commands import estimate, measure
from caprl_ray.commands.estimate import Whole
from caprl_ray.commands.measure import Measured
from caprl_ray.commands.sample import SEED, chosen_units, shared_out, wanted
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.job import Job
from caprl_ray.models.resolve import SCENES_ONLY, only_scenes, resolve
from caprl_ray.output import lease, place
from caprl_ray.output.folder import Output
from caprl_ray.plan import Unit
from caprl_ray.read.unit import SIZE, Row, tables, unit_rows
from caprl_ray.recipe.engine_arguments import shown
from caprl_ray.recipe.sections import Recipe
from caprl_ray.sources import placeholders
from caprl_ray.sources.checks import checked
from caprl_ray.storage import Storage, join
from caprl_ray.storage.prefetch import prefetched

IMAGES, SECONDS, SHOWN = 256, 30.0, 8
MEGAPIXELS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, math.inf)  # bounds of the histogram of sizes


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What was seen: the sample's rows as the stages left them, the rates, and what the whole input would take."""

    recipe: Recipe
    label: str
    rows: list[dict[str, Any]]
    images: int
    read_images_s: float
    prepare_images_s: float
    measured: Measured
    whole: Whole | None

    @property
    def captioned(self) -> list[dict[str, Any]]:
        """The rows with a caption."""
        return [row for row in self.rows if row["caption"] is not None]

    @property
    def exit_code(self) -> int:
        """0 if an image was captioned, otherwise 3."""
        return 0 if self.captioned else 3

    def report(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        tokens = [row["caption_tokens"] or 0 for row in self.captioned]
        prompts = [row["prompt_tokens"] or 0 for row in self.captioned]
        return {
            "sampled": len(self.rows),
            "captioned": len(self.captioned),
            "model": self.label,
            "engine": shown(self.measured.arguments),
            "start_s": self.measured.start_s,
            "read_images_s": self.read_images_s,
            "prepare_images_s": self.prepare_images_s,
            "images_s": self.measured.rate,
            "caption_tokens_s": self.measured.token_rate,
            "prompt_tokens": estimate.mean(prompts).value,
            "caption_tokens": estimate.mean(tokens).value,
            "caption_tokens_p95": estimate.quantile(tokens, 0.95),
            "images": self.images,
            "replicas": self.recipe.replicas.most,
            "whole": None if self.whole is None else asdict(self.whole),
            "megapixels": {f"{bound:g}": count for bound, count in self._sizes() if count},
            "flags": dict(Counter(flag for row in self.captioned for flag in row["flags"] or ()).most_common()),
            "failed": dict(Counter(row["code"] for row in self.rows if row["code"]).most_common()),
        }

    def summary(self) -> str:
        """Text for people."""
        seen, measured = self.report(), self.measured
        lines = [SCENES_ONLY] * only_scenes(self.recipe)
        lines += [
            f"input: about {self.images:,} images; {len(self.rows)} of them sampled, read at "
            f"{self.read_images_s:,.0f} images/s",
            f"prepare: {self.prepare_images_s:.1f} images/s on one core",
            f"model: {self.label} started in {measured.start_s:.1f} s",
        ]
        if seen["engine"]:
            lines.append(f"engine: {' '.join(f'{name}={value}' for name, value in seen['engine'].items())}")
        lines += [
            f"caption: {measured.rate:.2f} images/s and {measured.token_rate:.0f} caption tokens/s on one replica, "
            f"over {measured.seconds:.0f} s",
            f"tokens: prompt {seen['prompt_tokens']:.0f}, caption {seen['caption_tokens']:.0f} on average and "
            f"{seen['caption_tokens_p95']:.0f} at the 95th percentile",
            f"flags: {_counts(seen['flags'])}",
            f"failed: {_counts(seen['failed'])}",
            f"whole input: {self._whole()}",
            "sizes in megapixels:",
            *self._histogram(),
            "captions:",
        ]
        chosen = random.Random(SEED).sample(self.rows, min(SHOWN, len(self.rows)))
        return "\n".join([*lines, *(f"  {row['key']}: {_said(row)}" for row in chosen)])

    def _sizes(self) -> list[tuple[float, int]]:
        areas = [row["width"] * row["height"] / 1e6 for row in self.rows if row["width"] and row["height"]]
        return estimate.histogram(areas, MEGAPIXELS)

    def _histogram(self) -> Iterator[str]:
        counts = self._sizes()
        for (bound, count), bar in zip(counts, estimate.bars([count for _, count in counts]), strict=True):
            if count:
                yield f"  {'over 16' if bound == math.inf else f'under {bound:g}':>10} {count:4} {bar}"

    def _whole(self) -> str:
        if self.whole is None:
            return "no estimate, because nothing was captioned"
        replicas = self.recipe.replicas.most
        said = f"{self.whole.seconds / 3600:,.2f} hours on {replicas} replica{'s' if replicas > 1 else ''}"
        said += f", {self.whole.gpu_hours:,.1f} GPU hours" if self.whole.gpu_hours else ""
        return said + (f", ${self.whole.cost:,.2f}" if self.whole.cost is not None else "")


def preflight(
    recipe: Recipe, *, seconds: float = SECONDS, price: float | None = None, debug: bool = False
) -> Preflight:
    """Try a recipe on IMAGES images, and its engine for `seconds`. `price` is that of a GPU hour; by default
    the recipe's.

    Raises RecipeError or SystemFailure as a run would.
    """
    job, model = caption_job(recipe), resolve(recipe)
    output = Output.open(job)
    lease.refuse_held(output.storage, output.path)
    with place.untouched(output.path), session.lasting(debug, job.engine_on_cpu):
        seen = _sample(output)
        _try_output(output.storage, output.path)
        with session.session(job, debug):
            blocks, prepare_images_s = measure.prepared(recipe, model, seen.rows)
            measured = measure.measure(recipe, model, blocks, seconds)
            rows = _results(blocks, measured)
    images = round(seen.known + seen.unknown_bytes / seen.row_bytes)
    replicas = recipe.replicas
    return Preflight(
        recipe=recipe,
        label=model.label,
        rows=rows,
        images=images,
        read_images_s=seen.rows.num_rows / max(seen.seconds, 1e-6),
        prepare_images_s=prepare_images_s,
        measured=measured,
        whole=estimate.whole(
            images, measured.rate, replicas.most, replicas.gpus, replicas.price if price is None else price
        ),
    )


@dataclass(kw_only=True)
class _Sample:
    """Rows of the whole input, and how many it has: those that are known, and the bytes of units of unknown length."""

    rows: pa.Table = None
    seconds: float = 0.0
    known: int = 0
    unknown_bytes: int = 0
    row_bytes: float = 1.0
    columns: pa.Schema = None

    def counted(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """Count units on their way."""
        self.columns = pa.schema([])
        for unit in units:
            self.add(unit.rows, unit.size)
            if not self.columns.equals(unit.columns):
                self.columns = plan.unified(self.columns, [unit])
            yield unit

    def add(self, rows: int | None, size: int) -> None:
        """Count one unit."""
        self.known += rows or 0
        self.unknown_bytes += size if rows is None else 0


def _sample(output: Output) -> _Sample:
    """Read the sample. Raises RecipeError as planning does."""
    job, storage, access = output.job, output.storage, output.access
    stored, found = plan.load(storage, output.path) if output.planned else plan.EMPTY, _Sample()
    planned = checked(sources.plan_units(access), job.recipe.input, job.adds, job.check_columns)
    chosen = chosen_units(storage, stored, found.counted(planned), IMAGES)
    if not chosen:
        raise RecipeError(f"input.paths: no image was found in {', '.join(job.recipe.input.paths)}.")
    if stored.units:
        found.columns = stored.columns
        for ref in stored.units:
            found.add(ref.rows, ref.bytes)
    began = time.monotonic()
    rows = _read(job, output, found.columns, chosen)
    found.seconds = time.monotonic() - began
    found.row_bytes = max(1.0, sum(row[SIZE] for row in rows) / len(rows))
    found.rows = pa.concat_tables(tables(iter(rows), job.row_schema(found.columns)))
    return found


def _read(job: Job, output: Output, columns: pa.Schema, chosen: list[Unit]) -> list[Row]:
    access, schema = output.access, job.row_schema(columns)
    unwanted = placeholders.load(access.storage, access.input)
    shares = shared_out([unit.rows for unit in chosen], IMAGES)

    def read(work: tuple[int, tuple[Unit, int]]) -> list[Row]:
        number, (unit, share) = work
        picked = wanted(unit, share, random.Random(f"{SEED} {number}"))
        done = None if picked is None else BitMap(range(unit.rows or 0)) - picked
        rows = unit_rows(number, unit, schema=schema, access=access, done=done, placeholders=unwanted)
        return list(islice(rows, share))

    return [row for rows in prefetched(read, enumerate(zip(chosen, shares, strict=True))) for row in rows]


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


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _said(row: dict[str, Any]) -> str:
    return row["caption"] or " ".join(filter(None, [row["code"], row["detail"]]))
