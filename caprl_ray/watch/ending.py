"""End a run in good order when it is asked to stop: commit finished rows, and begin no others."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray

from caprl_ray.cluster.signals import Signals
from caprl_ray.errors import Stopped, StoppedByTerm
from caprl_ray.job import Job
from caprl_ray.recipe.sections import Recipe

POLL_S = 0.1
RESUME = "run the same command again to resume"
# Ray sets the first for submitted jobs. `ray job stop` waits for the second between SIGTERM and SIGKILL.
SUBMITTED, STOP_WAIT, STOP_WAIT_S = "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_JOB_STOP_WAIT_TIME_S", 3.0


class GracefulEnd:
    """Context manager that stops the run at the first signal, and calls `stop` when its time is over.

    Raises Stopped at its end if the run has ended so.
    """

    def __init__(self, counter: Any, job: Job, signals: Signals, stop: Callable[[Stopped], None]) -> None:
        self._counter, self._job, self._signals, self._stop_run = counter, job, signals, stop
        self._answered = signals.answered()
        self._ended = threading.Event()
        self._finished: int | None = None
        self._thread = threading.Thread(target=self._work, name="ending", daemon=True)

    def __enter__(self) -> "GracefulEnd":
        self._thread.start()
        self._answered.__enter__()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._answered.__exit__(None, None, None)
        self._ended.set()
        self._thread.join()
        with suppress(ray.exceptions.RayError):
            rows = self._counter.stop.remote()  # also at every other end: replicas wait for it
            self._finished = ray.get(rows, timeout=10) if kind is None else None
        if kind is None and self._signals.asked.is_set():
            raise self._stopped(f"stopped, with {self._said()} committed")

    def _work(self) -> None:
        while not self._signals.asked.is_set():
            if self._ended.wait(POLL_S):
                return
        seconds = grace_s(self._job.recipe, self._signals.first)
        deadline = time.monotonic() + seconds
        with suppress(ray.exceptions.RayError):
            self._finished = ray.get(self._counter.stop.remote(), timeout=seconds)
        again = "; press Ctrl-C again to stop at once" if self._signals.first == signal.SIGINT else ""
        sys.stderr.write(f"caprl-ray: stopping: committing {self._said()}, for up to {seconds:g} s{again}.\n")
        sys.stderr.flush()
        if not self._ended.wait(max(0.0, deadline - time.monotonic())):
            late = f"stopped after {seconds:g} s; some of what was finished may not be committed"
            self._stop_run(self._stopped(late))

    def _said(self) -> str:
        """The rows that are committed, in words."""
        if self._finished is None:
            return f"the finished {self._job.noun}s"
        return f"the {self._finished:,} finished {self._job.noun}s of this run"

    def _stopped(self, sentence: str) -> Stopped:
        kind = Stopped if self._signals.first == signal.SIGINT else StoppedByTerm
        return kind(f"{sentence}; {RESUME}.")


def grace_s(recipe: Recipe, number: int | None) -> float:
    """The seconds that a run has after this signal: the recipe's, or less where Ray kills a submitted job sooner."""
    if number != signal.SIGTERM or SUBMITTED not in os.environ:
        return recipe.output.stop_s
    with suppress(ValueError):
        return min(recipe.output.stop_s, float(os.environ.get(STOP_WAIT, STOP_WAIT_S)))
    return min(recipe.output.stop_s, STOP_WAIT_S)
