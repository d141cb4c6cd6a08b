"""The Ray datasource over the plan's units. It yields rows with identity, metadata and compressed images."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa
import ray
from pyroaring import BitMap
from ray.actor import ActorHandle
from ray.data import DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from caprl_ray.cluster.attempts import current_task, earlier_attempts
from caprl_ray.errors import SystemFailure
from caprl_ray.output.again import Chosen
from caprl_ray.output.committed import Committed, Failure
from caprl_ray.output.held import Held
from caprl_ray.plan import UnitRef
from caprl_ray.read.again import Keeps, done_again
from caprl_ray.read.present import FILES, LOOKUPS, MENDABLE, Accept, has_changed, present
from caprl_ray.read.sandbox import ReadSandbox
from caprl_ray.read.unit import Row, tables, unit_rows
from caprl_ray.rows.schema import FAILED_BEFORE
from caprl_ray.sources import placeholders
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage
from caprl_ray.storage.prefetch import prefetched

# Most read tasks. Up to this many units, each has a task of its own. Above it, neighbouring units share a task, which
# bounds the driver's work.
MOST_READ_TASKS = 4096
LARGE = 2  # a unit with more than this many times the mean bytes is read before the others
# Ray retries a task without limit. From the second attempt on, units are read in a child process. If the worker still
# dies, its node was preempted or lacks memory. The latter would repeat for ever, so give up after this many.
MOST_ATTEMPTS = 20
ASKED_S = 0.5  # seconds between two checks of a task whether reading should stop


@dataclass(frozen=True, kw_only=True)
class Work:
    """A unit with rows to read.

    `done`: the rows that are not read. `rows`: the unit's length, None if unknown. `retry`: the failed rows that are
    retried, by how they failed. `accept`: which versions of the source may be read instead of the planned one. `held`:
    the finished rows that such a version must still hold (present.py). `again`: finished rows that are done again; then
    no other row of the unit is read.
    """

    ref: UnitRef
    done: BitMap
    rows: int | None
    retry: Mapping[Failure, BitMap] = field(default_factory=dict)
    accept: Accept = Accept.NONE
    held: Held | None = None
    again: Chosen | None = None

    @property
    def retried(self) -> BitMap:
        """All rows of `retry`."""
        return BitMap.union(BitMap(), *self.retry.values())

    @property
    def mends(self) -> bool:
        """Whether a retried row failed because its source had changed or ended early."""
        return any(code in MENDABLE for _, code in self.retry)


def remaining(units: Iterable[UnitRef], committed: Mapping[int, Committed]) -> list[Work]:
    """The work on units that are not finished or have failed rows to retry."""
    work = []
    for ref in units:
        unit = committed.get(ref.unit) or Committed()
        rows = ref.rows if unit.rows is None else unit.rows
        retried = BitMap.union(BitMap(), *unit.retry.values())
        if rows is not None and rows - 1 in retried:
            rows = ref.rows  # reading may have failed at the last row, so the unit may be longer than that
        done = unit.done - retried
        if rows is None or len(done) < rows:
            work.append(Work(ref=ref, done=done, rows=rows, retry=dict(unit.retry)))
    return work


def only_retried(work: Iterable[Work], rows: Collection[tuple[int, int]]) -> list[Work]:
    """The same work, but only failed rows among `rows`, given as (unit, index), are retried."""
    wanted: defaultdict[int, BitMap] = defaultdict(BitMap)
    for unit, index in rows:
        wanted[unit].add(index)
    found = []
    for unit_work in work:
        retry = {how: some & wanted[unit_work.ref.unit] for how, some in unit_work.retry.items()}
        left = replace(unit_work, retry={how: some for how, some in retry.items() if some})
        left = replace(left, done=unit_work.done | (unit_work.retried - left.retried))
        if left.rows is None or len(left.done) < left.rows:
            found.append(left)
    return found


def chosen_again(
    units: Iterable[UnitRef], committed: Mapping[int, Committed], chosen: Mapping[int, Chosen]
) -> list[Work]:
    """The work on units with finished rows that are done again. `chosen`: these rows, by unit."""
    work = []
    for ref in units:
        if again := chosen.get(ref.unit):
            unit = committed[ref.unit]
            rows = ref.rows if unit.rows is None else unit.rows
            others = BitMap(range(rows or unit.done.max() + 1)) - again.rows
            work.append(Work(ref=ref, done=others, rows=rows, again=again))
    return work


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The common settings of all read tasks.

    `placeholders`: the recipe's, in the object store, because a copy in each task may take megabytes. `keeps`: the
    values that rows keep when they are done again.
    """

    access: Access
    counter: ActorHandle | None = None
    placeholders: "ray.ObjectRef | None" = None
    keeps: Keeps | None = None

    @classmethod
    def of(cls, access: Access, counter: ActorHandle | None = None, keeps: Keeps | None = None) -> "Reading":
        """Load the recipe's placeholders into the object store. Raises RecipeError for an invalid placeholder file."""
        found = placeholders.load(access.storage, access.input)
        light = replace(access, input=access.input.model_copy(update={"placeholders": []}))
        return cls(access=light, counter=counter, placeholders=ray.put(found) if found else None, keeps=keeps)


def accepting(
    work: list[Work],
    codes: Collection[str],
    least: Accept,
    storage: Storage,
    held_rows: Callable[[Collection[int]], Mapping[int, Held]],
) -> list[Work]:
    """Set `accept` and `held` of each unit: which versions of its source may be read, and the rows to check them with.

    `codes`: the codes that are retried. If one of them is mendable, any present version is accepted for shards with
    such rows, and for shards that an earlier retry may have left unfinished. `least`: accepted for every unit.
    `held_rows`: looks up the finished rows of units.

    Finished rows are looked up only for shards that have changed, because that reads more of the output than a resume
    does. A shard that changes later is read in its planned version.
    """
    mending = not MENDABLE.isdisjoint(codes)

    def accepted(work: Work) -> Accept:
        changed = work.ref.kind != FILES and (work.mends or (mending and not work.retry))
        return Accept.CHANGED if changed else least

    levels = {w.ref.unit: accepted(w) for w in work}
    begun = [w.ref for w in work if levels[w.ref.unit] and w.ref.kind != FILES and w.done]
    looked_at = zip(begun, prefetched(partial(has_changed, storage), begun, LOOKUPS), strict=True)
    changed = {ref.unit: is_other for ref, is_other in looked_at}
    held = held_rows([unit for unit, is_other in changed.items() if is_other])
    levels |= {unit: Accept.NONE for unit, is_other in changed.items() if not is_other}
    return [replace(w, accept=levels[w.ref.unit], held=held.get(w.ref.unit)) for w in work]


class PlannedRows(Datasource):  # type: ignore[misc]
    """Ray datasource over the remaining units. Finished units are not in `work` and are never opened."""

    def __init__(
        self,
        work: list[Work],
        schema: pa.Schema,
        access: Access,
        counter: ActorHandle | None = None,
        keeps: Keeps | None = None,
        *,
        planned_order: bool = False,
    ) -> None:
        super().__init__()
        self._groups = groups(work, planned_order=planned_order)
        self._schema = schema
        self._reading = Reading.of(access, counter, keeps)

    @property
    def tasks(self) -> int:
        """The number of read tasks. Pass it as `override_num_blocks`, or Ray splits the blocks."""
        return len(self._groups)

    def get_name(self) -> str:
        return "Rows"

    def estimate_inmemory_data_size(self) -> int:
        return sum(map(_bytes, self._groups))

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [self._task(group, per_task_row_limit) for group in self._groups]

    def _task(self, group: list[Work], row_limit: int | None) -> ReadTask:
        metadata = BlockMetadata(num_rows=None, size_bytes=_bytes(group), exec_stats=None, input_files=None)
        read = partial(read_units, group, self._schema, self._reading)
        return ReadTask(read, metadata, self._schema, row_limit)


def groups(work: list[Work], *, planned_order: bool = False) -> list[list[Work]]:
    """Assign units to read tasks, in the order in which the tasks start.

    Large units come first, the largest at the beginning, and each has a task of its own. If a large unit started last,
    one stream would read it while most replicas had nothing to do. The other units stay in the plan's order. With
    `planned_order` all units do, so that a run with a row limit gets the first rows of the input.
    """
    large = [] if planned_order else _large(work)
    alone = {one.ref.unit for one in large}
    rest = [one for one in work if one.ref.unit not in alone]
    tasks = min(len(rest), MOST_READ_TASKS - len(large))
    split = np.array_split(np.arange(len(rest)), tasks) if tasks else []
    return [*([one] for one in large), *([rest[n] for n in group] for group in split)]


def _large(work: list[Work]) -> list[Work]:
    """The units whose bytes to read are more than LARGE times the mean, the largest first."""
    left = {one.ref.unit: _left(one) for one in work}
    bound = LARGE * sum(left.values()) / max(1, len(left))
    large = sorted((one for one in work if left[one.ref.unit] > bound), key=lambda one: -left[one.ref.unit])
    return large[: MOST_READ_TASKS // 2]


def _left(work: Work) -> float:
    """The estimated bytes of a unit's unfinished rows; all of its bytes if its length is unknown."""
    if not work.rows:
        return work.ref.bytes
    return work.ref.bytes * max(0.0, 1 - len(work.done) / work.rows)


def _bytes(group: list[Work]) -> int:
    return sum(work.ref.bytes for work in group)


def read_units(group: list[Work], schema: pa.Schema, reading: Reading) -> Iterator[pa.Table]:
    """Run one read task: yield the rows of its units, in order.

    The first attempt reads in the worker itself. Later attempts read in a child process that may die
    (docs/design.md, D11).
    """
    unwanted = ray.get(reading.placeholders) if reading.placeholders is not None else ()
    closing = _Closing(reading.counter)
    with ReadSandbox() as sandbox:
        read = sandbox if _attempt(reading.counter) else sandbox.plain
        for work in group:
            unit = work.ref.load(reading.access.storage)
            unit = present(unit, work.accept, work.done, work.retried, work.held, reading.access, read)
            rows = unit_rows(
                work.ref.unit,
                unit,
                schema=schema,
                access=reading.access,
                done=work.done,
                rows=work.rows,
                read=read,
                placeholders=unwanted,
            )
            if work.again and reading.keeps:
                rows = done_again(rows, work.again, reading.keeps.old(work.ref.unit, work.again))
            length = None
            for table in tables((_retried(row, work) for row in rows), schema):
                if closing():
                    return
                length = table["unit_rows"][-1].as_py() if table.num_rows else length
                yield table
            if reading.counter and work.rows is None and length is not None:
                reading.counter.unit_read.remote(work.ref.unit, length, work.ref.bytes)


class _Closing:
    """Tells whether reading should stop, because the run is about to end (watch/breaker.py). Asks the counter at the
    first table and then at most every ASKED_S: a read task yields many tables a second.

    If Ray retries a stopped task, it yields the same first rows again, or fewer. An attempt yields no row twice.
    """

    def __init__(self, counter: ActorHandle | None) -> None:
        self._counter, self._asked = counter, 0.0

    def __call__(self) -> bool:
        if self._counter is None or time.monotonic() - self._asked < ASKED_S:
            return False
        closing, self._asked = bool(ray.get(self._counter.closing.remote())), time.monotonic()
        return closing


def _attempt(counter: ActorHandle | None) -> int:
    """The number of earlier attempts of this task. Raises SystemFailure at MOST_ATTEMPTS."""
    task = current_task()
    attempt = earlier_attempts(task, counter) if task else 0
    if attempt >= MOST_ATTEMPTS:
        raise SystemFailure(
            f"read: the worker of one task ended {attempt} times, though its units were read in a process of their "
            "own; look for nodes that lack memory, and run again to resume."
        )
    return attempt


def _retried(row: Row, work: Work) -> Row:
    for (attempts, code), rows in work.retry.items():
        if row["index"] in rows:
            row["attempts"] += attempts
            row[FAILED_BEFORE.name] = code
    return row
