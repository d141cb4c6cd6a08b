"""Rows whose captions cannot be trusted any more, because a fault of the replica that wrote them showed later.

They are kept in OUT/doubtful/LEASE.json from the moment at which the replica is found sick. The end of the run, or else
the start of the next one (of that part) or `verify --repair`, removes them from the objects of that lease. So they are
missing, and are processed again. Until then who reads the output asks which they are (`standing`).
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
    """Remove all doubtful rows from the output; returns them. An output that had some is not complete any more.

    With `part` only those of its leases. What compacting has put into objects of the whole output is left to the
    holder of its lease: several parts may have rows in one object.

    Only the holder of the lease may do it.

    Raises SystemFailure for a file that is none of a run.
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
    """The doubtful rows among the rows of an output, by unit. One that another lease wrote too is among them."""
    found: dict[int, BitMap] = {}
    for stored in storage.objects(join(output, FOLDER), ".json"):
        for unit, index in _kept(storage, stored)[1]:
            if index in committed.get(unit, Committed()).done:
                found.setdefault(unit, BitMap()).add(index)
    return found


def named(rows: Mapping[int, BitMap]) -> str:
    """How many they are, and the first of them; empty for none."""
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
