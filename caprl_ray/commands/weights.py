"""Totals of a whole input from a stratified sample of its units, with their errors.

The rows of a unit are often alike. So if a stratum has unread units, its variance is computed between units, not
between rows (ultimate clusters). If every unit of a stratum was read, each unit is a stratum of its own, and the
variance is computed between its rows. Totals are ratio estimates, relative to the known rows or else bytes of a
stratum. Their errors are linearized by Taylor (Cochran, Sampling Techniques, 1977, 6.11 and 11.6 to 11.8). Units are
treated as drawn with replacement, so errors are rather too large.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from caprl_ray.commands.estimate import Estimate, Interval, share
from caprl_ray.commands.sample import Drawn, Stratum


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The rows that were read from a unit. `sizes` are their stored bytes; `whole`: the unit has no other rows."""

    drawn: Drawn
    sizes: Sequence[float]
    whole: bool

    @property
    def length(self) -> int | None:
        """The number of the unit's rows, if it is known now."""
        return len(self.sizes) if self.whole else self.drawn.rows


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Sampled rows of a part of the input. The total of their `base` over that part is known: `total`.

    Attributes:
        rows: their numbers.
        weight: their weights within the group.
        base: of each row: 1 where `total` counts rows, its bytes where `total` counts bytes.
        cluster: rows of one number vary together.
        left: the share of the group that was not read; with 0 there is no sampling error.
    """

    rows: np.ndarray
    total: float
    weight: np.ndarray
    base: np.ndarray
    cluster: np.ndarray
    left: float

    @classmethod
    def of_unit(cls, reading: Reading, rows: np.ndarray) -> "_Group":
        """A unit as a group, with the variance between its rows."""
        sizes, length = np.maximum(reading.sizes, 1.0), reading.length
        known = length is not None
        total = float(length) if length is not None else float(max(reading.drawn.bytes, 1))
        base = np.ones(len(rows)) if known else sizes
        left = max(0.0, 1 - float(base.sum()) / total)
        ones = np.ones(len(rows))
        return cls(rows=rows, total=total, weight=ones, base=base, cluster=np.arange(len(rows)), left=left)

    @classmethod
    def of_stratum(cls, stratum: Stratum, readings: Sequence[Reading], rows: Sequence[np.ndarray]) -> "_Group":
        """A stratum as a group, with the variance between its units."""
        sizes = [np.maximum(one.sizes, 1.0) for one in readings]
        rows_each = np.array([len(some) for some in sizes], float)
        heavy = np.array([one.drawn.rows or 1 for one in readings]) / rows_each
        if not stratum.known:
            heavy = np.array([max(one.drawn.bytes, 1) for one in readings]) / (row_bytes(sizes) * rows_each)
        counts = [len(some) for some in sizes]
        base = np.ones(sum(counts)) if stratum.known else np.concatenate(sizes)
        return cls(
            rows=np.concatenate(rows),
            total=float(max(stratum.rows if stratum.known else stratum.bytes, 1)),
            weight=np.repeat(heavy, counts),
            base=base,
            cluster=np.repeat(np.arange(len(counts)), counts),
            left=1.0,
        )

    @cached_property
    def factor(self) -> np.ndarray:
        """The number of rows of the input that each row represents."""
        found: np.ndarray = self.weight * (self.total / (self.weight * self.base).sum())
        return found

    @property
    def clusters(self) -> int:
        """How many there are."""
        return int(self.cluster[-1]) + 1

    def variance(self, values: np.ndarray) -> float | None:
        """The variance of the total of some values; None with a single cluster."""
        own = values[self.rows]
        residuals = own - self.base * ((self.factor * own).sum() / self.total)
        if not self.left or ((self.base == 1).all() and np.ptp(values) == 0):  # the number of rows is known
            return 0.0
        if self.clusters < 2:
            return None
        sums = np.bincount(self.cluster, self.factor * residuals)
        return float(self.left * self.clusters / (self.clusters - 1) * (sums**2).sum())


class Weighted:
    """The rows of a sample with their weights. Values are arrays with one entry per row.

    `order` are the numbers of the rows, counted as they were read, in the order in which values are given.
    """

    def __init__(self, strata: Sequence[Stratum], readings: Sequence[Reading], order: Sequence[int]) -> None:
        self.rows, self.units = len(order), len(readings)
        self._groups = list(_groups(strata, readings, np.argsort(order)))
        self.weights = np.ones(self.rows)
        for group in self._groups:
            self.weights[group.rows] = group.factor
        varied = [group for group in self._groups if group.left]
        self._df = sum(group.clusters - 1 for group in varied) if varied else math.inf
        self._clusters = sum(group.clusters for group in self._groups)

    def total(self, values: np.ndarray) -> Estimate:
        """The sum over the whole input."""
        return self._estimate(float((self.weights * values).sum()), values, 1.0)

    def ratio(self, values: np.ndarray, of: np.ndarray) -> Estimate:
        """The sum of some values over that of others, such as their mean if those are ones."""
        whole = float((self.weights * of).sum())
        if not whole:
            return Estimate(value=0.0, error=None)
        value = float((self.weights * values).sum()) / whole
        return self._estimate(value, values - value * of, whole)

    def share(self, which: np.ndarray, of: np.ndarray) -> Interval:
        """The share of some rows among others. Wilson's interval with the effective sample size; if the share is 0 or
        1, with the number of clusters."""
        found, among = self.ratio(which.astype(float), of.astype(float)), int(of.sum())
        if found.error == 0:
            return Interval(low=found.value, value=found.value, high=found.value)
        p, count = found.value, float(min(among, self._clusters))
        if found.error and 0 < p < 1:
            count = max(1.0, min(among, (1 - p) / (p * found.error**2)))
        return share(p * count, count)

    def quantile(self, values: np.ndarray, part: float, of: np.ndarray) -> Interval:
        """A quantile among the rows `of`, with the values at the ends of the interval of its share (Woodruff, 1952)."""
        chosen = np.flatnonzero(of)
        order = chosen[np.argsort(values[chosen], kind="stable")]
        below = np.cumsum(self.weights[order]) / self.weights[order].sum()

        def at(wanted: float) -> float:
            return float(values[order[min(len(order) - 1, int(np.searchsorted(below, wanted - 1e-9)))]])

        middle = at(part)
        seen = self.share((values <= middle) & of, of)
        return Interval(low=at(part - (seen.value - seen.low)), value=middle, high=at(part + (seen.high - seen.value)))

    def _estimate(self, value: float, values: np.ndarray, whole: float) -> Estimate:
        """An estimate whose error is that of the total of `values` over `whole`."""
        found = [group.variance(values) for group in self._groups]
        known = [variance for variance in found if variance is not None]
        if len(known) < len(found) or not found:
            return Estimate(value=value, error=None)
        error = math.sqrt(sum(known)) / whole
        return Estimate(value=value, error=error / abs(value) if value else None if error else 0.0, df=self._df)


def row_bytes(sizes: Sequence[np.ndarray]) -> np.ndarray:
    """The mean size of a row of each unit, from those of a few.

    A mean of few values is uncertain, and its inverse, from which a unit's length is estimated, is too large on
    average. So it is shrunk towards the mean of all units, more if the units differ less (James and Stein, 1961; Efron
    and Morris, 1975).
    """
    means, counts = np.array([some.mean() for some in sizes]), np.array([len(some) for some in sizes], float)
    more = counts.sum() - len(sizes)
    if len(sizes) < 2 or more <= 0:
        return np.full(len(sizes), np.concatenate(sizes).mean())
    within = sum(((some - some.mean()) ** 2).sum() for some in sizes) / more / counts
    between = max(0.0, float(means.var(ddof=1) - within.mean()))
    own = between / (between + within) if between else np.zeros(len(sizes))
    found: np.ndarray = means.mean() + own * (means - means.mean())
    return found


def _groups(strata: Sequence[Stratum], readings: Sequence[Reading], places: np.ndarray) -> Iterator[_Group]:
    ends = np.cumsum([len(one.sizes) for one in readings])
    rows = [places[end - len(one.sizes) : end] for one, end in zip(readings, ends, strict=True)]
    for number, stratum in enumerate(strata):
        own = [place for place, one in enumerate(readings) if one.drawn.stratum == number and len(one.sizes)]
        every = len(own) == stratum.units
        if every and all(len(rows[place]) > 1 or readings[place].whole for place in own):
            yield from (_Group.of_unit(readings[place], rows[place]) for place in own)
        elif own:
            yield _Group.of_stratum(stratum, [readings[place] for place in own], [rows[place] for place in own])
