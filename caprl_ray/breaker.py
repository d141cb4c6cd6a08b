"""The circuit breaker: a run in which too many rows fail is stopped before it spends a night on them."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import ray

from caprl_ray.errors import CaprlError, TooManyFailures
from caprl_ray.recipe import Failures

POLL_S = 1.0
SHOWN_REASONS = 3


class CircuitBreaker:
    """Context manager that watches a run's counter and calls `stop` when the limits are passed."""

    def __init__(self, counter: Any, limits: Failures, stop: Callable[[CaprlError], None]) -> None:
        self._counter = counter
        self._limits = limits
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
                rows, failed = ray.get(self._counter.read.remote(), timeout=10)
            except ray.exceptions.RayError:
                continue  # asked again in a second
            error = tripped(rows, failed, self._limits)
            if error:
                self._stop_run(error)
                return


def tripped(rows: int, failed: Mapping[str, int], limits: Failures) -> TooManyFailures | None:
    """The end of a run of which `rows` rows are through, `failed` by code; None while it is within its limits."""
    failures = sum(failed.values())
    if rows < limits.min_rows or failures <= limits.max_fraction * rows:
        return None
    top = sorted(failed, key=lambda code: (-failed[code], code))[:SHOWN_REASONS]
    return TooManyFailures(
        f"failures.max_fraction: {failures} of the first {rows} rows failed, more than {limits.max_fraction:g} "
        f"({', '.join(f'{code} {failed[code]}' for code in top)}); the rows so far are kept. Mend the cause and run "
        "again with --retry-failed, or allow more."
    )
