"""Work units as a source plans them."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa

from caprl_ray.storage import Stored

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored object of a unit, with the key of its row (or of the shard itself)."""

    stored: Stored
    key: str


@dataclass(frozen=True, kw_only=True)
class Position:
    """The position of planning: everything of the input up to `object` is planned.

    `object` was found at the path number `path` of the recipe, by the name number `name` that this path expands to.
    `paths` is a hash of the recipe's paths up to this one. With other paths the position says nothing. `kind` is the
    kind of this path's objects. `linked`: a link has led to an object so far.
    """

    paths: str
    path: int
    name: int
    object: str
    kind: str
    linked: bool = False


@dataclass(frozen=True, kw_only=True)
class Lines:
    """A range of a text file's lines: its bytes [start, end), the number of its first row in the file, from 0, and the
    number of lines before it."""

    start: int
    end: int
    row: int
    line: int


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A work unit as a source plans it.

    `rows` is None if only reading tells the number. `columns` are the source's own columns under their names in the
    output; a stored unit has them in the plan, not here. `row_groups` is the range [first, end) of a parquet file,
    which has `file_groups` of them, and `first_row` is the number of its first row in the file; None where a plan of an
    older version does not say so. `lines` is the range of a manifest's lines. `bytes` is the cost of reading it, if
    that is not the size of the entries.

    `more` says that the next unit is of the same object. `position` is how far planning has come with this unit; None
    if it is not known. Neither is stored with the unit.
    """

    kind: str
    rows: int | None
    entries: list[Entry]
    columns: pa.Schema = field(default_factory=lambda: pa.schema([]))
    row_groups: tuple[int, int] | None = None
    file_groups: int | None = None
    first_row: int | None = None
    lines: Lines | None = None
    bytes: int | None = None
    more: bool = False
    position: Position | None = None

    @property
    def size(self) -> int:
        """The stored bytes that reading the unit costs."""
        return sum(entry.stored.size for entry in self.entries) if self.bytes is None else self.bytes


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
