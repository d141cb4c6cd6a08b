"""Fencing: late writes of a lost run do not count after the next run has begun.

Tasks of a lost run may still write on other nodes. So the name of every object has the number of its run's lease. If a
run did not end properly, the next run stores the names of all existing objects of earlier leases in
`fence/NUMBER.json`. From then on, other objects of those leases are late: readers ignore them, and the end of the next
run removes them. Their rows are missing in the output, so they are processed again.

The fence with the highest number counts. Only the holder of that lease writes it, so a run that lost its lease cannot
change it. Objects of older versions have no number in their names; they always count.

Each part of an output (output/part.py) has leases and fences of its own, and the names of its objects have the part. So
the fence of a part excludes no objects of other parts.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from caprl_ray.errors import SystemFailure
from caprl_ray.output.objects import DATA, FAILED, Written, written_under
from caprl_ray.output.part import Part
from caprl_ray.storage import Storage, Stored, join
from caprl_ray.storage.prefetch import prefetched

FOLDER = "fence"
FOLDERS = (DATA, FAILED)
LISTINGS = 5  # of the objects, while compacting replaces them
_NAME = re.compile(r"(\d{6,})(?:-([1-9]\d*of[1-9]\d*))?\.json")


@dataclass(frozen=True)
class Fence:
    """Objects of leases below `lease` count only if they are among `kept`, as "folder/name"."""

    lease: int = 0
    kept: frozenset[str] = frozenset()

    parts: Mapping[str, int] = field(default_factory=dict)
    """In a fence of the whole output: objects of leases of a part below this number count only if they are among
    `kept`, too. Compacting replaces them (output/compact.py)."""

    def plain(self) -> dict[str, Any]:
        """The fence as stored JSON."""
        return {"lease": self.lease, "objects": sorted(self.kept), **({"parts": self.parts} if self.parts else {})}


class Fences(dict[str, Fence]):
    """The present fences by part. The fence of the whole output's leases has an empty name."""

    def keep(self, stored: Stored, written: Written | None) -> bool:
        """Whether an object counts. `written` is the lease in its name."""
        fence = self._of(written) if written else None
        return fence is None or short(stored.path) in fence.kept

    def compacted(self, written: Written) -> bool:
        """Whether compacting may have moved rows of this lease of a part into objects of the whole output."""
        return bool(written.part and "" in self and written.number < self[""].parts.get(written.part, 0))

    def _of(self, written: Written) -> Fence | None:
        """The fence that decides whether an object of this lease counts; None if it always counts."""
        if self.compacted(written):
            return self[""]
        own = self.get(written.part)
        return own if own and written.number < own.lease else None


def committed_objects(
    storage: Storage,
    output: str,
    folders: Iterable[str] = FOLDERS,
    since: Written | None = None,
    part: Part | None = None,
) -> dict[str, list[Stored]]:
    """The objects that count, by folder.

    Args:
        storage: of the output.
        output: the output's path.
        folders: `data`, `failed` or both.
        since: only those of this lease and of later ones of the same part. If compacting has moved their rows into
            objects of the whole output, those too.
        part: leave out objects of the other parts of the same division, which hold none of its units.

    Raises OSError, and SystemFailure if a fence cannot be read, or if compacting changes the objects in every attempt.
    """
    found, fences = _listed_with_fences(storage, output, folders)
    moved = bool(since and fences.compacted(since))

    def counts(stored: Stored) -> bool:
        written = written_under(stored.path)
        if not fences.keep(stored, written) or _is_of_neighbour(written, part):
            return False
        return _is_since(written, since) or bool(moved and written and not written.part)

    return {folder: [*filter(counts, objects)] for folder, objects in found.items()}


def _listed_with_fences(
    storage: Storage, output: str, folders: Iterable[str]
) -> tuple[dict[str, list[Stored]], Fences]:
    """A consistent listing of objects and fences: compacting may write its fence between two requests."""
    for _ in range(LISTINGS):
        before = _fences(storage, output)
        fences, found = _loaded(storage, before), _listed(storage, output, folders)
        if _fences(storage, output)[""][-1:] == before[""][-1:]:
            return found, fences
    raise SystemFailure(f"{output}: its objects are being merged (caprl-ray compact); try again when that has ended.")


def _is_since(written: Written | None, since: Written | None) -> bool:
    return not since or bool(written and written.part == since.part and written.number >= since.number)


def _is_of_neighbour(written: Written | None, part: Part | None) -> bool:
    writer = Part.named(written.part) if part and written else None
    return bool(part and writer and writer.of == part.of and writer != part)


def late_objects(storage: Storage, output: str, part: str | None = None) -> list[Stored]:
    """The objects that do not count; with `part` only those of its leases. Without a fence, nothing is listed."""
    fences = load(storage, output)
    if part is not None:
        fences = Fences({name: fence for name, fence in fences.items() if name == part})
    found = _listed(storage, output, FOLDERS) if fences else {}
    return [
        stored
        for objects in found.values()
        for stored in objects
        if not fences.keep(stored, written_under(stored.path))
    ]


def sweep(storage: Storage, output: str, part: str | None = None) -> int:
    """Remove the objects that do not count; returns their number. Only the holder of the lease may do it."""
    late = late_objects(storage, output, part)
    for stored in late:
        storage.delete(stored.path)
    return len(late)


def close(storage: Storage, output: str, lease: int, part: str = "") -> None:
    """Store the fence of a part: of its earlier leases, only the present objects count from now on. Only the holder of
    `lease` may do it."""
    close_all(storage, output, {part: lease})


def close_all(storage: Storage, output: str, leases: Mapping[str, int]) -> None:
    """Store the fences of several parts, given as the lease of each part. Lists the objects once."""
    fences, found = load(storage, output), committed_objects(storage, output).values()
    parts = fences[""].parts if "" in leases and "" in fences else {}
    kept: dict[str, set[str]] = {part: set() for part in leases}
    for stored in chain.from_iterable(found):
        if written := written_under(stored.path):
            part = "" if written.number < parts.get(written.part, 0) else written.part
            kept.get(part, set()).add(short(stored.path))
    for part, lease in leases.items():
        fence = Fence(lease, frozenset(kept[part]), {} if part else parts)
        _store(storage, output, Written(number=lease, part=part), fence)


def replace(storage: Storage, output: str, lease: int, kept: Iterable[str], parts: Mapping[str, int]) -> None:
    """Switch to another set of objects, at once for all readers: only `kept`, as "folder/name", and objects of later
    leases count. Other objects of `lease` itself do not count yet. Only its holder may do it.

    `parts` has the first number of later leases of each part. Objects of older versions, without a number in their
    names, still count.
    """
    _store(storage, output, Written(number=lease), Fence(lease + 1, frozenset(kept), parts))


def _store(storage: Storage, output: str, under: Written, fence: Fence) -> None:
    for stored in _fences(storage, output)[under.part][:-1]:  # the last one may just be read by somebody
        storage.delete(stored.path)
    storage.put(join(output, FOLDER, f"{under.name}.json"), json.dumps(fence.plain(), indent=0).encode())


def load(storage: Storage, output: str) -> Fences:
    """The fences that count."""
    return _loaded(storage, _fences(storage, output))


def _loaded(storage: Storage, stored: Mapping[str, list[Stored]]) -> Fences:
    last = {part: fences[-1] for part, fences in stored.items() if fences}
    return Fences(zip(last, prefetched(partial(_read, storage), last.values()), strict=True))


def _read(storage: Storage, stored: Stored) -> Fence:
    try:
        content = json.loads(storage.read(stored.path))
        return Fence(content["lease"], frozenset(content["objects"]), content.get("parts", {}))
    except (ValueError, TypeError, KeyError):
        raise SystemFailure(
            f"{stored.path}: is not the fence of a run; restore it, or remove it and run verify --repair; late objects "
            "of lost runs then count."
        ) from None


def highest(storage: Storage, output: str, part: str = "") -> int:
    """The highest number of a lease of `part` that has left a fence or an object here, or a trace in a fence."""
    return later(storage, output).get(part, 1) - 1


def later(storage: Storage, output: str) -> dict[str, int]:
    """By part, the number that is higher than that of every lease which has left something here."""
    objects = [stored for found in _listed(storage, output, FOLDERS).values() for stored in found]
    found = [written for stored in objects if (written := written_under(stored.path))]
    fences = _fences(storage, output)
    found += [Written(number=_number(stored), part=part) for part, some in fences.items() for stored in some]
    numbers = dict(load(storage, output)[""].parts) if "" in fences else {}
    for written in found:
        numbers[written.part] = max(numbers.get(written.part, 0), written.number + 1)
    return numbers


def _listed(storage: Storage, output: str, folders: Iterable[str]) -> dict[str, list[Stored]]:
    return {folder: storage.objects(join(output, folder), ".parquet") for folder in folders}


def _fences(storage: Storage, output: str) -> Mapping[str, list[Stored]]:
    """The stored fences by part, each in the order of their numbers."""
    found: defaultdict[str, list[Stored]] = defaultdict(list)
    for stored in storage.objects(join(output, FOLDER), ".json"):
        match = _NAME.fullmatch(_file(stored))
        if match and int(match[1]):
            found[match[2] or ""].append(stored)
    for fences in found.values():
        fences.sort(key=_number)
    return found


def _number(fence: Stored) -> int:
    return int(_file(fence).partition(".")[0].partition("-")[0])


def _file(stored: Stored) -> str:
    return stored.path.rpartition("/")[2]


def short(path: str) -> str:
    """The path of an object below its output."""
    return "/".join(path.rsplit("/", 2)[-2:])
