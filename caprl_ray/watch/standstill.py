"""Stop a run in which no row is done for too long, where Ray Data's own guard is off (read/while_planning.py)."""

import math
import threading
import time
from collections.abc import Callable

import ray

from caprl_ray.cluster import failures, session
from caprl_ray.errors import CaprlError
from caprl_ray.job import Job
from caprl_ray.watch.look import Look

POLL_S = 5.0


class StandstillGuard:
    """Context manager that watches a run's counts once rows are expected, and calls `stop` after too long without."""

    def __init__(self, look: Look, job: Job, stop: Callable[[CaprlError], None]) -> None:
        self._look = look
        self._job = job
        self._stop_run = stop
        self._standstill = Standstill()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="standstill", daemon=True)

    def __enter__(self) -> "StandstillGuard":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def expect_rows(self) -> None:
        """Rows are expected from now on: the input is listed."""
        self._standstill.expect(time.monotonic())

    def _work(self) -> None:
        while not self._ended.wait(POLL_S):
            try:
                rows = self._look().record.rows
            except ray.exceptions.RayError:
                continue  # ask again
            if self._standstill.seconds(rows, time.monotonic()) > session.no_progress_s(self._job):
                self._stop_run(failures.no_progress())
                return


class Standstill:
    """How long no row has been done although rows are expected."""

    def __init__(self) -> None:
        self._rows, self._since = 0, math.inf

    def expect(self, now: float) -> None:
        """Rows are expected from now on."""
        self._since = now

    def seconds(self, rows: int, now: float) -> float:
        """The seconds since the number of rows last changed; none while no rows are expected."""
        if rows != self._rows:
            self._rows, self._since = rows, max(now, self._since)
        return max(0.0, now - self._since)
