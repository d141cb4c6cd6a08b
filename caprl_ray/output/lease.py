"""The lease: one driver at a time writes an output. A second driver is told who holds it and until when.

An object in the output names the holder. It is created only if there is none, and replaced only at the version that was
read (conditional writes), so that one of two drivers wins. The holder renews it. Another driver takes over a lease that
was not renewed for EXPIRY_S, or whose holder was a process of this machine that has ended.
"""

import errno
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil

from caprl_ray.cluster.interrupt import interruptible
from caprl_ray.errors import CaprlError, RecipeError, SystemFailure
from caprl_ray.storage import SourceChanged, Storage, Stored, join

T = TypeVar("T")

NAME = "lease.json"
# A holder that pauses for less than EXPIRY_S - RENEWAL_S keeps its lease. The clocks of two machines may differ by
# less.
RENEWAL_S, EXPIRY_S = 20.0, 90.0


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The driver that writes. `run` is unique; `boot` tells whether `pid` is a process of this machine."""

    run: str
    host: str
    boot: str
    pid: int
    started: float
    until: str

    @classmethod
    def this_process(cls) -> "Holder":
        """A new holder for this process."""
        started = psutil.Process().create_time()
        return cls(
            run=uuid.uuid4().hex, host=socket.gethostname(), boot=_boot(), pid=os.getpid(), started=started, until=""
        )

    @property
    def expired(self) -> bool:
        """Whether the lease was not renewed in time, or its process is known to have ended."""
        return datetime.fromisoformat(self.until) < datetime.now(UTC) or self._gone

    @property
    def _gone(self) -> bool:
        if self.boot != _boot():
            return False
        try:
            return bool(psutil.Process(self.pid).create_time() != self.started)
        except psutil.NoSuchProcess:
            return True

    def renewed(self) -> bytes:
        """The content of the lease with a new end."""
        until = datetime.now(UTC) + timedelta(seconds=EXPIRY_S)
        return json.dumps(asdict(replace(self, until=until.isoformat(timespec="seconds"))), indent=1).encode()


@contextmanager
def held(storage: Storage, output: str) -> Iterator[None]:
    """Hold the output's lease, renew it from a thread, and release it.

    Raises RecipeError if another driver holds it, and SystemFailure if it cannot be written or was lost. When it is
    lost, the main thread is interrupted, because another driver may be writing.
    """
    holder = Holder.this_process()
    try:
        stored = _take(storage, join(output, NAME), holder)
    except OSError as error:
        raise SystemFailure(f"output.path: the lease in {output} cannot be written ({error.strerror}).") from error
    with interruptible() as stop:
        renewal = _Renewal(storage, stored, holder, stop)
        renewal.start()
        try:
            yield
        finally:
            renewal.stop()


def _take(storage: Storage, path: str, holder: Holder) -> Stored:
    try:
        return storage.create(path, holder.renewed())
    except FileExistsError:
        pass
    found = storage.lookup(path)
    if not isinstance(found, Stored):  # released just now
        return storage.create(path, holder.renewed())
    try:
        other = _read(storage, found)
        if other is not None and other.run == holder.run:  # the write succeeded and its answer was lost
            return found
        if other is None or other.expired:
            return storage.replace(found, holder.renewed())
    except (SourceChanged, FileNotFoundError):
        raise RecipeError(f"output.path: another run has just begun or ended at {path}; try again.") from None
    raise RecipeError(
        f"output.path: process {other.pid} on {other.host} is writing here and holds the output until {other.until}; "
        "wait for it or stop it. If it died, the next run can start at that time."
    )


def _read(storage: Storage, stored: Stored) -> Holder | None:
    """The holder that a lease names; None for content that is not ours."""
    with storage.open(stored) as stream:
        content = stream.read()
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


class _Renewal:
    """The thread that renews a lease, and stops the run when it cannot."""

    def __init__(
        self, storage: Storage, stored: Stored, holder: Holder, stop_run: Callable[[CaprlError], None]
    ) -> None:
        self._storage = storage
        self._stored = stored
        self._holder = holder
        self._stop_run = stop_run
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lease", daemon=True)
        self._lost = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and release the lease if it is still ours."""
        self._ended.set()
        self._thread.join()
        if not self._lost:
            with suppress(OSError):  # the lease expires by itself
                _within(RENEWAL_S, partial(self._storage.delete, self._stored.path))

    def _work(self) -> None:
        keep_for = timedelta(seconds=EXPIRY_S - RENEWAL_S)
        renewed = datetime.now(UTC)
        while not self._ended.wait(RENEWAL_S):
            began = datetime.now(UTC)
            try:
                self._stored = _within((renewed + keep_for - began).total_seconds(), self._renew)
                renewed = began
            except (SourceChanged, FileNotFoundError):
                self._lose("another run has taken its lease")
                return
            except OSError as error:  # storage may answer again before the lease expires
                if datetime.now(UTC) - renewed >= keep_for:
                    self._lose(f"its lease cannot be renewed: {error.strerror}")
                    return

    def _renew(self) -> Stored:
        try:
            return self._storage.replace(self._stored, self._holder.renewed())
        except SourceChanged:
            found = self._storage.lookup(self._stored.path)
            other = _read(self._storage, found) if isinstance(found, Stored) else None
            if isinstance(found, Stored) and other and other.run == self._holder.run:
                return found  # the renewal succeeded and its answer was lost
            raise

    def _lose(self, reason: str) -> None:
        self._lost = True
        output = self._stored.path.removesuffix("/" + NAME)
        self._stop_run(SystemFailure(f"output.path: {output} is no longer held by this run ({reason})."))


def _within(seconds: float, function: Callable[[], T]) -> T:
    """What a function returns or raises. Raises TimeoutError if it takes longer; the function then runs on alone."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 (raised where the result is waited for)
            future.set_exception(error)

    threading.Thread(target=work, name="lease request", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        if future.done():
            raise
        raise TimeoutError(errno.ETIMEDOUT, "the storage did not take it in time") from error


def _boot() -> str:
    """An id of this machine since its last start, with its process numbers."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
    return f"{boot.read_text().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
