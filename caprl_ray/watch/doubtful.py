"""Store which rows sick replicas have handed on, as soon as it is known, whatever may end the driver then."""

import threading
from contextlib import suppress
from typing import Any

import ray

from caprl_ray.output import doubtful
from caprl_ray.output.folder import Output

POLL_S = 1.0


class DoubtfulRows:
    """Context manager around a run, with a thread that asks the counter."""

    def __init__(self, counter: Any, output: Output) -> None:
        self._counter, self._output = counter, output
        self._known = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="doubtful", daemon=True)

    def __enter__(self) -> "DoubtfulRows":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._store(timeout=10)

    def _work(self) -> None:
        while not self._ended.wait(POLL_S):
            self._store(timeout=10)

    def _store(self, timeout: float) -> None:
        """A fault of the storage shows at the next commit, and one of the counter ends the run."""
        with suppress(ray.exceptions.RayError, OSError):
            if ray.get(self._counter.doubtful.remote(), timeout=timeout) > self._known:
                rows = ray.get(self._counter.suspects.remote(), timeout=timeout)
                output = self._output
                doubtful.keep(output.storage, output.path, output.lease_number, rows, output.part_name)
                self._known = len(rows)
