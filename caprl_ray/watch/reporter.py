"""Report the state of a run from the driver: on the screen, in status.json, and as metrics. One thread asks the
counter."""

import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

import ray

from caprl_ray.cluster import local
from caprl_ray.output.folder import Output
from caprl_ray.output.holder import now
from caprl_ray.watch.metrics import Metrics
from caprl_ray.watch.rates import FIVE_MINUTES_S, rates
from caprl_ray.watch.record import Record
from caprl_ray.watch.screen import Screen, screen
from caprl_ray.watch.start import Start
from caprl_ray.watch.status import RUNNING, Status
from caprl_ray.watch.status_file import StatusFile, run_of
from caprl_ray.watch.words import clock

TICK_S = 1.0
ABSENT_S = 10.0  # a replica's process needs some seconds to start


class Reporter:
    """Context manager around a run. Its faults never end the run."""

    def __init__(self, counter: Any, output: Output, *, debug: bool = False, stream: TextIO | None = None) -> None:
        self.start: Start | None = None
        """Where the run begins; None until the input is listed."""
        self.starting: Callable[[], str] | None = None
        """What is said before the first row, instead of the words for it."""
        self._counter, self._run = counter, run_of(output)
        self._screen: Screen = screen(stream or sys.stderr, debug=debug)
        self._file = StatusFile(output)
        # Ray on this machine alone has nobody who collects them (cluster/local.py).
        self._metrics = None if local.connected() else Metrics()
        self._history: deque[Record] = deque()
        self._told = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="status", daemon=True)

    def __enter__(self) -> "Reporter":
        self._screen.begin()
        self._file.begin()
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._tell(ended=_reason(error))
        finally:
            self._screen.end()
            self._file.end()

    def _work(self) -> None:
        while not self._stop.wait(TICK_S):
            self._tell()

    def _tell(self, ended: str | None = None) -> None:
        """Ask the counter and tell what it says. `ended` is given once, at the end."""
        with suppress(ray.exceptions.RayError, OSError, ValueError):  # a fault shows elsewhere; a closed terminal
            record = ray.get(self._counter.record.remote(), timeout=10)
            notes = ray.get(self._counter.notes.remote(), timeout=10)
            for note in notes[self._told :]:
                self._screen.note(note)
            self._told = len(notes)
            status = self._status(record, ended)
            self._file.write(status)
            if self._metrics:
                self._metrics.tell(status)
            self._screen.show(status, last=ended is not None)

    def _status(self, record: Record, ended: str | None) -> Status:
        history = self._history
        if history and record.seconds < history[-1].seconds:
            history.clear()  # Ray has restarted the counter
        history.append(record)
        while history[0].seconds < record.seconds - FIVE_MINUTES_S - 2 * TICK_S:
            history.popleft()
        start = self.start
        return Status(
            run=self._run,
            at=now().isoformat(timespec="seconds"),
            phase=self._phase(record),
            before=start.done if start else 0,
            failed_before=start.failed if start else 0,
            rates=rates(start, history),
            record=record,
            ended=ended,
        )

    def _phase(self, record: Record) -> str:
        if self._run.gpus is not None and record.absent > ABSENT_S:
            return f"waiting for a replica's node, {clock(record.absent)} so far"
        if record.first:
            return RUNNING
        if starting := self.starting:
            return starting()
        if record.ready is not None:
            return "engines run, no batch is done yet"
        return "starting engines" if self._run.gpus is not None else "starting"


def _reason(error: BaseException | None) -> str:
    if error is None:
        return ""
    return str(error) if str(error) and isinstance(error, Exception) else "interrupted"
