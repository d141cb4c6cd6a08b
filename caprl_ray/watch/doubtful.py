"""Store which rows sick replicas have handed on, as soon as it is known, whatever may end the driver then."""

import threading
from contextlib import suppress

import ray

from caprl_ray.output import doubtful
from caprl_ray.output.folder import Output
from caprl_ray.watch.look import Look

POLL_S = 1.0


class DoubtfulRows:
    """Context manager around a run, with a thread that looks every second."""

    def __init__(self, look: Look, output: Output) -> None:
        self._look, self._output = look, output
        self._known = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="doubtful", daemon=True)

    def __enter__(self) -> "DoubtfulRows":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._store(fresh=True)

    def _work(self) -> None:
        while not self._ended.wait(POLL_S):
            self._store()

    def _store(self, *, fresh: bool = False) -> None:
        """A fault of the storage shows at the next commit, and one of the counter ends the run."""
        with suppress(ray.exceptions.RayError, OSError):
            if self._look(fresh=fresh).doubtful > self._known:
                rows = ray.get(self._look.counter.suspects.remote(), timeout=10)
                output = self._output
                doubtful.keep(output.storage, output.path, output.lease_number, rows, output.part_name)
                self._known = len(rows)
