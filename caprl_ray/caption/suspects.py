"""Which rows a replica has handed on that a fault, once it is seen, makes doubtful."""

import collections
import threading

import pyarrow as pa

# Ten thousand images a minute would be a very fast replica; a self check is due every few minutes.
MOST = 2**16

Identity = tuple[int, int]


class Suspects:
    """The latest rows of finished batches, as (unit, index): all since the last self check that passed, and at least
    the `window` in which captions are judged (caption/health.py)."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._rows: collections.deque[Identity] = collections.deque(maxlen=max(MOST, window))
        self._lock = threading.Lock()

    def add(self, rows: pa.Table) -> None:
        """A batch is done."""
        with self._lock:
            self._rows.extend(zip(rows["unit"].to_pylist(), rows["index"].to_pylist(), strict=True))

    def passed(self) -> None:
        """The replica has passed a self check."""
        with self._lock:
            while len(self._rows) > self._window:
                self._rows.popleft()

    def rows(self) -> list[Identity]:
        """The rows that are doubtful if there is a fault now."""
        with self._lock:
            return list(self._rows)
