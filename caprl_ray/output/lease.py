"""The lease: one driver at a time writes an output. A second driver is told who holds it and until when.

The lease is an object in the output that names the holder. It is created only if there is none, and replaced only at
the version that was read (conditional writes), so that one of several drivers wins. The holder renews it. It is not
deleted, because lease numbers must grow (output/fence.py). Exception: its holder deletes it if a recipe was refused
before anything else was written. Each part of an output has its own lease, with its own numbers (output/parts.py).

Another driver takes the lease over if the run gave it back, if its process on this machine has ended, or if it was not
renewed for EXPIRY_S while the other driver watched. Both measure with a monotonic clock. A holder that cannot renew its
lease stops before EXPIRY_S is over. A holder that was paused longer checks the stored lease when it wakes. The time of
day is used for messages and to refuse a second driver at once, but never to take over.
"""

import errno
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from caprl_ray.cluster.interrupt import interruptible
from caprl_ray.errors import CaprlError, RecipeError, SystemFailure
from caprl_ray.output import fence
from caprl_ray.output.holder import FINISHED, HELD, SETTLED, STOPPED, Holder
from caprl_ray.output.part import FOLDER, LEASE, Part
from caprl_ray.storage import SourceChanged, Storage, Stored, join
from caprl_ray.storage.prefetch import prefetched

T = TypeVar("T")

NAME = "lease.json"
# A holder renews its lease every RENEWAL_S. It gives up when that has failed for EXPIRY_S - RENEWAL_S, and a last
# attempt of half of RENEWAL_S too. Others wait for EXPIRY_S. A store that refuses every request for a minute, beginning
# before a renewal, ends no run: EXPIRY_S - 2 * RENEWAL_S is a minute plus the time between two attempts (s3_client.py).
RENEWAL_S, EXPIRY_S = 20.0, 120.0
# How soon a holder notices a pause, and another driver a renewal.
TICK_S = 1.0
READ_ATTEMPTS, TAKE_ATTEMPTS = 10, 3
SETTLED_AT_ONCE = 64  # lost parts, each of which is watched for EXPIRY_S
# The runs of this process that hold a lease or try to. Its other runs have ended, even if their leases do not say so.
_here: set[str] = set()


def clock() -> float:
    """A clock that is never set and that continues while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class _Found:
    """The lease as it is stored; `holder` is None if another version or somebody else wrote it."""

    stored: Stored
    holder: Holder | None


@dataclass(frozen=True)
class _Taken:
    """The lease that this driver took, at a time of `clock`. `after_lost`: an earlier run may still be writing."""

    stored: Stored
    holder: Holder
    after_lost: bool
    at: float


class Busy(RecipeError):
    """Another driver holds the lease.

    `holder` is None if it is not known. `passing`: it has just begun or ended, so trying again helps.
    """

    holder: Holder | None = None
    passing = False

    @classmethod
    def of(cls, sentence: str, holder: Holder | None, *, passing: bool = False) -> "Busy":
        """The refusal."""
        error = cls(sentence)
        error.holder, error.passing = holder, passing
        return error


@contextmanager
def held(storage: Storage, output: str) -> Iterator["Lease"]:
    """Hold the lease of the whole output, as `taken` does, while no driver writes a part.

    From then on, late writes of lost drivers of parts do not count.
    """
    with _written(output):
        _refuse_parts(holders(storage, output))
    with taken(storage, output) as own:
        with _written(output):
            settle(storage, output, holders(storage, output))
        yield own


@contextmanager
def taken(storage: Storage, output: str, part: Part | None = None, on_behalf: Part | None = None) -> Iterator["Lease"]:
    """Hold the lease of the output, or of a part of it, renew it from a thread, and give it back.

    `on_behalf` is the part whose driver holds the output's lease for its turn (output/parts.py).

    Raises Busy if another driver holds it, and SystemFailure if it cannot be written or was lost. When it is
    lost, or its thread ends for any reason, the main thread is interrupted, because another driver may be writing.
    """
    with _unfenced(storage, output, part, on_behalf) as lease:
        if lease.after_lost:
            with _written(output):
                fence.close(storage, output, lease.number, part.name if part else "")
        yield lease


@contextmanager
def _unfenced(
    storage: Storage,
    output: str,
    part: Part | None,
    on_behalf: Part | None = None,
    given_up: threading.Event | None = None,
) -> Iterator["Lease"]:
    """`taken` without the fence. A thread that waits for the lease raises Busy when `given_up` is set."""
    with _known_here(str(part or on_behalf or "")) as ours:
        with _written(output):
            found = _take(storage, output, part, ours, given_up or threading.Event())
        with interruptible() as stop:
            lease, finished = Lease(storage, output, found, stop), False
            try:
                lease.start()
                yield lease
                finished = True
            finally:
                if lease.forgotten:
                    lease.forget()
                else:
                    lease.release((SETTLED if lease.settled else FINISHED) if finished else STOPPED)


def path_of(output: str, part: Part | None = None) -> str:
    """The path of a lease."""
    return join(output, FOLDER, f"{part.name}{LEASE}") if part else join(output, NAME)


def holders(storage: Storage, output: str) -> dict[Part, Holder | None]:
    """The parts whose drivers have begun, and who holds or last held the lease of each; None where it is not known."""
    names = [stored.path.rpartition("/")[2] for stored in storage.objects(join(output, FOLDER), LEASE)]
    parts = sorted(filter(None, (Part.named(name.removesuffix(LEASE)) for name in names)))
    found = prefetched(lambda part: _find(storage, path_of(output, part)), parts) if parts else iter(())
    return {part: lease.holder for part, lease in zip(parts, found, strict=True) if lease}


def holder_of(storage: Storage, output: str) -> Holder | None:
    """The present or last holder of the whole output's lease; None if there was none or it is not known."""
    found = _find(storage, path_of(output))
    return found.holder if found else None


def settle(storage: Storage, output: str, parts: Mapping[Part, Holder | None]) -> None:
    """Make late writes of lost parts not count. Raises Busy if one of their drivers lives."""
    _refuse_parts(parts)
    lost = [part for part, holder in parts.items() if not (holder and holder.over)]
    for start in range(0, len(lost), SETTLED_AT_ONCE):
        _settle(storage, output, lost[start : start + SETTLED_AT_ONCE])


def _settle(storage: Storage, output: str, lost: Collection[Part]) -> None:
    """Settle some lost parts together: watch and take their leases in threads, and close their fences at once. If one
    cannot be taken, or on Ctrl-C, all threads end before the leases are given back."""
    given_up = threading.Event()
    with ExitStack() as stack:

        def take(part: Part) -> Lease:
            return stack.enter_context(_unfenced(storage, output, part, given_up=given_up))

        with ThreadPoolExecutor(len(lost), thread_name_prefix="settle") as pool:
            try:
                owned = dict(zip(lost, pool.map(take, lost), strict=True))
            finally:
                given_up.set()
        fence.close_all(storage, output, {part.name: own.number for part, own in owned.items()})
        for own in owned.values():
            own.settled = True


def _refuse_parts(parts: Mapping[Part, Holder | None]) -> None:
    for holder in parts.values():
        if holder and lives(holder):
            raise Busy.of(_held_until(holder), holder)


def lives(holder: Holder) -> bool:
    """Whether a driver surely holds its lease."""
    return not _has_ended(holder) and 0 < holder.remaining().total_seconds() <= EXPIRY_S


@contextmanager
def _known_here(part: str) -> Iterator[Holder]:
    ours = replace(Holder.this_process(), part=part)
    _here.add(ours.run)
    try:
        yield ours
    finally:
        _here.discard(ours.run)


@contextmanager
def _written(output: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise SystemFailure(f"output.path: the lease in {output} cannot be written ({reason}).") from error


def _take(
    storage: Storage,
    output: str,
    part: Part | None,
    ours: Holder,
    given_up: threading.Event,
    attempts: int = TAKE_ATTEMPTS,
) -> _Taken:
    path = path_of(output, part)
    found = _find(storage, path)
    if found:
        _await_end(storage, found, given_up)
    before = found.holder if found else None
    number = (before.number if before else fence.highest(storage, output, part.name if part else "")) + 1
    holder, at = replace(ours, number=number).renewed(EXPIRY_S), clock()
    try:
        stored = storage.replace(found.stored, holder.content) if found else storage.create(path, holder.content)
    except (FileExistsError, SourceChanged, FileNotFoundError):
        now = _find(storage, path)
        if now is None and found is None:  # the place is not writable
            raise
        if now is None or now.holder is None:
            raise _busy(path, now) from None
        if now.holder.run != ours.run:
            if attempts > 1 and _has_ended(now.holder):  # an earlier run gave it back just now
                return _take(storage, output, part, ours, given_up, attempts - 1)
            raise _busy(path, now) from None
        stored = now.stored  # it was written, and the answer was lost
    after_lost = number > 1 and not (before and before.over)
    return _Taken(stored, holder, after_lost, at)


def _find(storage: Storage, path: str) -> _Found | None:
    """The stored lease."""
    for _ in range(READ_ATTEMPTS):
        stored = storage.lookup(path)
        if not isinstance(stored, Stored):
            return None
        with suppress(SourceChanged, FileNotFoundError), storage.open(stored) as stream:  # replaced in between
            return _Found(stored, Holder.parse(stream.read()))
    raise _busy(path, None)


def _await_end(storage: Storage, found: _Found, given_up: threading.Event) -> None:
    """Return when the lease has ended. Raises Busy if its holder lives, or when the wait is `given_up`.

    The end in the lease, by the time of day, proves nothing, because the clocks of two machines differ and can be set.
    So the lease is watched.
    """
    holder, path = found.holder, found.stored.path
    if holder and _has_ended(holder):
        return
    _refuse_living(found)
    sys.stderr.write(
        f"caprl-ray: {path}: the lease of {_named(holder)} may have ended; this run takes over if it is not renewed "
        f"within {EXPIRY_S:.0f} seconds.\n"
    )
    until = time.monotonic() + EXPIRY_S  # stands still while this machine is suspended and sees no renewal
    while time.monotonic() < until and not (holder and holder.ended):
        if given_up.wait(min(TICK_S, RENEWAL_S)):
            raise _busy(path, found)
        if storage.lookup(path) != found.stored:
            raise _busy(path, _find(storage, path), watched=True)


def refuse_held(storage: Storage, output: str) -> None:
    """Raise RecipeError if another driver surely holds the lease of the output or of a part. Takes no lease."""
    found = _find(storage, join(output, NAME))
    if found:
        _refuse_living(found)
    _refuse_parts(holders(storage, output))


def _refuse_living(found: _Found) -> None:
    if found.holder and lives(found.holder):
        raise _busy(found.stored.path, found)


def _has_ended(holder: Holder) -> bool:
    return holder.ended or (holder.of_this_process and holder.run not in _here)


def _busy(path: str, found: _Found | None, *, watched: bool = False) -> Busy:
    """The refusal. `watched`: a renewal was seen, and `until` may come from a wrong clock."""
    holder = found.holder if found else None
    if found is None or (holder and holder.state != HELD):
        return Busy.of(f"output.path: another run has just begun or ended at {path}; try again.", holder, passing=True)
    if watched or holder is None:
        named = _named(holder)
        sentence = f"output.path: {named} is writing here and renews its lease, {path}; wait for it or stop it."
        return Busy.of(sentence, holder)
    return Busy.of(_held_until(holder), holder)


def _held_until(holder: Holder) -> str:
    held = "is writing here and holds the output until"
    if holder.part:
        held = f"is writing part {holder.part} here and holds it until"
    return (
        f"output.path: {_named(holder)} {held} {holder.until}; wait for it or stop it. If it died, a run that begins "
        "after that time takes over."
    )


def _named(holder: Holder | None) -> str:
    return f"process {holder.pid} on {holder.host}" if holder else "another run"


class Lease:
    """The lease that this driver holds. A thread renews it, and stops the run when it cannot."""

    def __init__(self, storage: Storage, output: str, taken: _Taken, stop_run: Callable[[CaprlError], None]) -> None:
        self.number = taken.holder.number
        self.forgotten = False
        """Whether the lease is removed at its end, because the output has nothing whose name holds a number."""
        self.settled = False
        """Whether it was taken only because an earlier run was lost."""
        self.after_lost = taken.after_lost
        """Whether an earlier run may still be writing."""
        self._storage = storage
        self._output = output
        self._stored = taken.stored
        self._holder = taken.holder
        self._stop_run = stop_run
        self._renewed = taken.at
        self._lost: SystemFailure | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lease", daemon=True)

    @property
    def holder(self) -> Holder:
        """This run, as the lease names it."""
        return self._holder

    @property
    def lost(self) -> bool:
        """Whether another run may have taken it."""
        return self._lost is not None

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """Renew the lease now. Call it before writing an object without a lease number in its name.

        Raises SystemFailure if another run may have taken it, for instance after a pause that no clock of this machine
        shows.
        """
        with self._lock:
            if self._lost is None:
                self._renew()
        if self._lost:
            raise self._lost

    def forget(self) -> None:
        """End the thread, and remove the lease if it is still ours. No other run takes it before it is gone."""
        with suppress(CaprlError, OSError):
            self.check()
            self._ended.set()
            self._thread.join()
            self._storage.delete(self._stored.path)
        self._ended.set()

    def release(self, state: str) -> None:
        """End the thread, and give the lease back if it is still ours."""
        self._ended.set()
        if self._thread.ident:
            self._thread.join()
        with suppress(OSError, RuntimeError):  # others can take it over later
            _within(RENEWAL_S, partial(self._replace, self._holder.renewed(0, state)))

    def _work(self) -> None:
        try:
            while not self._ended.wait(min(TICK_S, RENEWAL_S)) and self._lost is None:
                with self._lock:
                    if clock() - self._renewed >= RENEWAL_S:
                        self._renew()
        except BaseException as error:  # noqa: BLE001 (whatever it is, nobody renews the lease from now on)
            self._lose(f"the thread that renews its lease ended: {type(error).__name__}", error)

    def _renew(self) -> None:
        """Renew the lease, or lose it. After a pause, however long, it is still ours if nobody took it."""
        began = clock()
        left = EXPIRY_S - RENEWAL_S - (began - self._renewed)
        self._holder = self._holder.renewed(EXPIRY_S)
        try:
            self._stored = _within(left if left > 0 else RENEWAL_S / 2, partial(self._replace, self._holder))
            self._renewed = began
        except (SourceChanged, FileNotFoundError) as error:
            self._lose("another run has taken its lease", error)
        except OSError as error:  # storage may answer again before the lease expires
            if left <= 0:
                self._lose(f"its lease cannot be renewed: {error.strerror or error}", error)

    def _replace(self, holder: Holder) -> Stored:
        try:
            return self._storage.replace(self._stored, holder.content)
        except SourceChanged:
            found = _find(self._storage, self._stored.path)
            there = found.holder if found else None
            # A renewal was written and its answer was lost.
            if found and there and (there.run, there.state) == (holder.run, HELD):
                return self._storage.replace(found.stored, holder.content)
            raise

    def _lose(self, reason: str, error: BaseException) -> None:
        self._lost = SystemFailure(f"output.path: {self._output} is no longer held by this run ({reason}).")
        self._lost.__cause__ = error
        self._stop_run(self._lost)


def _within(seconds: float, function: Callable[[], T]) -> T:
    """The result of a function, or its exception. Raises TimeoutError if it takes longer; the function then continues
    in its thread."""
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
