"""The circuit breaker stops a run in which too many rows fail, or that has no replica for too long."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import ray

from caprl_ray.errors import CaprlError, SystemFailure, TooManyFailures
from caprl_ray.job import Job
from caprl_ray.recipe.sections import Failures, Replicas

POLL_S = 1.0
SHOWN_REASONS = 3


class CircuitBreaker:
    """Context manager that watches a run's counter and calls `stop` when a limit of the recipe is exceeded."""

    def __init__(self, counter: Any, job: Job, stop: Callable[[CaprlError], None]) -> None:
        self._counter = counter
        self._job = job
        self._stop_run = stop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="breaker", daemon=True)

    def __enter__(self) -> "CircuitBreaker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ended.wait(POLL_S):
            try:
                rows, failed, absent = ray.get(self._counter.read.remote(), timeout=10)
            except ray.exceptions.RayError:
                continue  # ask again in a second
            error: CaprlError | None = tripped(rows, failed, self._job.recipe.failures)
            if error is None and self._job.has_replicas:
                error = without_replica(absent, self._job.recipe.replicas)
            if error:
                self._stop_run(error)
                return


def tripped(rows: int, failed: Mapping[str, int], limits: Failures) -> TooManyFailures | None:
    """The error that ends a run with `rows` processed rows and `failed` rows by code; None while within its limits."""
    failures = sum(failed.values())
    if rows < limits.min_rows or failures <= limits.max_fraction * rows:
        return None
    top = sorted(failed, key=lambda code: (-failed[code], code))[:SHOWN_REASONS]
    return TooManyFailures(
        f"failures.max_fraction: {failures} of the first {rows} rows failed, more than {limits.max_fraction:g} "
        f"({', '.join(f'{code} {failed[code]}' for code in top)}); the rows so far are kept. Mend the cause and run "
        "again with --retry-failed, or allow more."
    )


def without_replica(seconds: float, replicas: Replicas) -> SystemFailure | None:
    """The error that ends a run that has had no replica for `seconds`; None while it may wait."""
    if seconds <= replicas.wait_s:
        return None
    kind = f" {replicas.accelerator_type}" if replicas.accelerator_type else ""
    return SystemFailure(
        f"replicas.wait_s: no node had room for a replica ({replicas.gpus:g}{kind} GPUs) for {replicas.wait_s:g} "
        "seconds; see that such nodes can come, or wait longer, and run the same command again to resume."
    )
