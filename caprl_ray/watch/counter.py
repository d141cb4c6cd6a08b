"""One actor on the driver's node: progress, batches that may have killed a replica, and the plan.

It imports nothing of the package that is slow to import, because the actor's process starts with every run.
"""

import collections
import threading
import time
from collections.abc import Mapping, Sequence

import ray

from caprl_ray.cluster.resources import WAITING
from caprl_ray.rows.codes import ASKED_FOR
from caprl_ray.watch.batch import Batch, Last, Load
from caprl_ray.watch.notes import Notes
from caprl_ray.watch.record import Readers, Record, Requests
from caprl_ray.watch.sick import Sick
from caprl_ray.watch.starts import GONE_S, MAIN, Pool, Starts

# Seconds between two signs of life of a replica. A thousand replicas send 33 messages a second.
HERE_S = GONE_S / 2
# Attempts that ended because the node was lost and that no row is blamed for. The limit still finds a row that keeps
# killing nodes.
FORGIVEN = 10
# If this many captions, and no others, have no question, warn the user.
NONE_ASKED = 1000
# Tasks whose attempts are remembered. Ray soon repeats a task that died.
MOST_TASKS = 2**16


class Counter:
    """Counters of a run. A task that Ray repeats counts twice; the ledger has the exact numbers."""

    def __init__(self) -> None:
        self.rows = 0
        self.failed: collections.Counter[str] = collections.Counter()
        self._retried = 0
        self._failed_anew: collections.Counter[str] = collections.Counter()
        self._failed_again: collections.Counter[str] = collections.Counter()
        self._unscored: collections.Counter[str] = collections.Counter()
        self._begun: dict[str, list[str]] = {}
        self._attempts: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._notes = Notes()
        self._work: list[bytes] | None = None
        self._closing = False
        self._stopped = threading.Event()
        self._began = time.monotonic()
        self._asked: float | None = None
        self._pools: dict[str, Starts] = {MAIN: Starts()}
        self._sick = Sick()
        self._suspects: set[tuple[int, int]] = set()
        self._sums: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self._loads: dict[str, tuple[str, Load]] = {}  # by replica, with its pool
        self._units: set[int] = set()
        self._read = (0, 0)
        self._last: Last | None = None
        self._ready: float | None = None
        self._first: tuple[float, int] | None = None
        self._committed: tuple[int, float] | None = None

    def add(self, batch: Batch) -> None:
        """Count one batch of the last stage."""
        self.end(batch.ended)
        self.rows += batch.rows
        if self._first is None and batch.rows:
            self._first = self._seconds(), batch.rows
        if batch.rows and batch.pool != MAIN:
            self._pools[MAIN].passed()
        self.failed.update(batch.codes)
        self._retried += batch.retried
        self._failed_anew.update(batch.anew)
        self._failed_again.update(batch.again)
        self._last = batch.last or self._last
        self._unscored.update(batch.unscored)
        for kind, sums in batch.sums.items():
            self._sums[kind].update(sums)
        if self._sums["score_codes"].total() >= NONE_ASKED and not self.scored()[0]:
            self.note(f"none of the first {NONE_ASKED:,} captions has a question (score.join)")
        if batch.load:
            self._loaded(batch.load, batch.pool)

    def spent(self, stage: str, rows: int, seconds: float, size: int = 0) -> None:
        """Count one batch of an earlier stage: its rows, the seconds that it took, and the bytes that came in."""
        for kind, amount in (("stage_rows", rows), ("stage_seconds", seconds), ("stage_bytes", size)):
            self._sums[kind].update({stage: amount})

    def committed(self, rows: int) -> None:
        """Count the rows of an object that is written."""
        self._committed = (rows + (self._committed[0] if self._committed else 0), self._seconds())

    def unit_read(self, unit: int, rows: int, size: int) -> None:
        """A unit of unknown length was read to its end: `rows` in `size` bytes."""
        if unit not in self._units:
            self._units.add(unit)
            self._read = self._read[0] + rows, self._read[1] + size

    def record(self) -> Record:
        """The counts now."""
        further = [name for name in self._pools if name != MAIN]
        alive = set[str]().union(*(starts.alive_now() for starts in self._pools.values()))
        self._loads = {replica: load for replica, load in self._loads.items() if replica in alive}
        return Record(
            seconds=self._seconds(),
            ready=self._ready,
            first=self._first,
            rows=self.rows,
            failed=dict(self.failed),
            committed=self._committed,
            sums={kind: dict(sums) for kind, sums in self._sums.items()},
            read=self._read,
            replicas=self._pools[MAIN].counts(),
            requests=self._requests(MAIN),
            readers={
                name: Readers(replicas=self._pools[name].counts(), requests=self._requests(name)) for name in further
            },
            last=self._last,
            absent=max(starts.absent() for starts in self._pools.values()),
        )

    def _requests(self, pool: str) -> Requests:
        alive = self._starts(pool).alive_now()
        loads = [load for name, load in self._loads.values() if name == pool and load.replica in alive]
        return Requests(
            running=sum(load.running for load in loads),
            waiting=sum(load.waiting for load in loads),
            places=sum(load.places for load in loads),
            batches=sum(load.batches for load in loads),
        )

    def _starts(self, pool: str) -> Starts:
        return self._pools.setdefault(pool, Starts())

    def _loaded(self, load: Load, pool: str) -> None:
        self._loads[load.replica] = pool, load

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def read(self) -> tuple[int, dict[str, int], float]:
        """Rows so far, failed rows by code, and the seconds without a replica."""
        return self.rows, dict(self.failed), self._pools[MAIN].absent()

    def absent(self, pool: str) -> float:
        """The seconds without a replica of a pool."""
        return self._starts(pool).absent()

    def judged(self) -> tuple[tuple[int, dict[str, int]], tuple[int, dict[str, int]], float, str | None]:
        """What the circuit breaker judges: rows and failed rows by code, of new rows and of retried rows, the seconds
        without a replica, and why captions cannot be trusted, if so.

        A retried row that fails with its old code says nothing new and is left out, and so is a row that the recipe
        wants to fail.
        """
        rows, _, absent = self.read()
        new = _without_asked_for(rows - self._retried, self.failed - self._failed_anew - self._failed_again)
        retried = _without_asked_for(self._retried - self._failed_again.total(), self._failed_anew)
        return new, retried, absent, self._sick.fault

    def scored(self) -> tuple[int, dict[str, int]]:
        """Rows whose captions were scored or could not be, and the latter by code: what else the circuit breaker
        judges."""
        return int(self._sums["scores"]["rows"]) + self._unscored.total(), dict(self._unscored)

    def begin(self, key: str, node: str) -> int:
        """Register an attempt at a batch or a single row on a node; return how many earlier attempts did not end.

        Attempts on a lost node do not count: no row is to blame for a node that was taken away.
        """
        begun = self._begun.setdefault(key, [])
        before = len(begun) - min(_gone(begun), FORGIVEN) if begun else 0
        begun.append(node)
        return before

    def put_off(self, key: str) -> None:
        """Take back the last attempt, if it is known: a counter that was restarted has forgotten it."""
        begun = self._begun.get(key)
        if begun:
            begun.pop()

    def end(self, keys: Sequence[str]) -> None:
        """Forget finished batches and rows."""
        for key in keys:
            self._begun.pop(key, None)

    def attempt(self, task: str) -> int:
        """How many attempts of this task began before. Ask once per attempt. Only the latest tasks are remembered."""
        before = self._attempts.pop(task, 0)
        self._attempts[task] = before + 1
        if len(self._attempts) > MOST_TASKS:
            self._attempts.popitem(last=False)
        return before

    def note(self, line: str) -> None:
        """Add a line that the user should read once, however many replicas send it (notes.py)."""
        self._notes.add(line)

    def notes(self) -> list[str]:
        """The notes to show, in order."""
        return self._notes.lines()

    def here(self, pool: str = MAIN) -> None:
        """A replica has its GPU, even if its engine has not started."""
        self._starts(pool).here()

    def awaited(self) -> float:
        """The seconds for which there has been no replica, since somebody asked first; 0 if there is one."""
        starts = self._pools[MAIN]
        if not starts.seen:
            self._asked = self._asked or time.monotonic()
            return max(0.001, starts.absent(self._asked))
        return starts.absent()

    def alive(self, replica: str, runs: bool, load: Load | None = None, pool: str = MAIN) -> None:
        """A replica lives; its engine runs, or is being started."""
        self._starts(pool).alive(replica, runs=runs)
        if load:
            self._loaded(load, pool)
        if runs and pool == MAIN and self._ready is None:
            self._ready = self._seconds()

    def captioned(self, node: str, pool: str = MAIN) -> None:
        """A replica on this node has captioned its first batch."""
        self._starts(pool).captioned(node)

    def start_failed(self, replica: str, node: str, name: str, reason: str, pool: str = MAIN) -> bool:
        """A replica's engine has not started, or captions nothing. Returns whether the node gets no more replicas."""
        starts = self._starts(pool)
        if starts.failed(replica, node, reason):
            of = f" of {pool}" if pool else ""
            self.note(f"node {name} gets no more replicas{of} of this run: {reason.rstrip('.')}")
        return node in starts.struck()

    def healthy(self) -> None:
        """A replica has written a window of captions within its limits."""
        self._sick.healthy()

    def sick(
        self, replica: str, node: str, sentence: str, replaceable: bool, suspects: Sequence[tuple[int, int]] = ()
    ) -> bool:
        """Too many captions of a replica fail a check. Returns whether another one is to take its place; if not, the
        run ends. `suspects` are rows, as (unit, index), that it has handed on."""
        self._suspects.update(suspects)
        replicas = self._pools[MAIN].left(replica)  # readers write no captions
        if not replaceable:
            self._sick.fault = self._sick.fault or sentence
            return False
        replaced = self._sick.report(node, sentence, replicas)
        if replaced:
            self.note(f"a replica is replaced: {sentence}")
        return replaced

    def doubtful(self) -> int:
        """The number of rows that sick replicas have handed on."""
        return len(self._suspects)

    def suspects(self) -> list[tuple[int, int]]:
        """Rows that sick replicas have handed on."""
        return sorted(self._suspects)

    def struck(self, pool: str = MAIN) -> dict[str, str]:
        """The nodes that get no more replicas, by id, each with a reason."""
        return self._starts(pool).struck()

    def pool(self, least: int, pool: str = MAIN) -> Pool:
        """The replicas now, of which there should be `least`."""
        return self._starts(pool).pool(least)

    def close(self) -> None:
        """Stop reading: the run ends with the rows in flight."""
        self._closing = True

    def closing(self) -> bool:
        """Whether reading should stop."""
        return self._closing

    def stop(self) -> int:
        """The run ends now: nothing is read, prepared or captioned any more. Returns the rows that are done."""
        self._closing = True
        self._stopped.set()
        return self.rows

    def stopping(self) -> bool:
        """Whether the run ends now."""
        return self._stopped.is_set()

    @ray.method(concurrency_group=WAITING)  # type: ignore[untyped-decorator]
    def until_stopped(self) -> None:
        """Wait until the run ends. Call it once per run and share the reference, because it blocks the only thread of
        its group."""
        self._stopped.wait()

    def plan(self, work: list[bytes]) -> None:
        """Store the plan: what each read task reads."""
        self._work = work

    def work(self) -> list[bytes] | None:
        """The work of each read task; None while the input is being listed."""
        return self._work


def _without_asked_for(rows: int, failed: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """Rows and failed rows without those that fail because the recipe says so."""
    kept = {code: count for code, count in failed.items() if code not in ASKED_FOR}
    return rows - sum(failed.values()) + sum(kept.values()), kept


def _gone(nodes: list[str]) -> int:
    """How many of these nodes are no longer in the cluster."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return sum(node not in alive for node in nodes)
