"""In which objects the finished rows of each unit stand: what reading an output unit by unit needs.

An object holds rows of several units, in any mixture. A record of 24 bytes says so for each pair of an object and a
unit, so that no unit looks for its rows in all objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from caprl_ray.output.committed import identities, opened
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA
from caprl_ray.output.scan import Tell, scan, silent
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.prefetch import prefetched

PLACE = np.dtype([("unit", "<i4"), ("object", "<i4"), ("first", "<i8")])
Numbered = tuple[int, Stored]


@dataclass(frozen=True, kw_only=True)
class Place:
    """An object that holds rows of a unit, the first of them at the index `first`."""

    stored: Stored
    first: int


@dataclass(frozen=True, kw_only=True)
class Places:
    """The places of all units. `found` is sorted by unit and first index."""

    objects: Sequence[Stored]
    found: np.ndarray

    def of(self, unit: int) -> list[Place]:
        """The places of a unit, in the order of their first rows."""
        start, end = np.searchsorted(self.found["unit"], [unit, unit + 1])
        return [
            Place(stored=self.objects[number], first=first)
            for number, first in self.found[["object", "first"]][start:end].tolist()
        ]


def places(storage: Storage, output: str, tell: Tell = silent) -> Places:
    """Read them from the identity columns of all objects. Raises SystemFailure for an object that cannot be read."""
    objects = committed_objects(storage, output, [DATA])[DATA]
    parts = scan(partial(_places, storage), {DATA: list(enumerate(objects))}, "reading the output's objects", tell)
    found = np.concatenate([np.empty(0, PLACE), *parts])
    return Places(objects=objects, found=np.sort(found, order=["unit", "first", "object"]))


def _places(storage: Storage, folder: str, objects: Sequence[Numbered]) -> np.ndarray:
    return np.concatenate([np.empty(0, PLACE), *prefetched(lambda item: _places_in(storage, *item), objects)])


def _places_in(storage: Storage, number: int, stored: Stored) -> np.ndarray:
    with opened(storage, stored) as file:
        rows = np.sort(identities(file.read(columns=["unit", "index"], use_threads=False)))
    first = rows[np.diff(rows >> 32, prepend=-1) != 0]
    found = np.empty(len(first), PLACE)
    found["unit"], found["object"], found["first"] = first >> 32, number, first & 0xFFFFFFFF
    return found
