"""Totals of an input from samples of it: right on average, with intervals that hold as often as they say."""

import random
from collections.abc import Iterator

import numpy as np
import pytest

from caprl_ray.commands.estimate import Estimate, steady, student
from caprl_ray.commands.sample import Drawn, Strata
from caprl_ray.commands.weights import Reading, Weighted
from caprl_ray.plan import Entry, Unit
from caprl_ray.storage import Storage, Stored

TRIALS = 300


def unit(number: int, size: int, rows: int | None, kind: str = "webdataset") -> Unit:
    stored = Stored(path=str(number), size=size, version="")
    return Unit(kind=kind, rows=rows, bytes=size, entries=[Entry(stored=stored, key=str(number))])


class World:
    """Shards of unknown length, and ten tables of known length. `alike` is how much units differ, and `spread` how much
    the rows of one do. The shards have about as many rows if they are `even`, and otherwise as many bytes."""

    def __init__(self, *, alike: float, spread: float, even: bool) -> None:
        rng = np.random.default_rng(1)
        self.sizes, self.tokens, self.units = [], [], []
        for number in range(200):
            scale = float(rng.lognormal(0, alike))
            rows = int(rng.integers(80, 100) / (1 if even else scale))
            own = scale * rng.lognormal(0, spread, rows)
            self.sizes.append(np.maximum(20_000 * own * rng.lognormal(0, 0.2, rows), 1000))
            self.tokens.append(np.round(200 * own) + 1)
            kind, known = ("parquet", rows) if number >= 190 else ("webdataset", None)
            self.units.append(unit(number, int(self.sizes[-1].sum()), known, kind))

    @property
    def images(self) -> int:
        return sum(map(len, self.tokens))

    def sampled(self, sample: int, seed: int) -> tuple[Weighted, np.ndarray]:
        """A sample with fresh choices, and its tokens."""
        strata, rng = Strata(sample), np.random.default_rng(seed)
        strata._rng = random.Random(seed)  # another choice each time
        for one in self.units:
            strata.add(one)
        readings, tokens = [], []
        for drawn in strata.drawn(Storage()):
            number = int(drawn.unit.entries[0].key)
            rows = rng.permutation(len(self.sizes[number]))[: drawn.share]
            readings.append(Reading(drawn=drawn, sizes=self.sizes[number][rows], whole=False))
            tokens.append(self.tokens[number][rows])
        values = np.concatenate(tokens)
        return Weighted(strata.all, readings, range(len(values))), values


def held(found: Estimate, truth: float) -> bool:
    bounds = found.interval
    assert bounds is not None
    return bounds.low <= truth <= bounds.high


@pytest.mark.parametrize(
    ("alike", "spread", "even"), [(0.4, 0.2, True), (0.4, 0.2, False), (0.0, 0.7, True), (0.2, 0.5, False)]
)
def test_intervals_hold_nine_times_of_ten(alike: float, spread: float, even: bool) -> None:
    world = World(alike=alike, spread=spread, even=even)
    tokens = np.concatenate(world.tokens)
    truths = (world.images, tokens.sum(), tokens.mean(), (tokens > 250).mean())
    hits, means = np.zeros(4), np.zeros(4)
    for seed in range(TRIALS):
        weighted, seen = world.sampled(256, seed)
        ones = np.ones(len(seen))
        share = weighted.share(seen > 250, ones > 0)
        found = (weighted.total(ones), weighted.total(seen), weighted.ratio(seen, ones))
        hits += [*map(held, found, truths), share.low <= truths[3] <= share.high]
        means += [*(one.value for one in found), share.value]
    assert means / TRIALS == pytest.approx(truths, rel=0.05), "right on average"
    assert all(0.85 <= part <= 0.99 for part in hits / TRIALS), hits / TRIALS


def test_units_that_were_read_whole_are_counted_and_not_estimated() -> None:
    strata = Strata(100)
    strata.add(unit(0, 1000, 4))
    (drawn,) = strata.drawn(Storage())
    weighted = Weighted(strata.all, [Reading(drawn=drawn, sizes=[1, 1, 1, 1], whole=False)], [2, 0, 3, 1])
    values = np.array([5.0, 6, 7, 8])
    assert weighted.total(values) == Estimate(value=26, error=0.0)
    share = weighted.share(values > 7, values > 0)
    assert share.low == share.value == share.high == 0.25
    assert weighted.quantile(values, 0.5, values > 0).value == 6


def test_one_row_tells_no_error_but_of_a_known_count() -> None:
    strata = Strata(1)
    strata.add(unit(0, 1000, 50))
    (drawn,) = strata.drawn(Storage())
    weighted = Weighted(strata.all, [Reading(drawn=drawn, sizes=[10.0], whole=False)], [0])
    assert weighted.total(np.ones(1)) == Estimate(value=50, error=0.0, df=0)
    assert weighted.total(np.array([3.0])).interval is None
    strata = Strata(1)
    strata.add(unit(0, 1000, None))
    (drawn,) = strata.drawn(Storage())
    weighted = Weighted(strata.all, [Reading(drawn=drawn, sizes=[10.0], whole=False)], [0])
    assert weighted.total(np.ones(1)).value == 100 and weighted.total(np.ones(1)).interval is None


def drawn_of_many() -> tuple[int, list[Drawn]]:
    strata = Strata(40)
    for number in range(5000):
        strata.add(unit(number, 100_000, None))
    strata.add(unit(5000, 90, None))
    strata.add(unit(5001, 3000, 60, "parquet"))
    return sum(len(stratum.kept) for stratum in strata.all), strata.drawn(Storage())


def test_a_sample_has_every_kind_and_size_and_holds_few_units() -> None:
    held, drawn = drawn_of_many()
    kinds = [(one.unit.kind, one.bytes, one.share) for one in drawn]
    assert held == 40 + 2 and ("webdataset", 90, 2) in kinds and ("parquet", 3000, 2) in kinds
    assert sum(one.share for one in drawn) == 40 + 2 * 2 and len(drawn) == 5 + 2, "shards are opened for eight rows"
    assert max(int(one.unit.entries[0].key) for one in drawn if one.bytes == 100_000) > 3000, "not only the first"
    assert drawn_of_many()[1] == drawn


def test_students_quantiles_are_those_of_tables() -> None:
    tables = {1: 6.314, 2: 2.920, 3: 2.353, 5: 2.015, 10: 1.812, 30: 1.697}
    assert {df: student(df) for df in tables} == pytest.approx(tables, rel=0.003)
    assert student(1e9) == pytest.approx(1.645, abs=0.001)


def finished(rng: np.random.Generator) -> Iterator[tuple[float, float]]:
    """Batches of 8 images that are finished one after the other, 5 a second on average."""
    when = 0.0
    yield when, 0
    while when < 30:
        when += rng.exponential(8 / 5)
        yield when, 8


def test_the_interval_of_a_rate_holds_and_few_batches_have_none() -> None:
    rng, hits = np.random.default_rng(2), 0
    for _ in range(TRIALS):
        times, counts = zip(*finished(rng), strict=True)
        hits += held(steady(times, counts), 5.0)
    assert 0.82 <= hits / TRIALS <= 0.98, hits / TRIALS
    assert steady([0, 1, 2], [0, 8, 8]) == Estimate(value=8, error=None) and steady([0], [0]).value == 0


def test_a_quotient_has_the_errors_of_both() -> None:
    found = Estimate(value=100, error=0.03, df=40).over(Estimate(value=4, error=0.04, df=9))
    assert found.value == 25 and found.error == pytest.approx(0.05)
    assert found.df == pytest.approx(0.05**4 / (0.03**4 / 40 + 0.04**4 / 9))
    assert Estimate(value=1, error=None).over(found).interval is None
