"""The parts of an export: consecutive units of the plan that are written as one file, or as a few."""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, groupby

import pyarrow as pa

from caprl_ray import plan
from caprl_ray.export.rows import UnitRows
from caprl_ray.output.places import origin
from caprl_ray.storage import Storage

SHARDS, TABLES = "webdataset", "parquet"
# A key as the name of a file: no names that hide files, leave the folder or are the export's own.
_FIT = re.compile(r"(?![._/])(?!.*/[._/])[^\x00-\x1f\x7f\\]{1,900}")
_PACKED = re.compile(r"\.(?:gz|bz2|xz|zst)$|(?<=\.t)(?:gz|bz2?|xz|zst)$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Units that are written together. `name` is that of their file, without its ending, and `number` their number.
    `columns` are those of the file, if all files must have the same."""

    name: str
    number: int
    units: Sequence[UnitRows]
    columns: str = ""

    @property
    def kept(self) -> int:
        """How many rows it has."""
        return sum(len(unit.kept) for unit in self.units)

    @property
    def rows(self) -> str:
        """A hash of which rows it has, of which units, of where they were first written, and of its columns. Two parts
        with one hash have the same content."""
        return self._hash(lambda unit: origin(unit.places))

    def same(self, rows: str) -> bool:
        """Whether a recorded hash is that of its rows. Versions up to 0.4.0 recorded in which objects they stood."""
        return rows == self.rows or rows == self._hash(_paths)

    def _hash(self, told: Callable[[UnitRows], str]) -> str:
        digest = hashlib.sha256(self.columns.encode())
        for unit in self.units:
            digest.update(f"{unit.ref.unit} {unit.rows}\n".encode() + unit.kept.serialize())
            digest.update(told(unit).encode())
        return digest.hexdigest()[:32]


def _paths(unit: UnitRows) -> str:
    return "\n".join(place.stored.path for place in unit.places)


def by_rows(units: Iterable[UnitRows], most: int, first: int = 0) -> Iterator[Part]:
    """Whole units up to `most` rows, at least one, numbered from `first`."""
    held: list[UnitRows] = []
    number, rows = first, 0
    for unit in units:
        if held and rows + unit.rows > most:
            yield Part(name=f"{number:06d}", number=number, units=held)
            held, number, rows = [], number + 1, 0
        held.append(unit)
        rows += unit.rows
    if held:
        yield Part(name=f"{number:06d}", number=number, units=held)


def with_columns(parts: Iterable[Part], schema: pa.Schema) -> Iterator[Part]:
    """Parts whose files have these columns. With others they are written again, so that no two files differ."""
    told = [*((field.name, str(field.type)) for field in schema), *sorted((schema.metadata or {}).items())]
    columns = hashlib.sha256(repr(told).encode()).hexdigest()
    return (replace(part, columns=columns) for part in parts)


def by_source(storage: Storage, units: Sequence[UnitRows], taken: Iterable[str] = ()) -> Iterator[Part]:
    """A part for each shard and each parquet file, named by it, and one for each other unit, named by its number.

    Names in `taken` are those of other parts."""
    entries = plan.first_entries(storage, [unit.ref for unit in units if unit.ref.kind in (SHARDS, TABLES)])
    names = set(taken)

    def source(unit: UnitRows) -> tuple[str, str]:
        if unit.ref.kind not in (SHARDS, TABLES):
            return "", f"{unit.ref.unit:06d}"
        entry = next(entries)
        return entry.stored.path, entry.key

    for number, ((_, key), some) in enumerate(groupby(units, key=source)):
        of_one = list(some)
        name = file_name(key, of_one[0].ref.unit, names)
        names.add(name)
        yield Part(name=name, number=number, units=of_one)


def file_name(key: str, unit: int, taken: Collection[str]) -> str:
    """A file's name from a key, and the first of several that is not taken. A key that is not fit gives the unit's
    number, and one that is taken gets it."""
    name = _PACKED.sub("", key)
    name = name[: -len(ending)] if (ending := _ending(name)) else name
    fit = (name, f"{name}.{unit:06d}") if _FIT.fullmatch(name) else ()
    numbered = (f"{unit:06d}.{number}" for number in count(1))
    return next(one for one in chain(fit, (f"{unit:06d}",), numbered) if one not in taken)


def _ending(name: str) -> str:
    return next((end for end in (".tar", ".t", ".parquet") if name.lower().endswith(end)), "")
