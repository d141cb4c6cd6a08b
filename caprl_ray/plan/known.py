"""Sets of paths, at 16 bytes each: millions of paths without holding one."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq

from caprl_ray.plan.stored import objects, opened
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.prefetch import prefetched
from caprl_ray.text import readable

PATHS = "entries.list.element.path"
RECENT = 2**16  # in memory as a set of Python's, which takes six times as much
UNITS_AT_ONCE = 64  # in memory as Python's strings; a unit has at most a thousand paths
HASH = np.dtype("S16")


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
        if not isinstance(path, str):
            return False
        return _holds(self._hashes, _hash(readable(path)))

    def __len__(self) -> int:
        return len(self._hashes)


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


def _hashed(units: pq.ParquetFile) -> np.ndarray:
    paths = units.column("entries").flatten().flatten()[0]
    return np.frombuffer(b"".join(map(_hash, paths.to_pylist())), HASH)
