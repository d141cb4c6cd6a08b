"""Doubtful rows: their replica was found to be faulty after it had written them.

When a replica is found to be sick, its rows are listed in OUT/doubtful/LEASE.json. They are removed from the objects of
that lease at the end of the run, at the start of the next run (of that part), or by `verify --repair`. Then they are
missing, and are captioned again. Until then, readers of the output must leave them out (`standing`).
"""

import json
from collections.abc import Collection, Mapping

from pyroaring import BitMap

from caprl_ray.errors import SystemFailure
from caprl_ray.output import fence
from caprl_ray.output.committed import Committed
from caprl_ray.output.folder import SUCCESS
from caprl_ray.output.objects import Written
from caprl_ray.output.repair import forget
from caprl_ray.rows.schema import row_id
from caprl_ray.storage import Storage, Stored, join

FOLDER = "doubtful"
Identity = tuple[int, int]  # unit and index


def keep(storage: Storage, output: str, lease: int, rows: Collection[Identity], part: str = "") -> None:
    """Store the doubtful rows of a lease."""
    name = Written(number=lease, part=part).name
    storage.put(join(output, FOLDER, f"{name}.json"), json.dumps(sorted(rows)).encode())


def settle(storage: Storage, output: str, part: str | None = None) -> set[Identity]:
    """Remove all doubtful rows from the output, or with `part` only those of its leases. Returns them.

    An output that had some is not complete any more.

    Rows of a part that compact has moved to objects of the whole output are left to the holder of its lease, because
    drivers of several parts could rewrite one object.

    Only the holder of the lease may do it.

    Raises SystemFailure for a file that no run wrote.
    """
    removed: set[Identity] = set()
    lists = storage.objects(join(output, FOLDER), ".json")
    fences = fence.load(storage, output) if lists else fence.Fences()
    for stored in lists:
        lease, rows = _kept(storage, stored)
        if part not in (None, "" if fences.compacted(lease) else lease.part):
            continue
        if rows:
            storage.delete(join(output, SUCCESS))
        forget(storage, output, rows, lease)
        storage.delete(stored.path)
        removed |= rows
    return removed


def standing(storage: Storage, output: str, committed: Mapping[int, Committed]) -> dict[int, BitMap]:
    """The doubtful rows that are still in an output, by unit. Rows that another lease wrote too are included."""
    found: dict[int, BitMap] = {}
    for stored in storage.objects(join(output, FOLDER), ".json"):
        for unit, index in _kept(storage, stored)[1]:
            if index in committed.get(unit, Committed()).done:
                found.setdefault(unit, BitMap()).add(index)
    return found


def named(rows: Mapping[int, BitMap]) -> str:
    """Their number and the first of them, in words; empty if there are none."""
    if not rows:
        return ""
    unit = min(rows)
    count = sum(map(len, rows.values()))
    return f"{count:,} row{'' if count == 1 else 's'} of a sick replica, such as {row_id(unit, rows[unit].min())}"


def _kept(storage: Storage, stored: Stored) -> tuple[Written, set[Identity]]:
    """The lease of a stored list, and its rows."""
    try:
        number, _, part = stored.path.rpartition("/")[2].removesuffix(".json").partition("-")
        return Written(number=int(number), part=part), {
            (int(unit), int(index)) for unit, index in json.loads(storage.read(stored.path))
        }
    except (ValueError, TypeError):
        raise SystemFailure(f"{stored.path}: is no list of doubtful rows; restore or remove it.") from None
