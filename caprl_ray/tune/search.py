"""Which settings are measured, how long, and which is the fastest: pure functions of measurements.

The way (successive halving, Jamieson and Talwalkar 2016): as many settings as there is time for are measured once. Of
those that write the same as the recipe the better half is measured again, twice as long, until at most FINALISTS are
left; so is the recipe, because the machine may have had other work before. Settings of different knobs are combined
greedily: the fastest one, then each next one if both together are faster. With the time that is left the recipe and the
fastest are measured once more, twice as long: what was chosen because it was fastest was also lucky, and this
measurement does not know that it was chosen.

An engine's start costs more than a measurement. So time is counted in what measurements took, starts included, and
nothing is begun for which the time will not do. Each measurement has a time limit. One that fails is a result like any,
and costs what it took.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Protocol

from caprl_ray.commands.estimate import Estimate
from caprl_ray.tune.settings import Setting

FINALISTS = 4
# A setting may take so many times what is expected of it before it is ended: weights of 8 bits are made while they are
# loaded, and another form of the model is compiled anew. At least LEAST_LIMIT_S.
LIMIT, LEAST_LIMIT_S = 3.0, 90.0
LEAST_GAIN = 1.01  # of a combination over what it is made of
CERTAIN = 1.05  # a gain without an interval counts as one from here on


class Result(Protocol):
    """One measurement. Without a rate it failed."""

    @property
    def rate(self) -> Estimate | None:
        """Images/s."""
        ...

    @property
    def cost_s(self) -> float:
        """What it took, with the engine's start."""
        ...


class Measure(Protocol):
    """Measures a setting for `seconds` in steady state, in at most `limit_s` with its start."""

    def __call__(self, setting: Setting, seconds: float, limit_s: float) -> Result: ...


@dataclass(kw_only=True)
class Found:
    """What a search has found.

    Attributes:
        results: the longest measurement of each setting, and how long it was.
        before: those of the recipe, by how long they were.
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
        """Its rate over the recipe's, by one that was measured equally long, which is at about the same time."""
        _, result, seconds = self.results[setting.name]
        before = (self.before.get(seconds) or self.results[self.default.name][1]).rate
        return result.rate.over(before) if result.rate and before else None


def faster(gain: Estimate | None) -> bool:
    """Whether a gain is more than what measuring alone makes of two equal settings."""
    if gain is None:
        return False
    return gain.interval.low > 1 if gain.interval else gain.value >= CERTAIN


def rounds(settings: int) -> list[int]:
    """How many settings each round of halving measures."""
    found = [settings]
    while found[-1] > FINALISTS:
        found.append(ceil(found[-1] / 2))
    return found


def fitting(settings: Sequence[Setting], overhead_s: float, seconds: float, left_s: float) -> int:
    """How many of the settings there is time for, the first ones, if each takes so long beside its measurement."""
    return next((n for n in range(len(settings), 0, -1) if needed(settings[:n], overhead_s, seconds) <= left_s), 0)


def needed(settings: Sequence[Setting], overhead_s: float, seconds: float) -> float:
    """The seconds that measuring takes: each once, the rounds of halving, and one combination."""
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
        offered: what to measure, the most telling first.
        combine: makes one setting of two; None if it cannot.
        seconds: how long a setting is measured in the first round.
        budget_s: for everything, with what `first` took.
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
        """Measure the better half again and again. Returns how long the last ones were measured."""
        seconds = self._seconds
        while len(settings) > FINALISTS:
            better = self._ranked(settings)[: ceil(len(settings) / 2)]
            for setting in [self._found.default, *better] if better else []:
                if not self._try(setting, 2 * seconds):
                    return seconds
            settings, seconds = better, 2 * seconds
        return seconds

    def _combination(self, seconds: float) -> Setting | None:
        """The fastest setting, joined by each next one that makes it faster; None if none is faster than the recipe."""
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
        """Measure the recipe and the fastest setting once more, if there is time for both. Where that setting fails
        now, the next fastest one takes its place."""
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
        """Those that write the same as the recipe and are faster, the fastest first."""
        least = self._value(self._found.default)
        same = [one for one in settings if not one.captions and self._value(one) > least]
        return sorted(same, key=self._value, reverse=True)

    def _value(self, setting: Setting) -> float:
        _, result, _ = self._found.results.get(setting.name, (None, None, None))
        return result.rate.value if result and result.rate else 0.0

    @property
    def _overhead_s(self) -> float:
        """What a measurement takes beside its seconds, as far as is known. The first start may compile."""
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
