"""Compact: merge the objects of finished units into one object a unit, sorted. Units of few rows share one.

A run writes an object for each write task, with rows of several units. A large output has many objects, and every
reader opens all of them. Compacting replaces them in rounds. First, a round writes its new objects, which do not count
yet because the fence (output/fence.py) does not list them. Then one write of the fence makes the new objects count and
the old ones not. Then the old ones are deleted. So every row counts once at any moment, and readers need no change. A
crash leaves only late objects, which the next run, a repair or another compacting removes.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output import again, doubtful, fence, grouping, ledger
from caprl_ray.output import lease as leases
from caprl_ray.output.committed import Committed, read_committed
from caprl_ray.output.fence import FOLDERS, short
from caprl_ray.output.grouping import Grouping, grouped
from caprl_ray.output.lease import Lease
from caprl_ray.output.merge import Batch, Merged, Round, merged
from caprl_ray.output.objects import written_under
from caprl_ray.output.places import places
from caprl_ray.output.repair import repair
from caprl_ray.output.scan import OBJECTS_PER_TASK, Tell, scan, silent
from caprl_ray.output.where import output_schema
from caprl_ray.plan import Plan
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.prefetch import FETCHED_AHEAD

# Objects that a round replaces. The fence lists all objects of the output, and each round writes it once.
ROUND_OBJECTS = 20_000
STEP = "merging objects"


def planned(storage: Storage, output: str, plan: Plan, tell: Tell = silent) -> list[Grouping]:
    """The plan for compacting an output, by folder. Writes nothing."""
    return _groupings(storage, output, plan, read_committed(storage, output, tell=tell), tell)


def _groupings(
    storage: Storage, output: str, plan: Plan, committed: Mapping[int, Committed], tell: Tell
) -> list[Grouping]:
    units = ledger.balance(plan.units, committed, "").units
    finished = [unit.unit for unit in units if unit.balanced]
    found = ((folder, places(storage, output, tell, folder)) for folder in FOLDERS)
    return [grouped(there, folder, finished) for folder, there in found]


def compact(storage: Storage, output: str, plan: Plan, lease: Lease, tell: Tell = silent) -> list[Grouping]:
    """Compact an output under its lease. Returns a summary.

    Raises RecipeError if a request of --again is open, because it names objects; SystemFailure or OSError if reading or
    writing fails.
    """
    doubtful.settle(storage, output)
    fence.sweep(storage, output)
    again.settled(storage, output)
    if request := again.load(storage, output):
        raise RecipeError(f"{output}: is not yet done with --again {request.condition!r}; finish that first.")
    committed = read_committed(storage, output, tell=tell)
    if repair(storage, output, committed, tell):
        committed = read_committed(storage, output, tell=tell)
    found, work = _groupings(storage, output, plan, committed, tell), _Work(storage, output, lease, tell)
    for one in found:
        work.replace(one)
    now = fence.committed_objects(storage, output)
    work.check(now)
    return [replace(one, after=len(now[one.folder])) for one in found]


class _Work:
    """The replacing of objects. `kept` are the objects that count now, as "folder/name". Earlier objects of drivers of
    parts count only if they are among them (output/parts.py)."""

    def __init__(self, storage: Storage, output: str, lease: Lease, tell: Tell) -> None:
        self._storage, self._output, self._lease, self._tell = storage, output, lease, tell
        found = fence.committed_objects(storage, output).values()
        self._kept = {short(stored.path) for some in found for stored in some if written_under(stored.path)}
        self._parts = _later_parts(storage, output)

    def replace(self, todo: Grouping) -> None:
        """Merge the objects of one folder, round after round."""
        if not todo.batches:
            return
        schema = output_schema(self._storage, self._output, [todo.folder])
        schema = pa.unify_schemas([schema, *todo.schemas], promote_options="permissive")
        self._switch()  # from now on, new objects of this lease do not count yet
        moved: dict[str, Stored] = {}  # by old path, the object that holds its remaining rows
        done, total = 0, sum(len(batch.objects) for batch in todo.batches)
        for number, batches in enumerate(rounds(todo.batches)):
            now = [replace(one, objects=_now(one.objects, moved)) for one in batches]
            new = self._merged(todo.folder, with_rests(now), schema, number, (done, total))
            old = {stored.path: stored for batch in now for stored in batch.objects}
            gone = set(map(short, old))
            assert not gone & new.names, "the name of a new object has its lease and its round"
            self._kept = (self._kept - gone) | new.names
            self._switch()
            for _ in scan(partial(_delete, self._storage), {todo.folder: [*old.values()]}, "deleting objects"):
                pass
            moved = new.rests | {path: new.rests.get(stored.path, stored) for path, stored in moved.items()}
            done += new.objects

    def _merged(
        self, folder: str, batches: list[Batch], schema: pa.Schema, number: int, progress: tuple[int, int]
    ) -> Merged:
        """Write the new objects of one round. `progress`: how many objects are done, and of how many."""
        units = np.array(sorted(unit for batch in batches for group in batch.groups for unit in group.units), np.int64)
        this = Round(
            storage=self._storage,
            output=self._output,
            lease=self._lease.number,
            number=number,
            schema=schema,
            units=units,
            least=grouping.LEAST_ROWS,
        )
        new, (done, total) = Merged(), progress
        few = sum(len(batch.objects) for batch in batches) <= OBJECTS_PER_TASK  # then without Ray
        for some in scan(partial(merged, this), {folder: batches}, STEP, per_task=len(batches) if few else 1):
            new.add(some)
            self._tell(STEP, done + new.objects, total)
        if new.rows != new.read:
            raise SystemFailure(f"{self._output}: the objects changed while they were merged; run the command again.")
        return new

    def check(self, now: Mapping[str, Collection[Stored]]) -> None:
        """Raise SystemFailure if an object is not there that counts. Nobody else may delete one."""
        if lost := self._kept - {short(stored.path) for objects in now.values() for stored in objects}:
            raise SystemFailure(
                f"{self._output}: {len(lost):,} merged objects are gone, such as {min(lost)}; their rows are missing, "
                "and the next run does them again."
            )

    def _switch(self) -> None:
        """Let the kept objects count and no others. If the lease is still ours then, whoever takes it later sees that,
        and what does not count any more may be deleted at any time."""
        fence.replace(self._storage, self._output, self._lease.number, self._kept, self._parts)
        self._lease.check()


def _later_parts(storage: Storage, output: str) -> dict[str, int]:
    """By part, the number that is higher than that of every lease until now. Drivers that hold one are lost or done."""
    numbers = fence.later(storage, output)
    for part, holder in leases.holders(storage, output).items():
        if holder:
            numbers[part.name] = max(numbers.get(part.name, 0), holder.number + 1)
    return {part: number for part, number in numbers.items() if part}


def rounds(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Batches that are merged at the same time."""
    held: list[Batch] = []
    for batch in batches:
        if held and sum(len(one.objects) for one in held) + len(batch.objects) > ROUND_OBJECTS:
            yield held
            held = []
        held.append(batch)
    if held:
        yield held


def _now(objects: Iterable[Stored], moved: Mapping[str, Stored]) -> list[Stored]:
    """Where the rows of these objects are now, each object once."""
    found = {stored.path: stored for stored in (moved.get(old.path, old) for old in objects)}
    return [found[path] for path in sorted(found)]


def with_rests(batches: Sequence[Batch]) -> list[Batch]:
    """The batches of a round. What none of them takes of an object is written by the first that reads it."""
    owned: set[str] = set()
    found = []
    for batch in batches:
        paths = {stored.path for stored in batch.objects}
        found.append(replace(batch, rests=frozenset(paths - owned)))
        owned |= paths
    return found


def _delete(storage: Storage, folder: str, objects: Collection[Stored]) -> None:
    with ThreadPoolExecutor(FETCHED_AHEAD) as pool:
        list(pool.map(lambda stored: storage.delete(stored.path), objects))
