"""Rows whose captions cannot be trusted any more, because a fault of the replica that wrote them showed later.

They are kept in OUT/doubtful/LEASE.json from the moment at which the replica is found sick. The end of the run, or else
the start of the next one, removes them from the objects of that lease. So they are missing, and are processed again.
"""

import json
from collections.abc import Collection

from caprl_ray.errors import SystemFailure
from caprl_ray.output.repair import forget
from caprl_ray.storage import Storage, join

FOLDER = "doubtful"
Identity = tuple[int, int]  # unit and index


def keep(storage: Storage, output: str, lease: int, rows: Collection[Identity]) -> None:
    """Store the doubtful rows of a lease."""
    storage.put(_path(output, lease), json.dumps(sorted(rows)).encode())


def settle(storage: Storage, output: str) -> set[Identity]:
    """Remove all doubtful rows from the output; returns them. Only the holder of the lease may do it.

    Raises SystemFailure for a file that is none of a run.
    """
    removed: set[Identity] = set()
    for stored in storage.objects(join(output, FOLDER), ".json"):
        try:
            lease = int(stored.path.rpartition("/")[2].removesuffix(".json"))
            rows = {(int(unit), int(index)) for unit, index in json.loads(storage.read(stored.path))}
        except (ValueError, TypeError):
            raise SystemFailure(f"{stored.path}: is no list of doubtful rows; restore or remove it.") from None
        forget(storage, output, rows, lease)
        storage.delete(stored.path)
        removed |= rows
    return removed


def _path(output: str, lease: int) -> str:
    return join(output, FOLDER, f"{lease:06d}.json")
