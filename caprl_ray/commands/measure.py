"""Measure one replica on a sample of images, repeatedly and with as many batches in flight as in a run."""

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from caprl_ray.caption.stage import Captioner
from caprl_ray.cluster import resources
from caprl_ray.commands.estimate import Estimate, steady
from caprl_ray.engines import concurrency
from caprl_ray.models.resolve import ModelRef
from caprl_ray.prepare.stage import Prepare
from caprl_ray.recipe.sections import Recipe
from caprl_ray.watch.breaker import await_replica
from caprl_ray.watch.counter import Counter

POLL_S = 1.0


@dataclass(kw_only=True)
class Measured:
    """The measurement of one replica.

    `captioned` are the first results of each block that it has finished, by number. `finished` are the blocks in order,
    some several times: when each was finished, in seconds, its rows and its tokens.
    """

    start_s: float
    arguments: dict[str, Any]
    captioned: dict[int, pa.Table] = field(default_factory=dict)
    finished: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def _timed(self) -> list[tuple[float, int, int]]:
        """The measured blocks, with times since the warm-up, the first at zero. The first block is the warm-up, unless
        it is the only one."""
        first = self.finished[0] if len(self.finished) > 1 else (0.0, 0, 0)
        rest = self.finished[1:] if len(self.finished) > 1 else self.finished
        return [(0.0, 0, 0), *((when - first[0], rows, tokens) for when, rows, tokens in rest)]

    @property
    def seconds(self) -> float:
        """How long it was measured."""
        return self._timed[-1][0]

    @property
    def images_s(self) -> Estimate:
        """Images/s."""
        times, rows, _ = zip(*self._timed, strict=True)
        return steady(times, rows)

    @property
    def tokens_s(self) -> Estimate:
        """Tokens of captions/s."""
        times, _, tokens = zip(*self._timed, strict=True)
        return steady(times, tokens)


def prepared(recipe: Recipe, model: ModelRef, images: pa.Table) -> tuple[list[ray.ObjectRef], float]:
    """The images as blocks of pixels in the object store, each one batch, and the images/s of one core."""
    size = resources.batch_rows(model.size_rule.max_pixels)
    prepare = Prepare(model.size_rule, recipe.prepare)
    task = ray.remote(num_cpus=1, num_returns=2, max_retries=0)(_prepare)
    blocks = [task.remote(prepare, images.slice(start, size)) for start in range(0, images.num_rows, size)]
    seconds = sum(ray.get([block[1] for block in blocks]))
    return [block[0] for block in blocks], images.num_rows / seconds


def _prepare(prepare: Prepare, images: pa.Table) -> tuple[pa.Table, float]:
    began = time.process_time()
    return prepare(images), time.process_time() - began


def measure(
    recipe: Recipe, model: ModelRef, blocks: Sequence[ray.ObjectRef], seconds: float, *, whole: bool = False
) -> Measured:
    """Caption the blocks again and again, for `seconds` after the first one is done; `whole` waits for each once.

    Raises SystemFailure if the engine does not start, stops captioning, or has no node.
    """
    counter = resources.beside_driver(Counter)
    in_flight = concurrency.batches_in_flight(recipe, resources.batch_rows(model.size_rule.max_pixels))
    actor = ray.remote(**resources.replica_resources(recipe), max_concurrency=in_flight)(Captioner)
    began = time.monotonic()
    replica = actor.remote(recipe, model, counter, replaced=False)
    try:
        await_replica(counter, recipe.replicas)
        ray.get(replica.__call__.remote(ray.get(blocks[0]).slice(0, 0)))  # reports an engine that did not start
        found = Measured(start_s=time.monotonic() - began, arguments=ray.get(replica.engine_arguments.remote()))
        _loop(replica, blocks, in_flight, seconds, found, len(blocks) if whole else 1)
        return found
    finally:
        ray.kill(replica)


def _loop(
    replica: Any, blocks: Sequence[ray.ObjectRef], in_flight: int, seconds: float, found: Measured, least: int
) -> None:
    """Keep `in_flight` batches in flight, until the time is over and `least` blocks are done."""
    numbers = itertools.cycle(range(len(blocks)))
    under_way: dict[ray.ObjectRef, int] = {}
    began, end = time.monotonic(), math.inf
    while len(found.captioned) < least or time.monotonic() < end:
        for number in itertools.islice(numbers, in_flight - len(under_way)):
            under_way[replica.__call__.remote(blocks[number])] = number
        ready, _ = ray.wait(list(under_way), num_returns=1, timeout=POLL_S)
        for ref in ready:
            rows, number, now = ray.get(ref), under_way.pop(ref), time.monotonic()
            found.captioned.setdefault(number, rows)
            tokens = sum(filter(None, rows["caption_tokens"].to_pylist()))
            found.finished.append((now - began, rows.num_rows, tokens))
            end = min(end, now + seconds)
