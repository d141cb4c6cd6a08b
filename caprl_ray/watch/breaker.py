"""The circuit breaker stops a run in which too many rows fail, or that has no replica for too long."""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import ray

from caprl_ray.errors import CaprlError, SystemFailure, TooManyFailures
from caprl_ray.job import Job
from caprl_ray.recipe.output import Failures
from caprl_ray.recipe.replicas import Replicas

POLL_S = 1.0
# Seconds for processing and writing the rows that were already read, before the run is interrupted.
DRAIN_S = 60.0
SHOWN_REASONS = 3
# Finished rows of earlier runs count in favour of this run, but at most this many times `failures.min_rows`, because a
# system that worked then may be broken now. With the default, a last shard of ten thousand bad images does not stop a
# run.
HELD_OVER_MIN = 50


class SickReplicas(TooManyFailures):
    """The captions of the replicas cannot be trusted (watch/sick.py), so they must not be written."""


class CircuitBreaker:
    """Context manager that watches a run's counter and calls `stop` when a limit of the recipe is exceeded."""

    def __init__(self, counter: Any, job: Job, stop: Callable[[CaprlError], None]) -> None:
        self._counter = counter
        self._job = job
        self._stop_run = stop
        self._allowance = 0.0
        self.ignored: Collection[str] = ()
        """Codes of failed rows that say nothing of the run."""
        self._tripped: TooManyFailures | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="breaker", daemon=True)

    def __enter__(self) -> "CircuitBreaker":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Check once more, for a run that was faster than the polls. Raises TooManyFailures."""
        self._ended.set()
        self._thread.join()
        if kind is None and self._tripped:
            raise self._tripped
        if kind is None:
            with suppress(ray.exceptions.RayError):
                error = self._look()[0]
                if error:
                    raise error

    def allow_for(self, held: int, failed: int) -> None:
        """Set the numbers of rows and of failed rows from earlier runs."""
        self._allowance = allowance(held, failed, self._job.recipe.failures)

    def _work(self) -> None:
        while not self._ended.wait(POLL_S):
            try:
                error, absent = self._look()
            except ray.exceptions.RayError:
                continue  # ask again in a second
            if error is None and self._job.has_replicas:
                error = without_replica(absent, self._job.recipe.replicas) or self._without_reader()
            if isinstance(error, TooManyFailures) and not isinstance(error, SickReplicas) and self._drained(error):
                return
            if error:
                self._stop_run(error)
                return

    def _without_reader(self) -> SystemFailure | None:
        """The error that ends a run whose further pools have had no replica for too long."""
        for name, recipe in self._job.readers.items():
            with suppress(ray.exceptions.RayError):
                seconds = ray.get(self._counter.absent.remote(name), timeout=10)
                if failure := without_replica(seconds, recipe.replicas, f"{name}."):
                    return failure
        return None

    def _drained(self, error: TooManyFailures) -> bool:
        """Stop reading. Returns whether the run has then ended by itself, with all rows that were read written."""
        self._tripped = error
        with suppress(ray.exceptions.RayError):
            ray.get(self._counter.close.remote(), timeout=10)
        return self._ended.wait(DRAIN_S)

    def _look(self) -> tuple[CaprlError | None, float]:
        """The error that ends the run, if any, and the seconds without a replica."""
        (rows, failed), (retried, anew), absent, sick = ray.get(self._counter.judged.remote(), timeout=10)
        scored, unscored = ray.get(self._counter.scored.remote(), timeout=10)
        if sick:
            return SickReplicas(f"{sick}; {UNTRUSTED}"), absent
        rows -= sum(failed.pop(code, 0) for code in self.ignored)
        limits = self._job.recipe.failures
        error = (
            tripped(rows, failed, limits, self._allowance)
            or tripped(retried, anew, limits, of=RETRIED)
            or tripped(scored, unscored, limits, of=UNSCORED, afterwards=SCORED_AGAIN)
        )
        return error, absent


UNTRUSTED = (
    "written rows stay. Remove a broken node from the cluster, or correct model, prompt or sampling, and run the same "
    "command again."
)
AFTERWARDS = "written rows stay. Remove the cause and run again with --retry-failed, or allow more."
# Captions without a score are finished rows, so that --retry-failed leaves them.
SCORED_AGAIN = (
    "written rows stay. Remove the cause, or allow more, and run the same command again; then score these captions "
    'with caprl-ray score, or write new ones with --again "score_code in ({codes})".'
)
NEW = "{failures} of the first {rows} rows failed"
UNSCORED = "{failures} of the first {rows} captions with questions could not be scored"
RETRIED = "of {rows} retried rows that did not fail as before, {failures} failed for another reason"


def allowance(held: int, failed: int, limits: Failures) -> float:
    """The extra failures that a run may have, because fewer rows failed before it.

    Never negative: a run is not stopped for the failures of earlier runs.
    """
    spare = limits.max_fraction * held - failed
    return max(0.0, min(spare, limits.max_fraction * HELD_OVER_MIN * limits.min_rows))


def tripped(
    rows: int,
    failed: Mapping[str, int],
    limits: Failures,
    allowance: float = 0.0,
    of: str = NEW,
    afterwards: str = AFTERWARDS,
) -> TooManyFailures | None:
    """The error that ends a run with `rows` processed rows and `failed` rows by code; None while within its limits."""
    failures = sum(failed.values())
    if rows < limits.min_rows or failures <= limits.max_fraction * rows + allowance:
        return None
    top = sorted(failed, key=lambda code: (-failed[code], code))[:SHOWN_REASONS]
    return TooManyFailures(
        f"failures.max_fraction: {of.format(failures=failures, rows=rows)}, more than {limits.max_fraction:g} allows "
        f"({', '.join(f'{code} {failed[code]}' for code in top)}); "
        f"{afterwards.format(codes=', '.join(map(repr, sorted(failed))))}"
    )


def await_replica(counter: Any, replicas: Replicas) -> None:
    """Wait until a replica has its GPUs. Raises SystemFailure after `replicas.wait_s`, because Ray itself would wait
    for ever."""
    while absent := ray.get(counter.awaited.remote()):
        failure = without_replica(absent, replicas)
        if failure:
            raise failure
        time.sleep(POLL_S)


def without_replica(seconds: float, replicas: Replicas, section: str = "") -> SystemFailure | None:
    """The error that ends a run that has had no replica for `seconds`; None while it may wait. `section` comes before
    the names of fields."""
    if seconds <= replicas.wait_s:
        return None
    kind = f" {replicas.accelerator_type}" if replicas.accelerator_type else ""
    return SystemFailure(
        f"{section}replicas.wait_s: no node had room for a replica ({replicas.gpus:g}{kind} GPUs) for "
        f"{replicas.wait_s:g} seconds; make sure that such nodes can start, or raise the limit, and run the same "
        "command again to resume."
    )
