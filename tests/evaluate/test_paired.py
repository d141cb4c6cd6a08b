"""Differences of two ways: intervals, p-values and numbers of images, on answers whose truth is known."""

import numpy as np
import pytest

from caprl_ray.evaluate.paired import Pair, holm, images_needed, p_value, smallest, spread, told
from caprl_ray.score.summary import interval
from caprl_ray.score.tally import Means


def differences(random: np.random.Generator, images: int, better: float) -> Means:
    """One to five questions an image, all of which share what the image is like, each asked in four orders: the second
    way answers `better` more of them on average."""
    counts = random.integers(1, 6, images)
    which = np.repeat(np.arange(images), counts)
    ease = random.normal(0, 0.15, images)[which]
    gain = better + random.choice([-0.25, 0.25], images)[which]
    first, second = (random.binomial(4, np.clip(0.5 + ease + more, 0, 1)) / 4 for more in (0, gain))
    return Means(questions=np.arange(len(which)), images=which, values=second - first)


def sums_of(means: Means) -> tuple[np.ndarray, np.ndarray]:
    return np.bincount(means.images, means.values), np.bincount(means.images)


def test_intervals_cover_the_truth_and_p_values_are_uniform_where_nothing_differs() -> None:
    """Questions about one image agree, so counting them one by one would tell apart what is equal."""
    random, covered, p_values = np.random.default_rng(3), 0, []
    for number in range(400):
        means = differences(random, 40, 0.0)
        p_values.append(p_value(sums_of(means)[0], flips=499))
        if number < 160:
            found = interval(means)
            assert found
            covered += found["low"] <= 0 <= found["high"]
    assert 0.89 < covered / 160 <= 0.99
    for share, near in ((0.05, 0.035), (0.25, 0.07), (0.5, 0.08), (0.9, 0.05)):
        assert np.mean(np.array(p_values) <= share) == pytest.approx(share, abs=near)


@pytest.mark.parametrize(("better", "level"), [(0.06, 0.05), (0.15, 0.05), (0.1, 0.05 / 3)])
def test_as_many_images_as_it_takes_tell_two_ways_apart_four_times_of_five(better: float, level: float) -> None:
    random = np.random.default_rng(5)
    many = differences(random, 30_000, better)
    sums, counts = sums_of(many)
    truth, deviation = sums.sum() / counts.sum(), spread(sums, counts)
    needed = images_needed(truth, deviation, level)
    assert needed and 20 < needed < 2000 and deviation
    apart = [p_value(sums_of(differences(random, needed, better))[0], flips=399) < level for _ in range(300)]
    assert np.mean(apart) == pytest.approx(0.8, abs=0.06)  # two and a half standard errors
    assert smallest(deviation, needed, level) == pytest.approx(truth, rel=0.02)


def test_small_samples_have_exact_p_values() -> None:
    assert p_value(np.ones(5)) == 2 / 32  # so five images tell nothing apart
    assert p_value(np.array([3.0, 2.0, 1.0, -1.0, 0.0, 0.0])) == 6 / 16
    assert p_value(np.array([0.1 + 0.2, -0.3])) == 1  # equal but for rounding
    assert p_value(np.zeros(9)) == p_value(np.zeros(0)) == 1
    assert p_value(np.array([1.0])) == 1
    assert p_value(np.ones(14)) < 0.001  # drawn from here on
    assert p_value(np.ones(5000)) == 1 / 10_000


def test_several_comparisons_are_corrected_together() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1] and holm([0.01]) == [0.01] and holm([]) == []
    random = np.random.default_rng(7)
    alike = [Pair(first="a", second=str(n), means=differences(random, 60, 0.0)) for n in range(4)]
    better = Pair(first="a", second="b", means=differences(random, 60, 0.3))
    *others, last = told([*alike, better])
    assert last["told_apart"] and last["p_corrected"] == 5 * last["p"] and last["images_needed"] is None
    assert not any(one["told_apart"] for one in others)
    # What is still open is corrected for what is still open.
    alone = told([alike[0]])[0]
    assert others[0]["images_needed"] > alone["images_needed"] and others[0]["smallest"] > alone["smallest"]


def test_what_cannot_be_said_is_not_said() -> None:
    def pair(values: list[float], images: list[int]) -> Pair:
        count = np.arange(len(values))
        return Pair(
            first="a", second="b", means=Means(questions=count, images=np.array(images), values=np.array(values))
        )

    nothing, one, equal, shifted = (
        told([pair(*of)])[0]
        for of in (([], []), ([1.0, 1.0], [0, 0]), ([0.0] * 50, list(range(50))), ([1.0] * 5, list(range(5))))
    )
    assert (nothing["difference"], nothing["p"], nothing["images_needed"], nothing["smallest"]) == (None, 1, None, None)
    assert one["difference"] == {"value": 1, "low": None, "high": None} and not one["told_apart"]
    assert (one["images_needed"], one["smallest"]) == (None, None)
    assert (equal["p"], equal["images_needed"], equal["smallest"], equal["told_apart"]) == (1, None, None, False)
    # Five images of which each says the same: a sixth is what the test needs to say it at all.
    assert (shifted["told_apart"], shifted["images_needed"]) == (False, 6)
