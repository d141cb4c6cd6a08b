"""What the counter says to those in the driver that watch a run, asked once for all of them.

Each of them looks once a second. A question to an actor costs the driver about as much as a batch does in Ray's loop.
"""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle

from caprl_ray.watch.record import Record
from caprl_ray.watch.starts import Pool

FRESH_S = 0.5  # half of the time between two looks: nobody sees the same counts twice
TIMEOUT_S = 10.0

Failed = tuple[int, Mapping[str, int]]
"""Rows, and failed rows among them by code."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One answer of the counter.

    Attributes:
        record, notes: what is shown.
        new, retried, unscored: what the circuit breaker judges.
        fault: why captions cannot be trusted, if so.
        pools, absent: the replicas of each pool, and the seconds for which it has had none.
        doubtful: rows that sick replicas have handed on.
    """

    record: Record
    notes: Sequence[str]
    new: Failed
    retried: Failed
    unscored: Failed
    fault: str | None
    pools: Mapping[str, Pool]
    absent: Mapping[str, float]
    doubtful: int


class Look:
    """Asks the counter. `least` are the replicas that each pool should have."""

    def __init__(self, counter: ActorHandle, least: Mapping[str, int]) -> None:
        self.counter = counter
        self._least = dict(least)
        self._lock = threading.Lock()
        self._began = self._ended = -math.inf
        self._told: Future[Seen] = Future()

    def __call__(self, *, fresh: bool = False) -> Seen:
        """What the counter says, or said less than FRESH_S ago. Raises RayError if it does not answer."""
        now = time.monotonic()
        with self._lock:  # those who wait here share the answer, or the error
            if self._began < now if fresh else self._ended < now - FRESH_S:
                self._told = self._ask()
            told = self._told
        return told.result()

    def _ask(self) -> "Future[Seen]":
        told: Future[Seen] = Future()
        self._began = time.monotonic()
        try:
            told.set_result(ray.get(self.counter.seen.remote(self._least), timeout=TIMEOUT_S))
        except ray.exceptions.RayError as error:
            told.set_exception(error)
        self._ended = time.monotonic()
        return told
