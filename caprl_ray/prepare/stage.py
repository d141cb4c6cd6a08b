"""The prepare stage of the pipeline: decodes compressed images to pixels at the size that the model sees."""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from caprl_ray.cluster.attempts import current_task, earlier_attempts
from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.prepare.blank import BLANK, blank
from caprl_ray.prepare.decode import Limits, prepare
from caprl_ray.prepare.sandbox import Sandbox, limited, outcome
from caprl_ray.prepare.sizes import SizeRule
from caprl_ray.recipe.prepare import Prepare as PrepareSettings
from caprl_ray.rows.codes import UNFINISHED
from caprl_ray.rows.schema import SOURCE_FLAGS
from caprl_ray.rows.stage import Changes, run_stage

# Ray retries a task without limit. From the second attempt on, images are decoded in a child process. If the worker
# still dies, its node was preempted or lacks memory. The latter would repeat for ever, so give up after this many.
MOST_ATTEMPTS = 20
ASKED_S = 0.5  # seconds between two checks of a task whether the run is stopped


class Prepare:
    """Decodes and resizes a batch in a CPU worker, which is never the engine's process.

    The first attempt of a task decodes in the worker itself. The worker ends if an image takes longer than `timeout_s`.
    Later attempts decode in a child process that may die (docs/design.md, D11).
    """

    name = "prepare"
    needs = ("encoded", SOURCE_FLAGS.name)
    drops = ("encoded",)
    most_attempts = MOST_ATTEMPTS

    def __init__(self, rule: SizeRule, limits: PrepareSettings, counter: ActorHandle | None = None) -> None:
        bounds = Limits(max_bytes=limits.max_bytes, max_source_pixels=limits.max_source_pixels)
        self._decode = partial(prepare, rule=rule, limits=bounds)
        self._timeout_s = limits.timeout_s
        self._counter = counter
        self._task: tuple[str, int] | None = None
        self._stopping, self._asked = False, 0.0

    def __call__(self, table: pa.Table) -> pa.Table:
        """Prepare one batch."""
        began, size = time.monotonic(), table["encoded"].nbytes
        prepared = run_stage(self, table)
        if self._counter:
            self._counter.spent.remote(self.name, table.num_rows, time.monotonic() - began, size)
        return prepared

    def apply(self, rows: list[dict[str, Any]]) -> list[Changes | RowFailure]:
        """Prepare rows one after another, and flag blank ones. When the run is stopped, rows fail as UNFINISHED."""
        if self._stopped():
            return [RowFailure(UNFINISHED)] * len(rows)
        results = self._prepared(bytes(row["encoded"]) for row in rows)
        return [_marked(result, row) for result, row in zip(results, rows, strict=True)]

    def _stopped(self) -> bool:
        if self._counter and not self._stopping and time.monotonic() - self._asked > ASKED_S:
            self._stopping, self._asked = bool(ray.get(self._counter.stopping.remote())), time.monotonic()
        return self._stopping

    def _prepared(self, images: Iterator[bytes]) -> list[Changes | RowFailure]:
        attempt = self._attempt()
        if attempt is None:  # outside of a Ray task, for instance in preflight, nothing would retry it
            return [outcome(self._decode, image) for image in images]
        if attempt == 0:
            return [self._within_limit(image) for image in images]
        self._check(attempt)
        with Sandbox(self._decode, self._timeout_s) as sandbox:
            return [sandbox(image) for image in images]

    def _attempt(self) -> int | None:
        """The number of earlier attempts of this task; None outside of Ray's tasks. A task has several batches."""
        task = current_task()
        if task is None:
            return None
        if self._task is None or self._task[0] != task:
            self._task = task, earlier_attempts(task, self._counter)
        return self._task[1]

    def _within_limit(self, image: bytes) -> Changes | RowFailure:
        with limited(self._timeout_s):
            return outcome(self._decode, image)

    def _check(self, attempt: int) -> None:
        if attempt >= self.most_attempts:
            raise SystemFailure(
                f"prepare: the worker of one task ended {attempt} times, though its images were decoded in a process "
                "of their own; look for nodes that lack memory, and run again to resume."
            )


def _marked(result: Changes | RowFailure, row: dict[str, Any]) -> Changes | RowFailure:
    if isinstance(result, RowFailure) or not blank(result["pixels"], result["pixel_width"]):
        return result
    return result | {SOURCE_FLAGS.name: [*(row.get(SOURCE_FLAGS.name) or ()), BLANK]}
