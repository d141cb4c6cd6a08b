"""Measure one setting on a sample of images, with replicas of its own, which are always stopped afterwards."""

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from caprl_ray.cluster import cores, resources
from caprl_ray.cluster.failures import own_error
from caprl_ray.commands import measure
from caprl_ray.commands.measure import POLL_S
from caprl_ray.engines import concurrency
from caprl_ray.engines.protocol import EngineDied
from caprl_ray.errors import CaprlError
from caprl_ray.models.resolve import ModelRef, resolve
from caprl_ray.recipe.prepare import Prepare
from caprl_ray.recipe.sections import Recipe
from caprl_ray.tune.replica import DiedStarting, Load, Measured
from caprl_ray.tune.settings import Setting

GREEDY_ROWS = 64  # of the sample that are captioned greedily, to be compared with those of other settings
CALLS = 4  # of a replica beside its batches

Block = tuple[ray.ObjectRef, int]
Finished = list[tuple[float, int, int]]


class OutOfTime(Exception):
    """The setting has not been measured in its time."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The measurement of a setting.

    Attributes:
        finished: when each batch was finished, in seconds since the first one, its captions and their tokens. The
            first stands for the beginning.
        greedy: a greedy caption of each of the first rows of the sample, None if it has none.
        failed: codes of rows that have no caption.
    """

    start_s: float
    first_caption_s: float
    finished: Finished
    greedy: list[str | None]
    loads: list[Load]
    arguments: dict[str, Any]
    failed: dict[str, int] = field(default_factory=dict)


class Sample:
    """The images of a recipe, and their pixels, prepared once for each size."""

    def __init__(self, recipe: Recipe, model: ModelRef, images: pa.Table) -> None:
        self._recipe, self._model, self._images = recipe, model, images
        self._blocks: dict[str, list[Block]] = {}
        self.node: str | None = None
        """Where the first replica was, and so all others: a cluster may have other GPUs elsewhere."""
        self.machine: dict[str, Any] = {}
        """What the last replica's node has; empty before the first one."""

    def of(self, setting: Setting) -> tuple[ModelRef, list[Block]]:
        """The setting's model, and blocks of pixels in the object store, each with its number of rows."""
        recipe = setting.recipe
        model = self._model if _same(recipe.prepare, self._recipe.prepare) else resolve(recipe)
        key = repr((recipe.prepare, model.size_rule))
        if key not in self._blocks:
            refs, _ = measure.prepared(recipe, model, self._images)
            size = resources.batch_rows(model.size_rule.max_pixels)
            counts = [min(size, self._images.num_rows - start) for start in range(0, self._images.num_rows, size)]
            self._blocks[key] = list(zip(refs, counts, strict=True))
        return model, self._blocks[key]


def measured(setting: Setting, sample: Sample, seconds: float, limit_s: float) -> Seen:
    """Measure a setting for `seconds` in steady state.

    Raises OutOfTime after `limit_s`, and the replicas' exceptions: see `failure`.
    """
    until = time.monotonic() + limit_s
    model, blocks = sample.of(setting)
    replicas: list[Any] = []
    try:
        return _measured(setting, sample, model, blocks, seconds, until, replicas)
    except ray.exceptions.GetTimeoutError as error:
        raise OutOfTime from error
    finally:
        for replica in replicas:
            ray.kill(replica)
        cores.give_back()  # the next engine starts with the same cores


def failure(error: Exception, limit_s: float) -> str | None:
    """The reason why a setting could not be measured, for the table; None if the setting is not the cause."""
    own = own_error(error) if isinstance(error, ray.exceptions.RayError | CaprlError) else None
    causes = (error, getattr(error, "cause", None), error.__cause__)
    if isinstance(error, OutOfTime):
        return f"not measured within {limit_s:.0f} s"
    if own:
        return str(own)
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "out of memory on the node: Ray ended its process"
    if any(isinstance(cause, EngineDied) for cause in causes):
        return "its engine died"
    if isinstance(error, ray.exceptions.RayActorError):
        return "its process died"
    return f"it failed ({type(error).__name__})" if isinstance(error, ray.exceptions.RayTaskError) else None


def passes(error: Exception) -> bool:
    """Whether the same setting may work the next time: its engine or process died, for instance because other work used
    the memory. Our own errors about a setting, such as a wrong argument, are final."""
    own = own_error(error) if isinstance(error, ray.exceptions.RayError | CaprlError) else None
    return not isinstance(error, OutOfTime) and (own is None or isinstance(own, DiedStarting))


def _measured(
    setting: Setting,
    sample: Sample,
    model: ModelRef,
    blocks: Sequence[Block],
    seconds: float,
    until: float,
    replicas: list[Any],
) -> Seen:
    """Like `measured`. Adds the started replicas to `replicas`."""
    recipe = setting.recipe
    in_flight = concurrency.batches_in_flight(recipe, resources.batch_rows(model.size_rule.max_pixels))
    options = resources.replica_resources(recipe) | {"max_concurrency": in_flight + CALLS}
    if sample.node:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(sample.node, soft=True)
    began = time.monotonic()
    arguments: dict[str, Any] = {}
    starts: list[float] = []
    for _ in range(setting.copies):  # one after the other: vLLM takes what is free of a GPU's memory for its own
        replicas.append(ray.remote(**options)(Measured).remote(recipe, model))
        sample.node, sample.machine = _get(replicas[-1].where.remote(), until)
        arguments = _get(replicas[-1].started.remote(), until)
        starts.append(time.monotonic() - began)
    greedy, tokens = _greedy(replicas[0], blocks, until)
    firsts = [_get(replica.as_the_recipe.remote(tokens), until) for replica in replicas]
    finished, failed = _busy(replicas, blocks, in_flight, seconds, until)
    return Seen(
        start_s=starts[-1],
        first_caption_s=starts[0] + firsts[0],
        finished=finished,
        greedy=greedy,
        loads=[_get(replica.load.remote(), until) for replica in replicas],
        arguments=arguments,
        failed=failed,
    )


def _greedy(replica: Any, blocks: Sequence[Block], until: float) -> tuple[list[str | None], int]:
    """Greedy captions of the first rows, which also warms the engine up, and their mean tokens."""
    _get(replica.greedily.remote(), until)
    ends = itertools.accumulate(rows for _, rows in blocks)
    chosen = [block for (block, rows), end in zip(blocks, ends, strict=True) if end - rows < GREEDY_ROWS]
    tables = [_get(ref, until) for ref in [replica.__call__.remote(block) for block in chosen]]
    captions = [caption for table in tables for caption in table["caption"].to_pylist()]
    tokens = [count for table in tables for count in table["caption_tokens"].to_pylist() if count]
    return captions[:GREEDY_ROWS], round(fmean(tokens or [0]))


def _busy(
    replicas: Sequence[Any], blocks: Sequence[Block], in_flight: int, seconds: float, until: float
) -> tuple[Finished, dict[str, int]]:
    """Keep every replica busy, and count from the first finished batch."""
    again = itertools.cycle(block for block, _ in blocks)
    free = [replica for _ in range(in_flight) for replica in replicas]
    under_way: dict[ray.ObjectRef, Any] = {}
    finished: Finished = []
    failed: Counter[str] = Counter()
    first = 0.0
    while len(finished) < 2 or time.monotonic() < first + seconds:
        if time.monotonic() > until:
            raise OutOfTime
        while free:
            replica = free.pop(0)
            under_way[replica.__call__.remote(next(again))] = replica
        ready, _ = ray.wait(list(under_way), num_returns=1, timeout=POLL_S)
        for ref in ready:
            free.append(under_way.pop(ref))
            table, now = ray.get(ref), time.monotonic()
            if not first:
                first = now
                for replica in replicas:
                    replica.load.remote()  # resets the load
            tokens = sum(filter(None, table["caption_tokens"].to_pylist()))
            failed.update(filter(None, table["code"].to_pylist()))
            captions = table.num_rows - table["caption"].null_count
            finished.append((now - first, captions, tokens) if finished else (0.0, 0, 0))
    return finished, dict(failed)


def _get(ref: ray.ObjectRef, until: float) -> Any:
    return ray.get(ref, timeout=max(0.0, until - time.monotonic()))


def _same(one: Prepare, other: Prepare) -> bool:
    return (one.min_pixels, one.max_pixels) == (other.min_pixels, other.max_pixels)
