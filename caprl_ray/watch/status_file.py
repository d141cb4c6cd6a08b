"""Write status.json, for `caprl-ray status` on other machines and for the history in reports."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime

from caprl_ray.errors import RecipeError
from caprl_ray.output.folder import Output
from caprl_ray.output.holder import now
from caprl_ray.output.ledger import Ledger
from caprl_ray.storage import Storage
from caprl_ray.watch import history
from caprl_ray.watch.history import Point, Points
from caprl_ray.watch.rates import Rates
from caprl_ray.watch.record import Record
from caprl_ray.watch.status import NotAStatus, Run, Status, place

EVERY_S = 30.0
END_S = 15.0  # the last write may take so long


class StatusFile:
    """Writes the latest status every 30 seconds, from a thread: storage may be slow, and the run must not wait.

    The history of the output's earlier runs stays in it; of a file that cannot be read, it is lost.

    What cannot be written is left out: a storage that does not work ends the run elsewhere.
    """

    def __init__(self, output: Output) -> None:
        self._storage, self._path, self._lease = output.storage, place(output.path, output.part), output.lease
        self._latest: Status | None = None
        self._points: Points | None = None  # of the earlier runs, too; None before the first one is written
        self._there, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="status file", daemon=True)

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def write(self, status: Status) -> None:
        """Give the status that is written next."""
        self._latest = status
        self._there.set()

    def end(self) -> None:
        """Write the last status and end the thread."""
        self._ended.set()
        self._there.set()
        self._thread.join(END_S)

    def put(self) -> None:
        """Write the latest status, and with it the history."""
        status = self._latest
        if status is None or (self._lease and self._lease.lost):  # another run's status may stand there
            return
        if self._points is None:
            self._points = written(self._storage, self._path)
        self._points = history.added(self._points, point(status))
        with suppress(OSError):
            self._storage.put(self._path, content(status, self._points))

    def _work(self) -> None:
        self._there.wait()
        while True:
            last = self._ended.is_set()
            self.put()
            if last:
                return
            self._ended.wait(EVERY_S)


@contextmanager
def end_told(output: Output) -> Iterator[None]:
    """Write the reason for the end of the block into the run's last status, also if it ends before its first row or
    after its last.

    The status of an earlier run is kept if this run is refused before it has one, or if the output is complete, because
    it has the cost of that run.
    """
    try:
        yield
    except Exception as error:
        writing = threading.Thread(target=_tell_end, args=(output, error), name="status end", daemon=True)
        writing.start()
        writing.join(END_S)
        raise


def _tell_end(output: Output, error: Exception) -> None:
    storage, path, lease = output.storage, place(output.path, output.part), output.lease
    with suppress(OSError):
        told, own = _last(output), run_of(output)
        if not lease or lease.lost:
            return
        if told is None or told.run.lease != own.lease:
            if told or output.empty() if isinstance(error, RecipeError) else told and output.marked():
                return
            told = _nothing_done(own, told)
        if told.ended != str(error):
            storage.put(path, content(replace(told, ended=str(error)), written(storage, path)))


def nothing_to_do(output: Output, found: Ledger) -> None:
    """Write the status of a part of which every row was done before this run, perhaps not by the part's own drivers, so
    that the sum of all parts has these rows. What its last run did and cost stays in it."""
    with suppress(OSError):
        told = _last(output) or _nothing_done(run_of(output), None)
        status = replace(
            told,
            at=now().isoformat(timespec="seconds"),
            before=found.finished + found.failed - told.record.rows,
            failed_before=found.failed - told.record.failures,
            rates=replace(told.rates, planned=found.planned, exact=True, eta_s=None),
            ended="",
        )
        path = place(output.path, output.part)
        output.storage.put(path, content(status, written(output.storage, path)))


def _last(output: Output) -> Status | None:
    """The last written status, of this run or an earlier one."""
    with suppress(FileNotFoundError, NotADirectoryError, NotAStatus):
        return Status.parse(output.storage.read(place(output.path, output.part)))
    return None


def _nothing_done(run: Run, earlier: Status | None) -> Status:
    """The status of a run that has done nothing yet."""
    return Status(
        run=run,
        at=now().isoformat(timespec="seconds"),
        phase="starting",
        before=earlier.done if earlier else 0,
        failed_before=earlier.failed if earlier else 0,
        rates=Rates(),
        record=Record(),
    )


def run_of(output: Output) -> Run:
    """The constant facts of the run that writes an output."""
    job, holder = output.job, output.lease.holder if output.lease else None
    return Run(
        job=job.name,
        done=job.done,
        noun=f"{job.noun}s",
        output=output.path,
        run=holder.run if holder else None,
        lease=holder.number if holder else None,
        part=str(output.part or ""),
        driver=f"process {holder.pid} on {holder.host}" if holder else "",
        gpus=job.recipe.replicas.gpus if job.has_replicas else None,
        price=job.recipe.replicas.price,
        reader_gpus={name: recipe.replicas.gpus for name, recipe in job.readers.items()},
        reader_price={
            name: recipe.replicas.price for name, recipe in job.readers.items() if recipe.replicas.price is not None
        },
    )


def content(status: Status, points: Points) -> bytes:
    """The content of status.json."""
    return json.dumps({**status.plain(), "history": history.plain(points)}).encode() + b"\n"


def point(status: Status) -> Point:
    """A status as a point of the history."""
    return Point(
        at=int(datetime.fromisoformat(status.at).timestamp()),
        lease=status.run.lease or 0,
        done=status.done,
        failed=status.failed,
        replicas=status.record.replicas.running,
    )


def written(storage: Storage, path: str) -> Points:
    """The history in a status.json; none if there is none that can be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return history.parse(json.loads(storage.read(path))["history"])
    return ()
