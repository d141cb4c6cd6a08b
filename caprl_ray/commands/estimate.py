"""Estimates from a sample: time, GPU hours and cost of the whole input, means, shares and their intervals.

Pure functions of numbers. Commands that try a recipe on some images share them.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean, stdev

import numpy as np

LEVEL = 0.9  # of intervals, unless another is given
WINDOWS, LEAST = 10, 4  # of a rate that is measured: windows at most, and batches in each
BARS = 40  # the longest bar of a histogram, in characters


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate, and the bounds between which the truth lies in `LEVEL` of all samples."""

    low: float
    value: float
    high: float

    def times(self, factor: float) -> "Interval":
        """The same of something that is `factor` times as much."""
        return Interval(low=self.low * factor, value=self.value * factor, high=self.high * factor)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate of a positive quantity. `error` is its relative standard error, None if unknown, and `df` the degrees
    of freedom of that error."""

    value: float
    error: float | None
    df: float = math.inf

    @property
    def interval(self) -> Interval | None:
        """Its bounds by Student's t, on a scale of logarithms, so that none is negative."""
        if self.error is None or self.df < 1:
            return None
        spread = math.exp(student(self.df) * self.error) if self.error else 1.0
        return Interval(low=self.value / spread, value=self.value, high=self.value * spread)

    def times(self, factor: float) -> "Estimate":
        """The same of something that is `factor` times as much."""
        return replace(self, value=self.value * factor)

    def over(self, other: "Estimate") -> "Estimate":
        """This divided by another one that is independent of it. Degrees of freedom by Welch (1947) and Satterthwaite
        (1946)."""
        if self.error is None or other.error is None:
            return Estimate(value=self.value / other.value, error=None)
        both = self.error**2 + other.error**2
        each = self.error**4 / self.df + other.error**4 / other.df
        df = both**2 / each if each else math.inf
        return Estimate(value=self.value / other.value, error=math.sqrt(both), df=df)


def student(df: float, level: float = LEVEL) -> float:
    """The half-width of an interval in standard errors, by Student's distribution.

    Exact for 1 and 2 degrees of freedom and by Abramowitz and Stegun 26.7.5 for more: within 0.3 %.
    """
    if df < 2:
        return math.tan(math.pi / 2 * level)
    if df < 3:
        return level * math.sqrt(2 / (1 - level**2))
    z = _z(level)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / df**power for power, term in enumerate(terms))


def steady(times: Sequence[float], counts: Sequence[float]) -> Estimate:
    """The rate of finished work, from the times of its ends, the first at zero. The error comes from batch means: the
    rates of up to WINDOWS windows of equal length, each with at least LEAST ends on average."""
    total, seconds = sum(counts[1:]), times[-1] if times else 0.0
    if seconds <= 0 or total <= 0:
        return Estimate(value=0.0, error=None)
    windows = min(WINDOWS, (len(times) - 1) // LEAST)
    if windows < 2:
        return Estimate(value=total / seconds, error=None)
    done = np.cumsum([0.0, *counts[1:]])
    edges = np.linspace(0, seconds, windows + 1)
    rates = np.diff(np.interp(edges, times, done)) / (seconds / windows)
    error = stdev(rates.tolist()) / math.sqrt(windows) / (total / seconds)
    return Estimate(value=total / seconds, error=error, df=windows - 1)


def mean(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of what was sampled, with an interval by the normal distribution. No value gives zeros."""
    if not values:
        return Interval(low=0, value=0, high=0)
    middle = fmean(values)
    half = _z(level) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Interval(low=middle - half, value=middle, high=middle + half)


def share(count: float, total: float, level: float = LEVEL) -> Interval:
    """The share of `count` in `total`, with Wilson's interval (1927), which holds for small counts, too."""
    if not total:
        return Interval(low=0, value=0, high=1)
    z, p = _z(level), count / total
    scale = 1 + z * z / total
    centre = (p + z * z / (2 * total)) / scale
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / scale
    return Interval(low=max(0.0, centre - half), value=p, high=min(1.0, centre + half))


def quantile(values: Collection[float], part: float) -> float:
    """The smallest value that at least `part` of all values do not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The time and cost of a whole input."""

    images: int
    seconds: float
    gpu_hours: float
    cost: float | None


def whole(images: int, rate: float, replicas: int, gpus: float, price: float | None = None) -> Whole | None:
    """The time and cost of `images` at `rate` images/s of one replica, with `replicas` replicas of `gpus` GPUs each.

    `price` is that of a GPU hour. Engines start besides. None without a rate.
    """
    if rate <= 0:
        return None
    seconds = images / (rate * replicas)
    hours = seconds * replicas * gpus / 3600
    return Whole(images=images, seconds=seconds, gpu_hours=hours, cost=None if price is None else hours * price)


def histogram(values: Collection[float], bounds: Sequence[float]) -> list[tuple[float, int]]:
    """How many values lie below each bound and not below the one before. The last bound should be infinite."""
    counts = [0] * len(bounds)
    for value in values:
        counts[next(number for number, bound in enumerate(bounds) if value < bound)] += 1
    return list(zip(bounds, counts, strict=True))


def bars(counts: Sequence[int]) -> list[str]:
    """A bar of text for each count; the largest has BARS characters."""
    most = max(counts, default=0)
    return ["█" * math.ceil(BARS * count / most) if most else "" for count in counts]


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
