"""The rows of an output that a page shows: chosen by stratum, failures and flags first, the same rows each time.

Strata are kinds of rows: failed with one code, one flag, repaired, a range of lengths, a range of sizes, and all. Each
keeps the rows with the lowest numbers, and a row's number is a hash of its identity. So the choice needs one pass and
bounded memory, and does not depend on the order of the objects.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caprl_ray.output.tallies import LENGTHS

FAILED, FLAG, REPAIRED, LENGTH, SIZE, ANY = "failed", "flag", "repaired", "length", "size", "any"
# The part of the rows that each kind of stratum may take; what it does not need goes to the last one.
SHARES = {FAILED: 0.25, FLAG: 0.35, REPAIRED: 0.08, LENGTH: 0.1, SIZE: 0.1, ANY: 1.0}
PIXELS = (0, 100_000, 300_000, 1_000_000, 4_000_000, 12_000_000)  # the lower ends of ranges of width * height
# Rows of this many units are preferred, because a shard is read from its start, so each further one costs time.
UNITS = 32
SPARE = 32  # rows that a stratum keeps beyond its share, for those that stand for another stratum
MOST_KINDS = 64  # flags or codes that have a stratum of their own

Row = dict[str, Any]
Name = tuple[str, str]  # of a stratum: its kind, and which


@dataclass
class _Stratum:
    """The `most` rows with the lowest numbers."""

    most: int
    # A heap by the negative number. The third is unique, because a broken output may hold a row twice.
    rows: list[tuple[int, str, int, Row]] = field(default_factory=list)
    seen: int = 0

    def wanted(self, numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Those of the places that may come in."""
        if len(self.rows) == self.most:
            places = places[numbers[places] < np.uint64(-self.rows[0][0])]
        if len(places) > self.most:
            places = places[np.argpartition(numbers[places], self.most - 1)[: self.most]]
        return places

    def add(self, number: int, row: Row) -> None:
        """Take in a row."""
        self.seen += 1
        push = heapq.heappush if len(self.rows) < self.most else heapq.heappushpop
        push(self.rows, (-number, row["id"], self.seen, row))

    def sorted(self) -> list[Row]:
        """The rows, the lowest number first."""
        return [row for *_, row in sorted(self.rows, key=lambda one: (-one[0], *one[1:3]))]


class Strata:
    """Takes in the rows of an output, a table at a time, and gives `most` of them. `units` are those of the plan."""

    def __init__(self, most: int, units: int) -> None:
        self._most = most
        self._every = np.uint64(max(1, -(-units // UNITS)))
        self._strata: dict[Name, _Stratum] = {}

    def add(self, table: pa.Table) -> None:
        """Take in rows of `data` or of `failed`."""
        numbers = self._numbers(table)
        wanted = {name: self._wanted(name, numbers, places) for name, places in _strata(table)}
        places = np.unique(np.concatenate([np.empty(0, np.int64), *wanted.values()]))
        rows = dict(zip(places.tolist(), table.take(pa.array(places)).to_pylist(), strict=True))
        for name, of in wanted.items():
            for place in of.tolist():
                self._strata[name].add(int(numbers[place]), rows[place])

    def rows(self) -> list[tuple[Name, Row]]:
        """The chosen rows, each with the stratum that it stands for: first failed and flagged ones in turn."""
        taken: dict[str, tuple[Name, Row]] = {}
        left = self._most
        for kind, share in SHARES.items():
            quota = min(left, int(share * self._most))
            strata = [(name, self._strata[name].sorted()) for name in sorted(self._strata) if name[0] == kind]
            for name, row in _in_turn(strata):
                if quota and row["id"] not in taken:
                    taken[row["id"]] = name, row
                    quota, left = quota - 1, left - 1
        return _first_in_turn(list(taken.values()))

    def _wanted(self, name: Name, numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
        if name not in self._strata:
            if sum(other[0] == name[0] for other in self._strata) >= MOST_KINDS:
                return places[:0]
            self._strata[name] = _Stratum(min(self._most, int(SHARES[name[0]] * self._most) + SPARE))
        return self._strata[name].wanted(numbers, places)

    def _numbers(self, table: pa.Table) -> np.ndarray:
        """A number for each row: lower for rows of the preferred units, and otherwise by a hash."""
        unit = table["unit"].to_numpy().astype(np.uint64)
        number = mixed(unit << np.uint64(32) | table["index"].to_numpy().astype(np.uint64)) >> np.uint64(2)
        others = (mixed(unit) % self._every != 0).astype(np.uint64)
        shifted: np.ndarray = number + (others << np.uint64(62))
        return shifted


def mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014): near numbers become far ones."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    last: np.ndarray = values ^ (values >> np.uint64(31))
    return last


def _in_turn(strata: list[tuple[Name, list[Row]]]) -> Iterator[tuple[Name, Row]]:
    """One row of each, then the next of each."""
    for round_ in zip_longest(*([(name, row) for row in rows] for name, rows in strata)):
        yield from filter(None, round_)


def _first_in_turn(rows: list[tuple[Name, Row]]) -> list[tuple[Name, Row]]:
    """A failed row of each code, a flagged row of each flag, and again; then the others as they are."""
    strata: dict[Name, list[Row]] = {}
    for name, row in rows:
        if name[0] in (FAILED, FLAG):
            strata.setdefault(name, []).append(row)
    return [*_in_turn(list(strata.items())), *(one for one in rows if one[0] not in strata)]


def _strata(table: pa.Table) -> Iterator[tuple[Name, np.ndarray]]:
    """The strata that rows of this table belong to, with the rows' places."""
    if "code" in table.schema.names:
        yield from _by_value(FAILED, table["code"])
        return
    yield from _by_flag(table)
    if "repaired" in table.schema.names:
        repaired = pc.fill_null(pc.list_value_length(table["repaired"]), 0).to_numpy()
        yield (REPAIRED, ""), np.flatnonzero(repaired)
    characters = pc.fill_null(pc.utf8_length(table["caption"]), 0).to_numpy()
    yield from _by_range(LENGTH, characters, LENGTHS)
    width, height = (pc.fill_null(table[name], 0).to_numpy().astype(np.int64) for name in ("width", "height"))
    yield from _by_range(SIZE, width * height, PIXELS)
    yield (ANY, ""), np.arange(table.num_rows)


def _by_value(kind: str, values: pa.ChunkedArray) -> Iterator[tuple[Name, np.ndarray]]:
    encoded = pc.fill_null(values, "").combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    for number, value in enumerate(encoded.dictionary.to_pylist()):
        yield (kind, value), np.flatnonzero(codes == number)


def _by_flag(table: pa.Table) -> Iterator[tuple[Name, np.ndarray]]:
    """By each flag, without what follows its colon: a dataset's own word."""
    flags = table["flags"].combine_chunks() if "flags" in table.schema.names else pa.array([], pa.list_(pa.string()))
    rows = pc.list_parent_indices(flags).to_numpy()
    for name, places in _by_value(FLAG, pa.chunked_array([pc.replace_substring_regex(flags.flatten(), "(?s):.*", "")])):
        yield name, np.unique(rows[places])


def _by_range(kind: str, values: np.ndarray, lows: tuple[int, ...]) -> Iterator[tuple[Name, np.ndarray]]:
    ranges = np.searchsorted(lows, values, side="right") - 1
    for number in np.unique(ranges).tolist():
        yield (kind, f"{lows[number]:09d}"), np.flatnonzero(ranges == number)
