"""Estimates from a sample: time, GPU hours and cost of the whole input, means, shares and their intervals.

Pure functions of numbers. Commands that try a recipe on some images share them.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

LEVEL = 0.9  # of intervals, unless another is given
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


def mean(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of what was sampled, with an interval by the normal distribution. No value gives zeros."""
    if not values:
        return Interval(low=0, value=0, high=0)
    middle = fmean(values)
    half = _z(level) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Interval(low=middle - half, value=middle, high=middle + half)


def share(count: int, total: int, level: float = LEVEL) -> Interval:
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
    """What a whole input takes."""

    images: int
    seconds: float
    gpu_hours: float
    cost: float | None


def whole(images: int, rate: float, replicas: int, gpus: float, price: float | None = None) -> Whole | None:
    """What `images` take at `rate` images/s of one replica, with so many replicas of `gpus` GPUs each.

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
