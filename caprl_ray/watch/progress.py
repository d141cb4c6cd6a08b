"""The progress line of a run: done / planned, rate, failed rows and the time left."""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TextIO

import ray

from caprl_ray.job import Job
from caprl_ray.output.ledger import Ledger
from caprl_ray.rows.codes import ASKED_FOR

TERMINAL_SECONDS, PLAIN_SECONDS = 1.0, 15.0
CLEAR = "\r\x1b[K"  # clears the line on a terminal
ABSENT_S = 10.0  # a replica's process needs some seconds to start


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins: rows done before, how many of them failed, for how many of these the user asked, and planned
    rows if they are known."""

    done: int
    failed: int
    planned: int | None
    asked_for: int = 0

    @classmethod
    def of(cls, ledger: Ledger, limit: int | None, retried: Mapping[str, int] = MappingProxyType({})) -> "Start":
        """The start of a run that continues from `ledger`, retries the `retried` rows, given by the code that they
        failed with, and processes at most `limit`."""
        failed = ledger.failed - sum(retried.values())
        done = ledger.finished + failed
        planned = None if ledger.unknown else ledger.planned
        if limit is not None:
            planned = done + limit if planned is None else min(planned, done + limit)
        asked_for = ledger.asked_for - sum(retried.get(code, 0) for code in ASKED_FOR)
        return cls(done=done, failed=failed, planned=planned, asked_for=asked_for)

    @property
    def judged(self) -> tuple[int, int]:
        """The rows, and the failed ones of them, that say how the runs before went."""
        return self.done - self.asked_for, self.failed - self.asked_for


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of the line: what it counts, and what it says before the first row."""

    noun: str = "images"
    starting: str = "starting engines"
    replicas: bool = True

    @classmethod
    def of(cls, job: Job) -> "Words":
        """The words for a job."""
        starting = "starting engines" if job.has_replicas else "starting"
        return cls(noun=f"{job.noun}s", starting=starting, replicas=job.has_replicas)


class ProgressLine:
    """Context manager that writes the line from a thread: every second on a terminal, every 15 seconds elsewhere."""

    def __init__(
        self, counter: Any, start: Start | None = None, stream: TextIO = sys.stderr, words: Words | None = None
    ) -> None:
        self.start = start or Start(done=0, failed=0, planned=None)
        self.starting: Callable[[], str] | None = None
        """What is said before the first row, instead of the words for it."""
        self._counter = counter
        self._words = words or Words()
        self._stream = stream
        self._terminal = stream.isatty()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="progress", daemon=True)
        self._began: float | None = None
        self._told = 0

    def __enter__(self) -> "ProgressLine":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(ray.exceptions.RayError, AttributeError):  # without a counter in tests
            self._tell(ray.get(self._counter.notes.remote(), timeout=10))
        if self._terminal:
            self._stream.write("\n")

    def _work(self) -> None:
        while not self._stop.wait(TERMINAL_SECONDS if self._terminal else PLAIN_SECONDS):
            try:
                rows, failed, absent = ray.get(self._counter.read.remote(), timeout=10)
                self._tell(ray.get(self._counter.notes.remote(), timeout=10))
            except ray.exceptions.RayError:
                continue  # a missing line must not end the run; the fault shows elsewhere
            self._show(rows, sum(failed.values()), absent)

    def _tell(self, notes: list[str]) -> None:
        """Write the replicas' new notes."""
        for note in notes[self._told :]:
            self._stream.write(f"{CLEAR if self._terminal else ''}caprl-ray: {note}.\n")
        self._told = len(notes)

    def _show(self, rows: int, failed: int, absent: float = 0.0) -> None:
        now = time.monotonic()
        if rows and self._began is None:
            self._began = now  # the rate excludes the start of the engines
        starting = self.starting
        words = replace(self._words, starting=starting()) if starting else self._words
        line = describe(self.start, rows, failed, now - self._began if self._began else 0.0, absent, words)
        self._stream.write(f"{CLEAR}{line}" if self._terminal else f"{line}\n")
        self._stream.flush()


def describe(
    start: Start, rows: int, failed: int, seconds: float, absent: float = 0.0, words: Words | None = None
) -> str:
    """The line after `rows` new rows in `seconds`, without a replica for the last `absent` seconds."""
    words = words or Words()
    noun, done = words.noun, start.done + rows
    parts = [f"{done:,} / {start.planned:,} {noun}" if start.planned is not None else f"{done:,} {noun}"]
    rate = rows / seconds if seconds > 0 else 0.0
    if words.replicas and absent > ABSENT_S:
        parts.append(f"waiting for a replica's node, {_clock(absent)} so far")
    else:
        parts.append(f"{rate:,.1f} {noun}/s" if rate else words.starting if not rows else "running")
    parts.append(f"{start.failed + failed:,} failed")
    if rate and start.planned is not None:
        parts.append(f"ETA {_clock(max(0, start.planned - done) / rate)}")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
