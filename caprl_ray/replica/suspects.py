"""The finished rows of a replica that become doubtful when a fault is found."""

import collections
import threading

import pyarrow as pa

# Enough for a very fast replica (ten thousand images a minute): self checks are a few minutes apart.
MOST = 2**16

Identity = tuple[int, int]


class Sick(Exception):
    """The captions of this replica cannot be trusted; the text says why."""


class Suspects:
    """The latest rows of finished batches, as (unit, index): all since the last self check that passed, and at least
    the `window` in which captions are judged (caption/health.py)."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._rows: collections.deque[Identity] = collections.deque(maxlen=max(MOST, window))
        self._lock = threading.Lock()
        self._closed = False

    def add(self, rows: pa.Table) -> bool:
        """Add a finished batch. Returns whether it may be returned to Ray: not after a fault."""
        with self._lock:
            if not self._closed:
                self._rows.extend(zip(rows["unit"].to_pylist(), rows["index"].to_pylist(), strict=True))
            return not self._closed

    def passed(self) -> None:
        """The replica has passed a self check."""
        with self._lock:
            while len(self._rows) > self._window:
                self._rows.popleft()

    def close(self) -> list[Identity]:
        """Report a fault. Returns the doubtful rows. No batch is returned to Ray from now on."""
        with self._lock:
            self._closed = True
            return list(self._rows)
