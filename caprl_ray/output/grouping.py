"""How compacting groups units: units of one new object, and objects of one task."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from caprl_ray.output.merge import Batch, Group
from caprl_ray.output.objects import written_under
from caprl_ray.output.places import Places, origin

# The least number of rows in an object: smaller units share one. The default of output.rows_per_object.
LEAST_ROWS = 2048
# The largest unit, and the largest object with its rows, in stored bytes; larger ones are left alone. A worker holds
# one unit, or a few objects, unpacked.
MOST_BYTES = 128 * 2**20
# The limit of a task with more than one unit. Its rows are unpacked on the node's disk, in one file per group.
BATCH_OBJECTS, BATCH_BYTES, BATCH_GROUPS = 500, 256 * 2**20, 200


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The merges in one folder: its objects, their expected number afterwards, and the batches, in the order of units.

    `left` counts units that are left alone: `large` ones, and `older` ones with rows in objects of a version without
    lease numbers.
    """

    folder: str
    objects: int
    after: int
    batches: Sequence[Batch]
    schemas: Sequence[pa.Schema] = ()
    """The columns of its objects, each set of columns once."""
    left: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class _Units:
    """Units that become one object, and for each unit the numbers of the objects with its rows."""

    units: Sequence[int]
    objects: np.ndarray
    rows: int


def grouped(there: Places, folder: str, finished: Sequence[int]) -> Grouping:
    """Group the finished units of a folder, given in order. Batches that would not reduce the number of objects are
    left out."""
    units_of = np.bincount(there.object, minlength=len(there.objects))  # how many units have rows in each object
    rows = np.bincount(there.object, there.rows, len(there.objects))
    left, batches = Counter[str](), []
    gone, new, taken = np.zeros(len(there.objects), bool), 0, 0
    for some in _batched(there, _groups(there, finished, units_of, left)):
        numbers = np.unique(np.concatenate([group.objects for group in some]))
        own = sum(group.rows for group in some)
        if len(some) + -(-(rows[numbers].sum() - own) // LEAST_ROWS) < len(numbers):
            gone[numbers] = True
            new, taken = new + len(some), taken + own
            named = [Group(units={unit: origin(there.of(unit)) for unit in group.units}) for group in some]
            batches.append(Batch(groups=named, objects=[there.objects[number] for number in numbers.tolist()]))
    rests = -(-int(rows[gone].sum() - taken) // LEAST_ROWS)
    after = len(there.objects) - int(gone.sum()) + new + rests
    return Grouping(
        folder=folder,
        objects=len(there.objects),
        after=after,
        batches=batches,
        schemas=there.schemas,
        left=left,
    )


def _groups(there: Places, finished: Sequence[int], units_of: np.ndarray, left: Counter[str]) -> Iterator[_Units]:
    """The units of each new object, without units that already have an object of their own."""
    for some in _enough(there, _fit(there, finished, left)):
        group = _Units(
            units=[unit for unit, _ in some],
            objects=np.concatenate([there.object[where] for _, where in some]),
            rows=sum(int(there.rows[where].sum()) for _, where in some),
        )
        first = int(group.objects[0])
        if (group.objects != first).any() or units_of[first] != len(group.units):
            yield group


def _enough(there: Places, units: Iterator[tuple[int, slice]]) -> Iterator[list[tuple[int, slice]]]:
    """Units with enough rows for an object; the last group may have fewer."""
    held: list[tuple[int, slice]] = []
    rows = 0
    for unit, where in units:
        held.append((unit, where))
        rows += int(there.rows[where].sum())
        if rows >= LEAST_ROWS:
            yield held
            held, rows = [], 0
    if held:
        yield held


def _fit(there: Places, finished: Sequence[int], left: Counter[str]) -> Iterator[tuple[int, slice]]:
    """The units that can be merged, and where their places are. Counts the others."""
    numbered = np.array([written_under(stored.path) is not None for stored in there.objects], bool)
    sizes = np.array([stored.size for stored in there.objects], float)
    a_row = sizes / np.maximum(1, np.bincount(there.object, there.rows, len(there.objects)))
    for unit in finished:
        where = there.range(unit)
        some = there.object[where]
        if not numbered[some].all():
            left["older"] += 1
        elif len(some) and max((a_row[some] * there.rows[where]).sum(), sizes[some].max()) > MOST_BYTES:
            left["large"] += 1
        elif len(some):
            yield unit, where


def _batched(there: Places, groups: Iterator[_Units]) -> Iterator[list[_Units]]:
    """Groups that one task merges."""
    held: list[_Units] = []
    objects: set[int] = set()
    for group in groups:
        more = objects.union(group.objects.tolist())
        size = sum(there.objects[number].size for number in more)
        if held and (len(held) == BATCH_GROUPS or len(more) > BATCH_OBJECTS or size > BATCH_BYTES):
            yield held
            held, more = [], set(group.objects.tolist())
        held.append(group)
        objects = more
    if held:
        yield held


def said(groupings: Sequence[Grouping], verb: str) -> str:
    """The plan or the result in words: `verb` is between the numbers of objects before and after."""
    parts = [f"{one.objects:,} objects in {one.folder}/ {verb} {one.after:,}" for one in groupings]
    left: Counter[str] = sum((one.left for one in groupings), Counter())
    if left["large"]:
        parts.append(f"{left['large']:,} large units stay as they are")
    if left["older"]:
        parts.append(f"{left['older']:,} units stay as they are, because an older version wrote some of their rows")
    return "; ".join(parts)
