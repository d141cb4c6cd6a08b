"""Fencing: what the tasks of a lost run write after the next run has begun does not count.

A run may be taken for lost while its tasks on other nodes still write. So the name of every object holds the number of
its run's lease. A run that follows one that did not end properly first stores the names of the objects that earlier
leases have left, in `fence/NUMBER.json`. From then on any other object of those leases is late: readers pass over it,
and the end of the next run removes it. Its rows are missing in the output, so they are processed again.

The fence with the highest number counts. Only the holder of that lease writes it, so a run that was overtaken cannot
move it. Objects of older versions have no number in their names; they always count.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from caprl_ray.errors import SystemFailure
from caprl_ray.output.objects import DATA, FAILED, lease_of
from caprl_ray.storage import Storage, Stored, join

FOLDER = "fence"
FOLDERS = (DATA, FAILED)


@dataclass(frozen=True)
class Fence:
    """Objects of leases below `lease` count only if they are among `kept`, as "folder/name"."""

    lease: int = 0
    kept: frozenset[str] = frozenset()

    def keeps(self, stored: Stored) -> bool:
        """Whether an object counts."""
        number = lease_of(stored.path)
        return number is None or number >= self.lease or short(stored.path) in self.kept


def committed_objects(
    storage: Storage, output: str, folders: Iterable[str] = FOLDERS, since: int = 0
) -> dict[str, list[Stored]]:
    """The objects that count, by folder; with `since` only those of that lease and later ones.

    Raises OSError, and SystemFailure for a fence that cannot be read.
    """
    found = _listed(storage, output, folders)
    fence = load(storage, output)

    def counts(stored: Stored) -> bool:
        return fence.keeps(stored) and (not since or (lease_of(stored.path) or 0) >= since)

    return {folder: [*filter(counts, objects)] for folder, objects in found.items()}


def late_objects(storage: Storage, output: str) -> list[Stored]:
    """The objects that do not count. Without a fence, nothing is listed for it."""
    fence = load(storage, output)
    found = _listed(storage, output, FOLDERS) if fence.lease else {}
    return [stored for objects in found.values() for stored in objects if not fence.keeps(stored)]


def sweep(storage: Storage, output: str) -> int:
    """Remove the objects that do not count; returns their number. Only the holder of the lease may do it."""
    late = late_objects(storage, output)
    for stored in late:
        storage.delete(stored.path)
    return len(late)


def close(storage: Storage, output: str, lease: int) -> None:
    """Let only those objects of earlier leases count that count now. Only the holder of `lease` may do it."""
    kept = (
        short(stored.path)
        for objects in committed_objects(storage, output).values()
        for stored in objects
        if lease_of(stored.path) is not None
    )
    _store(storage, output, lease, Fence(lease, frozenset(kept)))


def replace(storage: Storage, output: str, lease: int, kept: Iterable[str]) -> None:
    """Let only the objects count that are `kept`, as "folder/name", and those of later leases: at once, for all
    readers. Objects of `lease` itself count no sooner than they are among them. Only its holder may do it.

    Objects of older versions, whose names have no number, go on to count.
    """
    _store(storage, output, lease, Fence(lease + 1, frozenset(kept)))


def _store(storage: Storage, output: str, number: int, fence: Fence) -> None:
    for stored in _fences(storage, output)[:-1]:  # the last one may just be read by somebody
        storage.delete(stored.path)
    content = json.dumps({"lease": fence.lease, "objects": sorted(fence.kept)}, indent=0).encode()
    storage.put(join(output, FOLDER, f"{number:06d}.json"), content)


def load(storage: Storage, output: str) -> Fence:
    """The fence that counts."""
    fences = _fences(storage, output)
    if not fences:
        return Fence()
    path = fences[-1].path
    try:
        content = json.loads(storage.read(path))
        return Fence(content["lease"], frozenset(content["objects"]))
    except (ValueError, TypeError, KeyError):
        raise SystemFailure(
            f"{path}: is not the fence of a run; restore it, or remove it and run verify --repair; late objects "
            "of lost runs then count."
        ) from None


def highest(storage: Storage, output: str) -> int:
    """The highest number of a lease that has left a fence or an object here."""
    objects = (lease_of(stored.path) for found in _listed(storage, output, FOLDERS).values() for stored in found)
    return max([0, *map(_number, _fences(storage, output)), *filter(None, objects)])


def _listed(storage: Storage, output: str, folders: Iterable[str]) -> dict[str, list[Stored]]:
    return {folder: storage.objects(join(output, folder), ".parquet") for folder in folders}


def _fences(storage: Storage, output: str) -> list[Stored]:
    """The stored fences by their number."""
    found = storage.objects(join(output, FOLDER), ".json")
    return sorted((stored for stored in found if _number(stored)), key=_number)


def _number(fence: Stored) -> int:
    name = fence.path.rpartition("/")[2].removesuffix(".json")
    return int(name) if name.isdecimal() else 0


def short(path: str) -> str:
    """The path of an object below its output."""
    return "/".join(path.rsplit("/", 2)[-2:])
