"""Compare two ways on the questions that both have answered: p-values, and the number of images needed.

Questions about one image are not independent. So all functions here exchange and count images, each with all of its
questions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from caprl_ray.score.summary import CONFIDENCE, SEED, interval
from caprl_ray.score.tally import Means

LEVEL, POWER = round(1 - CONFIDENCE, 9), 0.8
FLIPS = 9999  # so the least p-value is 0.0001
_AT_ONCE = 1 << 22  # signs in memory
_EVEN = 1 - 1e-9  # sums that differ by rounding alone are equal


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two ways, and for each question of both the value of the second minus that of the first."""

    first: str
    second: str
    means: Means


def told(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The comparison of a family of pairs, whose p-values are corrected together.

    `told_apart`: the corrected p-value is below 5 %. Other pairs have `images_needed` to detect the measured
    difference, and `smallest`, the difference that these images detect, both with a power of 80 %; None if unknown.
    Both take the correction into account, for the number of comparisons that are still open.
    """
    sums = [_by_image(pair.means) for pair in pairs]
    p_values = [p_value(of) for of, _ in sums]
    corrected = holm(p_values)
    still_open = sum(p >= LEVEL for p in corrected)
    return [
        _told(pair, *of, p, p_corrected, LEVEL / max(1, still_open))
        for pair, of, p, p_corrected in zip(pairs, sums, p_values, corrected, strict=True)
    ]


def _told(
    pair: Pair, sums: np.ndarray, counts: np.ndarray, p: float, p_corrected: float, level: float
) -> dict[str, Any]:
    found, apart = interval(pair.means), p_corrected < LEVEL
    deviation = spread(sums, counts)
    return {
        "first": pair.first,
        "second": pair.second,
        "images": len(sums),
        "questions": len(pair.means.values),
        "questions_that_differ": int(np.count_nonzero(pair.means.values)),
        "difference": found,
        "p": p,
        "p_corrected": p_corrected,
        "told_apart": apart,
        "smallest": smallest(deviation, len(sums), level),
        "images_needed": None if apart or not found else _more(found["value"], deviation, len(sums), level),
    }


def _more(difference: float, deviation: float | None, images: int, level: float) -> int | None:
    needed = images_needed(difference, deviation, level)
    return None if needed is None else max(needed, images + 1)


def _by_image(means: Means) -> tuple[np.ndarray, np.ndarray]:
    """For each image the sum of its differences, and the number of its questions."""
    _, inverse = np.unique(means.images, return_inverse=True)
    return np.bincount(inverse, means.values), np.bincount(inverse)


def p_value(sums: np.ndarray, flips: int = FLIPS) -> float:
    """The two-sided p-value of a difference, from the sums of each image's differences.

    If two ways are equally good, their names can be exchanged at any image, which changes the sign of its sum. So the
    p-value is the share of all choices of signs whose total is at least as far from zero as the measured one: Fisher's
    randomization test (Smucker, Allan and Carterette, CIKM 2007: it agrees with the bootstrap and the t-test, while the
    Wilcoxon and the sign test find less and err more). It is exact where there are no more choices than `flips`.
    Otherwise signs are drawn at random. The measured total counts as one of the draws, so that no p-value is zero
    (Phipson and Smyth 2010, arXiv 1603.05766).
    """
    sums = sums[sums != 0]  # a sign does not change zero
    seen = abs(sums.sum()) * _EVEN
    if 2 ** min(len(sums), 64) <= flips:
        signs = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        return float(np.mean(_totals(signs, sums) >= seen))
    random, hits, step = np.random.default_rng(SEED), 1, max(1, _AT_ONCE // len(sums))
    for start in range(0, flips, step):
        signs = random.integers(0, 2, (min(step, flips - start), len(sums)), np.int8)
        hits += int(np.count_nonzero(_totals(signs, sums) >= seen))
    return hits / (flips + 1)


def _totals(flipped: np.ndarray, sums: np.ndarray) -> np.ndarray:
    totals: np.ndarray = np.abs(sums.sum() - 2 * (flipped @ sums))
    return totals


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values of several comparisons: the probability that any false one is below 5 % is at most 5 % (Holm
    1979)."""
    order = np.argsort(p_values, kind="stable")
    factors = len(order) - np.arange(len(order))
    stepped = np.maximum.accumulate(np.asarray(p_values, float)[order] * factors)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, stepped)
    return [float(p) for p in corrected]


def spread(sums: np.ndarray, counts: np.ndarray) -> float | None:
    """The standard deviation of one image's contribution to the mean of all questions (a ratio of sums, linearized:
    Cochran 1977, 6.3); None with fewer than two images. Divided by the root of the images it is the clustered standard
    error (Miller, arXiv 2411.00640, 2.2)."""
    if len(sums) < 2:
        return None
    return float(np.std((sums - sums.sum() / counts.sum() * counts) / counts.mean(), ddof=1))


def images_needed(difference: float, deviation: float | None, level: float = LEVEL) -> int | None:
    """The number of images that detect such a difference with a power of 80 %; None if no number does, or if it is
    unknown.

    The usual formula for paired values (Miller, arXiv 2411.00640, on power analysis), with a correction for Student's
    distribution (Guenther 1981). At least as many as a randomization test needs to reach the level.
    """
    if not difference or deviation is None:
        return None
    certain, sure = _quantiles(level)
    usual = ((certain + sure) * deviation / difference) ** 2 + certain**2 / 2
    return max(math.ceil(usual), math.ceil(1 - math.log2(level)))


def smallest(deviation: float | None, images: int, level: float = LEVEL) -> float | None:
    """The smallest difference that these images detect: the inverse of `images_needed`; None if there is none."""
    certain, sure = _quantiles(level)
    free = images - certain**2 / 2
    if not deviation or free <= 0 or images < 1 - math.log2(level):
        return None
    return (certain + sure) * deviation / math.sqrt(free)


def _quantiles(level: float) -> tuple[float, float]:
    normal = NormalDist()
    return normal.inv_cdf(1 - level / 2), normal.inv_cdf(POWER)
