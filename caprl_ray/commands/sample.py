"""A sample of rows that is spread over the units of a plan. The same input gives the same sample."""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pyroaring import BitMap

from caprl_ray.plan import Plan, Unit
from caprl_ray.storage import Storage

# Units that are read, each for its share of the sample: opening one is a request or more.
MOST_UNITS = 1000
SEED = 0


def chosen_units(storage: Storage, stored: Plan, found: Iterable[Unit], sample: int) -> list[Unit]:
    """At most MOST_UNITS units, chosen evenly, in their order: of the stored plan, or else of those that are found."""
    most, rng = max(1, min(MOST_UNITS, sample)), random.Random(SEED)
    if stored.units:
        refs = sorted(rng.sample(stored.units, min(most, len(stored.units))), key=lambda ref: ref.unit)
        return [replace(ref.load(storage), rows=ref.rows) for ref in refs]
    return _reservoir(found, most, sample, rng)


def _reservoir(units: Iterable[Unit], most: int, sample: int, rng: random.Random) -> list[Unit]:
    """An even choice from units whose number is not known (Vitter's algorithm R, 1985).

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
    """How many rows of each unit are read: as even as their lengths allow. None is a length that is not known."""
    shares, left = [0] * len(lengths), sample
    bounds = [math.inf if length is None else length for length in lengths]
    shortest_first = sorted(range(len(lengths)), key=bounds.__getitem__)
    for done, number in enumerate(shortest_first):
        length, share = lengths[number], math.ceil(left / (len(lengths) - done))
        shares[number] = share if length is None else min(share, length)
        left -= shares[number]
    return shares


def wanted(unit: Unit, rows: int, rng: random.Random) -> BitMap | None:
    """Which rows are read: any files; of parquet some that stand together, so that few row groups are read."""
    if unit.rows is None:
        return None
    if len(unit.entries) == unit.rows:
        return BitMap(rng.sample(range(unit.rows), rows))
    start = rng.randint(0, unit.rows - rows)
    return BitMap(range(start, start + rows))
