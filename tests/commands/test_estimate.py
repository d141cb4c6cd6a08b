"""Estimates from a sample, against values that are known."""

import math

import pytest

from caprl_ray.commands.estimate import bars, histogram, mean, quantile, share, whole


def test_time_gpu_hours_and_cost_of_a_whole_input() -> None:
    found = whole(1_000_000, 10.0, replicas=4, gpus=2, price=3.0)
    assert found and (found.seconds, round(found.gpu_hours, 6)) == (25_000, round(25_000 * 8 / 3600, 6))
    assert found.cost == pytest.approx(3 * 25_000 * 8 / 3600)
    assert whole(1000, 0.0, replicas=1, gpus=1) is None


def test_intervals_are_those_of_the_literature() -> None:
    wilson = share(1, 10, level=0.95)
    assert (round(wilson.low, 4), wilson.value, round(wilson.high, 4)) == (0.0179, 0.1, 0.4042)
    assert share(0, 256).low == 0 and 0.01 < share(0, 256).high < 0.011
    found = mean([1.0, 2.0, 3.0, 4.0])
    half = 1.6449 * math.sqrt(5 / 3) / 2
    assert (found.value, round(found.low, 3), round(found.high, 3)) == (2.5, round(2.5 - half, 3), round(2.5 + half, 3))
    assert found.times(10).value == 25


def test_quantiles_and_bars() -> None:
    assert quantile(range(1, 101), 0.95) == 95 and quantile([7], 0.95) == 7 and quantile([], 0.95) == 0
    counts = histogram([0.1, 0.5, 0.6, 9], (0.5, 1, math.inf))
    assert [count for _, count in counts] == [1, 2, 1]
    assert list(map(len, bars([count for _, count in counts]))) == [20, 40, 20]
