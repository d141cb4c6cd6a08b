"""The search for the fastest setting: which settings to measure and how long. Pure functions of measurements.

The method is successive halving (Jamieson and Talwalkar 2016). As many settings as time allows are measured once. Among
those that do not change captions, the faster half is measured again, twice as long, until at most FINALISTS are left.
The recipe is measured along with them, because the machine may have had other work before. Settings of different knobs
are combined greedily: the fastest one, then each next one if both together are faster. With the remaining time, the
recipe and the fastest setting are measured once more, twice as long: the fastest of many measurements is partly lucky,
and an independent measurement removes that bias.

An engine's start costs more than a measurement. So the cost of a measurement includes the start, and no measurement
begins if the remaining time is too short. Each measurement has a time limit. A failed measurement is a result, too,
with its cost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Protocol

from caprl_ray.commands.estimate import Estimate
from caprl_ray.tune.settings import Setting

FINALISTS = 4
# A setting is stopped after this multiple of its expected time: quantizing weights while loading, and compiling another
# form of the model, take longer. At least LEAST_LIMIT_S.
LIMIT, LEAST_LIMIT_S = 3.0, 90.0
LEAST_GAIN = 1.01  # of a combination over its best member
CERTAIN = 1.05  # the least gain that counts without an interval


class Result(Protocol):
    """One measurement. Without a rate it failed."""

    @property
    def rate(self) -> Estimate | None:
        """Images/s."""
        ...

    @property
    def cost_s(self) -> float:
        """Its seconds, with the engine's start."""
        ...


class Measure(Protocol):
    """Measures a setting for `seconds` in steady state, in at most `limit_s` with its start."""

    def __call__(self, setting: Setting, seconds: float, limit_s: float) -> Result: ...


@dataclass(kw_only=True)
class Found:
    """The result of a search.

    Attributes:
        results: the longest measurement of each setting, and its length.
        before: the recipe's measurements, by their length.
        left: settings that were not measured.
        confirmed: whether recipe and best were measured once more, and both worked.
    """

    default: Setting
    results: dict[str, tuple[Setting, Result, float]] = field(default_factory=dict)
    before: dict[float, Result] = field(default_factory=dict)
    left: list[Setting] = field(default_factory=list)
    best: Setting | None = None
    confirmed: bool = False

    def rate(self, setting: Setting) -> Estimate | None:
        """Images/s of a setting in its longest measurement."""
        return self.results[setting.name][1].rate

    def gain(self, setting: Setting) -> Estimate | None:
        """Its rate over the recipe's, from a measurement of the same length, and so of about the same time."""
        _, result, seconds = self.results[setting.name]
        before = (self.before.get(seconds) or self.results[self.default.name][1]).rate
        return result.rate.over(before) if result.rate and before else None


def faster(gain: Estimate | None) -> bool:
    """Whether a gain is significant, or only noise."""
    if gain is None:
        return False
    return gain.interval.low > 1 if gain.interval else gain.value >= CERTAIN


def rounds(settings: int) -> list[int]:
    """The number of settings in each round of halving."""
    found = [settings]
    while found[-1] > FINALISTS:
        found.append(ceil(found[-1] / 2))
    return found


def fitting(settings: Sequence[Setting], overhead_s: float, seconds: float, left_s: float) -> int:
    """The number of settings that fit into the time, if each takes `overhead_s` beside its measurement."""
    return next((n for n in range(len(settings), 0, -1) if needed(settings[:n], overhead_s, seconds) <= left_s), 0)


def needed(settings: Sequence[Setting], overhead_s: float, seconds: float) -> float:
    """The seconds for all measurements: each setting once, the rounds of halving, and one combination."""
    same = sum(not setting.captions for setting in settings)
    again = [(1 + n) * (overhead_s + seconds * 2.0**number) for number, n in enumerate(rounds(same)) if number]
    combination = overhead_s + seconds if same > 1 else 0
    return _needed_once(settings, overhead_s, seconds) + sum(again) + combination


def _needed_once(settings: Sequence[Setting], overhead_s: float, seconds: float) -> float:
    return sum(setting.copies for setting in settings) * overhead_s + len(settings) * seconds


def search(
    first: tuple[Setting, Result],
    offered: Sequence[Setting],
    combine: Callable[[Setting, Setting], Setting | None],
    measure: Measure,
    *,
    seconds: float,
    budget_s: float,
) -> Found:
    """Find the fastest setting.

    Args:
        first: the recipe itself, measured for `seconds`.
        offered: the settings to measure, the most promising first.
        combine: merges two settings; returns None if they exclude each other.
        seconds: how long a setting is measured in the first round.
        budget_s: the time for everything, including the cost of `first`.
    """
    return _Search(first, combine, measure, seconds, budget_s).run(offered)


class _Search:
    def __init__(
        self,
        first: tuple[Setting, Result],
        combine: Callable[[Setting, Setting], Setting | None],
        measure: Measure,
        seconds: float,
        budget_s: float,
    ) -> None:
        default, result = first
        self._found = Found(
            default=default, results={default.name: (default, result, seconds)}, before={seconds: result}
        )
        self._combine, self._measure = combine, measure
        self._seconds, self._left_s = seconds, budget_s - first[1].cost_s
        self._first_overhead_s = first[1].cost_s - seconds
        self._overheads: list[float] = []

    def run(self, offered: Sequence[Setting]) -> Found:
        each = self._seconds
        for number, setting in enumerate(offered, 1):
            measured = needed(offered[:number], self._overhead_s, each)
            self._try(setting, each, measured - _needed_once(offered[:number], self._overhead_s, each))
        longest = self._halved([setting for setting in offered if not setting.captions])
        self._found.best = self._combination(longest)
        self._confirm(2 * longest)
        self._found.left = [one for one in offered if one.name not in self._found.results]
        return self._found

    def _halved(self, settings: Sequence[Setting]) -> float:
        """Measure the faster half again, until few are left. Returns the length of the last measurements."""
        seconds = self._seconds
        while len(settings) > FINALISTS:
            better = self._ranked(settings)[: ceil(len(settings) / 2)]
            for setting in [self._found.default, *better] if better else []:
                if not self._try(setting, 2 * seconds):
                    return seconds
            settings, seconds = better, 2 * seconds
        return seconds

    def _combination(self, seconds: float) -> Setting | None:
        """The fastest setting, combined with each next one that makes it faster; None if none is faster than the
        recipe."""
        best: Setting | None = None
        for setting in self._ranked([setting for setting, *_ in list(self._found.results.values())]):
            if best is None:
                best = setting
                continue
            both = self._combine(best, setting)
            if both and self._try(both, seconds) and self._value(both) > LEAST_GAIN * self._value(best):
                best = both
        return best

    def _confirm(self, seconds: float) -> None:
        """Measure the recipe and the fastest setting once more, if there is time for both. If that setting fails now,
        take the next fastest."""
        found, todo = self._found, [self._found.default]
        while found.best and self._left_s >= _needed_once([*todo, found.best], self._overhead_s, seconds):
            if not all(self._try(one, seconds) for one in [*todo, found.best]):
                return
            if found.rate(found.best):
                found.confirmed = seconds in found.before
                return
            found.best = next(iter(self._ranked([setting for setting, *_ in found.results.values()])), None)
            todo = []  # the recipe was measured

    def _ranked(self, settings: Sequence[Setting]) -> list[Setting]:
        """The settings that do not change captions and are faster than the recipe, the fastest first."""
        least = self._value(self._found.default)
        same = [one for one in settings if not one.captions and self._value(one) > least]
        return sorted(same, key=self._value, reverse=True)

    def _value(self, setting: Setting) -> float:
        _, result, _ = self._found.results.get(setting.name, (None, None, None))
        return result.rate.value if result and result.rate else 0.0

    @property
    def _overhead_s(self) -> float:
        """The expected overhead of a measurement. The first start may include compiling."""
        return median(self._overheads) if self._overheads else self._first_overhead_s

    def _try(self, setting: Setting, seconds: float, reserve_s: float = 0.0) -> bool:
        """Measure, if there is time for it and `reserve_s` more. Returns whether there was."""
        expected = setting.copies * self._overhead_s + seconds
        if self._left_s < expected + reserve_s:
            return False
        limit = min(self._left_s, max(LEAST_LIMIT_S, LIMIT * expected))
        result = self._measure(setting, seconds, limit)
        self._left_s -= result.cost_s
        if result.rate:
            self._overheads.append(max(0.0, result.cost_s - seconds) / setting.copies)
        if setting is not self._found.default:
            self._found.results[setting.name] = setting, result, seconds
        elif result.rate:
            self._found.results[setting.name] = setting, result, seconds
            self._found.before[seconds] = result
        return True
