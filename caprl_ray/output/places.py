"""The objects that hold the rows of each unit, to read an output unit by unit.

An object may hold rows of several units. There is a record of 16 bytes for each pair of an object and a unit, so that
no unit has to search all objects for its rows.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, overload

import numpy as np
import pyarrow as pa

from caprl_ray.output.committed import identities, opened
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA, ORIGINS
from caprl_ray.output.scan import Tell, scan, silent
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.prefetch import prefetched

# The identity of a unit's first row in an object, as unit * 2^32 + index, and the number of its rows there.
PLACE = np.dtype([("first", "<i8"), ("object", "<i4"), ("rows", "<i4")])
Numbered = tuple[int, Stored]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """An object that holds rows of a unit, the first of them at the index `first`.

    `origin` names the objects in which the rows were first written. Compacting does not change it.
    """

    stored: Stored
    first: int
    origin: str = ""


def origin(places: Iterable[Place]) -> str:
    """The origin of all rows of a unit; with several places, a hash of their origins."""
    names = [place.origin for place in places]
    return names[0] if len(names) == 1 else hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Places:
    """The places of all units in some objects, with the fields of PLACE, sorted by first row and object.

    `origins` has those of compacted objects, by the number of the object and the unit's number as text. `schemas` are
    the columns of the objects, each set of columns once.
    """

    objects: Sequence[Stored]
    first: np.ndarray
    object: np.ndarray
    rows: np.ndarray
    origins: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    schemas: Sequence[pa.Schema] = ()

    @classmethod
    def of_parts(cls, objects: Sequence[Stored], parts: Iterable["Found"]) -> "Places":
        """The places from what was found in the objects."""
        some, origins, schemas = [np.empty(0, PLACE)], dict[int, Mapping[str, str]](), list[pa.Schema]()
        for records, told, others in parts:
            some.append(records)
            origins |= told
            schemas += [schema for schema in others if schema not in schemas]
        found = np.concatenate(some)
        found = found[np.lexsort((found["object"], found["first"]))]
        columns = {name: np.ascontiguousarray(found[name]) for name in ("first", "object", "rows")}
        return cls(objects=objects, origins=origins, schemas=schemas, **columns)

    def range(self, unit: int) -> slice:
        """The range of a unit's places."""
        start, end = np.searchsorted(self.first, [unit << 32, (unit + 1) << 32]).tolist()
        return slice(start, end)

    def of(self, unit: int) -> "UnitPlaces":
        """The places of a unit."""
        return UnitPlaces(self, self.range(unit))

    def origin(self, unit: str, number: int) -> str:
        """The origin of the rows of a unit in one of the objects."""
        name = self.objects[number].path.rpartition("/")[2]
        told = self.origins.get(number)
        return name if told is None else told.get(unit, name)


class UnitPlaces(Sequence[Place]):
    """The places of one unit, created lazily; pickled as a list."""

    def __init__(self, places: Places, where: slice) -> None:
        self._places, self._where = places, range(where.start, where.stop)

    def __len__(self) -> int:
        return len(self._where)

    @overload
    def __getitem__(self, number: int) -> Place: ...

    @overload
    def __getitem__(self, number: slice) -> list[Place]: ...

    def __getitem__(self, number: int | slice) -> Place | list[Place]:
        if isinstance(number, slice):
            return list(map(self._at, self._where[number]))
        return self._at(self._where[number])

    def __reduce__(self) -> Any:
        return list, (list(self),)

    def _at(self, place: int) -> Place:
        places, first = self._places, int(self._places.first[place])
        number = int(places.object[place])
        told = places.origin(str(first >> 32), number)
        return Place(stored=places.objects[number], first=first & 0xFFFFFFFF, origin=told)


# The records of some objects, the origins of those of them that are compacted, and their columns.
Found = tuple[np.ndarray, dict[int, Mapping[str, str]], list[pa.Schema]]


def places(storage: Storage, output: str, tell: Tell = silent, folder: str = DATA) -> Places:
    """Read them from the identity columns of all objects. Raises SystemFailure for an object that cannot be read."""
    objects = committed_objects(storage, output, [folder])[folder]
    parts = scan(partial(_places, storage), {folder: list(enumerate(objects))}, "reading the output's objects", tell)
    return Places.of_parts(objects, parts)


def _places(storage: Storage, folder: str, objects: Sequence[Numbered]) -> Found:
    records, origins, schemas = [np.empty(0, PLACE)], dict[int, Mapping[str, str]](), list[pa.Schema]()
    for number, some, told, schema in prefetched(lambda item: _places_in(storage, *item), objects):
        records.append(some)
        if told:
            origins[number] = json.loads(told)
        if schema not in schemas:
            schemas.append(schema)
    return np.concatenate(records), origins, schemas


def _places_in(storage: Storage, number: int, stored: Stored) -> tuple[int, np.ndarray, bytes | None, pa.Schema]:
    with opened(storage, stored) as file:
        rows = np.sort(identities(file.read(columns=["unit", "index"], use_threads=False)), kind="stable")
        told, schema = (file.metadata.metadata or {}).get(ORIGINS), file.schema_arrow.remove_metadata()
    starts = np.flatnonzero(np.diff(rows >> 32, prepend=-1))
    found = np.empty(len(starts), PLACE)
    found["first"], found["object"], found["rows"] = rows[starts], number, np.diff(starts, append=len(rows))
    return number, found, told, schema


def runs(identity: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Each unit of sorted identities, with the range of its rows."""
    cuts = np.flatnonzero(np.diff(identity >> 32, prepend=-1)).tolist()
    for start, end in zip(cuts, [*cuts[1:], len(identity)], strict=True):
        yield int(identity[start]) >> 32, start, end
