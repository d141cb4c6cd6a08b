"""Sets of paths, at 16 bytes each, or 25 with their versions: millions of paths without holding one."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow.parquet as pq

from caprl_ray.plan.stored import objects, opened
from caprl_ray.storage import LOOKUPS, Storage, Stored
from caprl_ray.storage.hub import unpinned
from caprl_ray.storage.prefetch import prefetched
from caprl_ray.text import as_named, readable

PATHS = "entries.list.element.path"
RECENT = 2**16  # in memory as a set of Python's, which takes six times as much
UNITS_AT_ONCE = 64  # in memory as Python's strings; a unit has at most a thousand paths
HASH = np.dtype("S16")
KNOWN = np.dtype([("path", HASH), ("version", ">u8")])
SORTED = np.dtype(f"S{KNOWN.itemsize}")  # the same bytes: sorted in place, and searched without a copy
LAST = b"\xff" * (KNOWN.itemsize - HASH.itemsize)  # no version comes after it


class PlannedPaths:
    """The set of a stored plan's paths, as sorted hashes. Two of a billion paths collide in one of 10^20 plans."""

    def __init__(self, storage: Storage, output: str) -> None:
        found = objects(storage, output)
        # One array of the whole size, sorted in place: no second copy of the hashes is ever there.
        hashes = np.empty(sum(prefetched(lambda stored: _count(storage, stored), found)), HASH)
        end = 0
        for stored in found:
            for some in _hashes(storage, stored):
                hashes[end : end + len(some)] = some
                end += len(some)
        self._hashes = hashes[:end]
        self._hashes.sort()

    def __contains__(self, path: object) -> bool:
        if isinstance(path, Stored):
            path = path.path
        if not isinstance(path, str):
            return False
        return _holds(self._hashes, _hash(readable(path)))

    def __len__(self) -> int:
        return len(self._hashes)


class PlannedVersions:
    """The planned paths and versions, compared with the present listing: 25 bytes per path, also while it is loaded.

    Attributes:
        touched, changed: listed objects of another version, and the planned or another size; each with an example.
    """

    def __init__(self, storage: Storage, output: str) -> None:
        self._storage, self._parts = storage, objects(storage, output)
        count = sum(prefetched(lambda stored: _count(storage, stored), self._parts))
        found, end = np.empty(count, KNOWN), 0
        for stored in self._parts:
            for paths, versions in _versions(storage, stored):
                some = found[end : end + len(paths)]
                some["path"], some["version"] = paths, versions
                end += len(paths)
        self._known = found[:end]
        self._sorted = self._known.view(SORTED)
        self._sorted.sort()
        self._seen = np.zeros(end, bool)
        self.touched, self.changed = Example(), Example()

    def __contains__(self, stored: object) -> bool:
        """Whether an object's path is planned. Notes it, and whether it is the planned version."""
        assert isinstance(stored, Stored)
        place, end = self._places(stored.path)
        if place == end:
            return False
        self._seen[place:end] = True
        now, planned = _version(stored.size, stored.version), int(self._known["version"][place])
        if now != planned:
            (self.touched if now >> 32 == planned >> 32 else self.changed).add(stored.path)
        return True

    def removed(self, most: int) -> "Example":
        """The planned paths that were not listed and are gone. At most so many are looked up. One that storage cannot
        tell of is not gone."""
        gone = Example()
        for path in prefetched(self._gone, islice(self._unseen(), most), LOOKUPS):
            if path:
                gone.add(path)
        return gone

    def _unseen(self) -> Iterator[str]:
        """The planned paths that were not listed, each once."""
        for stored in self._parts:
            if self._seen.all():
                return
            for path in _paths(self._storage, stored):
                place, end = self._places(path)
                if place < end and not self._seen[place]:
                    self._seen[place:end] = True
                    yield path

    def _gone(self, path: str) -> str | None:
        try:
            return path if self._storage.lookup(path) is None else None
        except OSError:
            return None

    def _places(self, path: str) -> tuple[int, int]:
        wanted = _hash(readable(path))
        first = int(np.searchsorted(self._sorted, np.bytes_(wanted)))
        return first, int(np.searchsorted(self._sorted, np.bytes_(wanted + LAST), "right"))


@dataclass
class Example:
    """A number of paths, and the first of them."""

    count: int = 0
    path: str = ""

    def add(self, path: str) -> None:
        """Count a path."""
        self.count += 1
        self.path = self.path or path


class Seen:
    """A set of paths that grows. Older paths are in sorted arrays, each at least as large as all that are newer."""

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._sorted: list[np.ndarray] = []

    def add(self, path: str) -> bool:
        """Add a path. Returns whether it is new."""
        wanted = _hash(path)
        if wanted in self._recent or any(_holds(hashes, wanted) for hashes in self._sorted):
            return False
        self._recent.add(wanted)
        if len(self._recent) == RECENT:
            self._settle()
        return True

    def _settle(self) -> None:
        newest = np.fromiter(self._recent, HASH, len(self._recent))
        while self._sorted and len(self._sorted[-1]) <= len(newest):
            newest = np.concatenate([self._sorted.pop(), newest])
        newest.sort()
        self._sorted.append(newest)
        self._recent = set()


def _holds(hashes: np.ndarray, wanted: bytes) -> bool:
    place = int(np.searchsorted(hashes, np.bytes_(wanted)))
    return place < len(hashes) and bool(hashes[place] == wanted.rstrip(b"\0"))


def _hash(path: str) -> bytes:
    """A file of a repository is the same in each of its commits: its version tells whether it changed."""
    path = unpinned(path)
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=HASH.itemsize).digest()


def _count(storage: Storage, stored: Stored) -> int:
    """The paths of one object, or a few more."""
    with opened(storage, stored) as file:
        column = file.schema.names.index("path")
        groups = map(file.metadata.row_group, range(file.num_row_groups))
        return sum(group.column(column).num_values for group in groups)


def _hashes(storage: Storage, stored: Stored) -> Iterator[np.ndarray]:
    with opened(storage, stored) as file:
        yield from map(_hashed, file.iter_batches(UNITS_AT_ONCE, columns=[PATHS], use_threads=False))


def _versions(storage: Storage, stored: Stored) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    columns = [PATHS, *(f"entries.list.element.{name}" for name in ("size", "version"))]
    with opened(storage, stored) as file:
        for units in file.iter_batches(UNITS_AT_ONCE, columns=columns, use_threads=False):
            paths, sizes, versions = units.column("entries").flatten().flatten()
            pairs = zip(sizes.to_pylist(), versions.to_pylist(), strict=True)
            numbers = np.fromiter((_version(*pair) for pair in pairs), np.uint64, len(sizes))
            yield np.frombuffer(b"".join(map(_hash, paths.to_pylist())), HASH), numbers


def _version(size: int, version: str) -> int:
    """A hash of the size, then one of the version."""
    return (size & 0xFFFFFFFF) << 32 | int.from_bytes(hashlib.blake2b(version.encode(), digest_size=4).digest(), "big")


def _paths(storage: Storage, stored: Stored) -> Iterator[str]:
    """The paths of one object as storage knows them."""
    with opened(storage, stored) as file:
        for units in file.iter_batches(UNITS_AT_ONCE, columns=[PATHS], use_threads=False):
            yield from map(as_named, units.column("entries").flatten().flatten()[0].to_pylist())


def _hashed(units: pq.ParquetFile) -> np.ndarray:
    paths = units.column("entries").flatten().flatten()[0]
    return np.frombuffer(b"".join(map(_hash, paths.to_pylist())), HASH)
