"""A sample of rows that is spread over the units of a plan, as a whole or by strata. The same input gives the same
sample."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pyroaring import BitMap

from caprl_ray.plan import Plan, Unit, UnitRef
from caprl_ray.storage import Storage

# The largest number of units that are read, because opening a unit takes requests.
MOST_UNITS = 1000
SEED = 0
TOGETHER = 8  # rows that are read of a unit of unknown length: its length follows from their sizes


def chosen_units(storage: Storage, stored: Plan, found: Iterable[Unit], sample: int) -> list[Unit]:
    """At most MOST_UNITS units, chosen evenly, in their order: of the stored plan, or else of those that are found."""
    most, rng = max(1, min(MOST_UNITS, sample)), random.Random(SEED)
    if stored.units:
        refs = sorted(rng.sample(stored.units, min(most, len(stored.units))), key=lambda ref: ref.unit)
        return [replace(ref.load(storage), rows=ref.rows) for ref in refs]
    return _reservoir(found, most, sample, rng)


def _reservoir(units: Iterable[Unit], most: int, sample: int, rng: random.Random) -> list[Unit]:
    """A uniform choice from units whose number is not known (Vitter's algorithm R, 1985).

    Of units that name their rows only as many are kept as can be needed: memory does not grow with the input.
    """
    kept: list[tuple[int, Unit]] = []
    for number, unit in enumerate(units):
        place = number if number < most else rng.randint(0, number)
        if place < most:
            kept[place : place + 1] = [(number, _thinned(unit, math.ceil(sample / min(number + 1, most)), rng))]
    return [unit for _, unit in sorted(kept, key=lambda numbered: numbered[0])]


def _thinned(unit: Unit, rows: int, rng: random.Random) -> Unit:
    if len(unit.entries) <= rows or unit.rows != len(unit.entries):
        return unit
    chosen = sorted(rng.sample(range(len(unit.entries)), rows))
    return replace(unit, entries=[unit.entries[n] for n in chosen], rows=rows)


def shared_out(lengths: Sequence[int | None], sample: int) -> list[int]:
    """The number of rows to read from each unit: as even as their lengths allow. A length of None is unknown."""
    shares, left = [0] * len(lengths), sample
    bounds = [math.inf if length is None else length for length in lengths]
    shortest_first = sorted(range(len(lengths)), key=bounds.__getitem__)
    for done, number in enumerate(shortest_first):
        length, share = lengths[number], math.ceil(left / (len(lengths) - done))
        shares[number] = share if length is None else min(share, length)
        left -= shares[number]
    return shares


def wanted(unit: Unit, rows: int, rng: random.Random) -> BitMap | None:
    """The rows to read: random files; consecutive rows of parquet, so that few row groups are read."""
    if unit.rows is None:
        return None
    if len(unit.entries) == unit.rows:
        return BitMap(rng.sample(range(unit.rows), rows))
    start = rng.randint(0, unit.rows - rows)
    return BitMap(range(start, start + rows))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A unit of the sample. `rows` and `bytes` are those of the unit in the input: `unit` itself may have lost entries
    that are not read. `stratum` is its number, `share` says how many rows of the unit are read."""

    unit: Unit
    rows: int | None
    bytes: int
    stratum: int
    share: int


@dataclass(kw_only=True)
class Stratum:
    """Units of one kind and about one size: the largest has less than four times the bytes of the smallest. The length
    of all of them is known, or of none. `kept` is an even choice of them, each with its number."""

    kind: str
    known: bool
    units: int = 0
    rows: int = 0
    bytes: int = 0
    kept: list[tuple[int, Unit | UnitRef, int, int | None]] = field(default_factory=list)


class Strata:
    """Groups the units of an input into strata as they come, for a sample of about `sample` rows.

    Memory does not grow with the units. Of a stratum an even choice is kept (Vitter's algorithm R, 1985).
    """

    def __init__(self, sample: int) -> None:
        self._sample, self._most = sample, max(1, min(MOST_UNITS, sample))
        self._rng = random.Random(SEED)
        self._found: dict[tuple[str, bool, int], Stratum] = {}

    def add(self, unit: Unit | UnitRef) -> None:
        """Count a unit."""
        size = unit.size if isinstance(unit, Unit) else unit.bytes
        key = (unit.kind, unit.rows is not None, size.bit_length() // 2)
        stratum = self._found.setdefault(key, Stratum(kind=unit.kind, known=unit.rows is not None))
        number = stratum.units
        stratum.units, stratum.bytes, stratum.rows = number + 1, stratum.bytes + size, stratum.rows + (unit.rows or 0)
        place = number if number < self._most else self._rng.randint(0, number)
        if place < self._most:
            rows = unit.rows
            if isinstance(unit, Unit):
                unit = _thinned(unit, math.ceil(self._sample / min(number + 1, self._most)), self._rng)
            stratum.kept[place : place + 1] = [(number, unit, size, rows)]

    @property
    def all(self) -> list[Stratum]:
        """The strata, always in the same order."""
        return [self._found[key] for key in sorted(self._found)]

    def drawn(self, storage: Storage) -> list[Drawn]:
        """The units to read: from each stratum in proportion to its bytes, and at least two."""
        total = max(1, sum(stratum.bytes for stratum in self.all))
        return [
            one
            for number, stratum in enumerate(self.all)
            for one in self._of(number, stratum, max(stratum.bytes, 1) / total, storage)
        ]

    def _of(self, number: int, stratum: Stratum, part: float, storage: Storage) -> list[Drawn]:
        rows, each = max(2, math.ceil(part * self._sample)), 1 if stratum.known else TOGETHER
        count = min(len(stratum.kept), max(2, math.ceil(part * self._most / each)))
        kept = sorted(self._rng.sample(stratum.kept, count), key=lambda one: one[0])
        shares = shared_out([length for *_, length in kept], max(rows, count * min(2, each)))
        return [
            Drawn(unit=_loaded(unit, storage), rows=length, bytes=size, stratum=number, share=share)
            for (_, unit, size, length), share in zip(kept, shares, strict=True)
        ]


def _loaded(unit: Unit | UnitRef, storage: Storage) -> Unit:
    return unit if isinstance(unit, Unit) else replace(unit.load(storage), rows=unit.rows)
