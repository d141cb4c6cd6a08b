"""Which settings are measured, how long, and which is the fastest: with a clock that only measurements move."""

from collections.abc import Mapping
from dataclasses import dataclass

from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as some

from caprl_ray.commands.estimate import Estimate
from caprl_ray.recipe.load import parse
from caprl_ray.tune.search import FINALISTS, Found, faster, fitting, rounds, search
from caprl_ray.tune.settings import Setting

RECIPE = parse({"input": {"paths": ["x"]}, "output": {"path": "y"}})
DEFAULT = Setting(name="default", knobs=frozenset(), changes={}, recipe=RECIPE)
START_S, SECONDS = 20.0, 10.0


def setting(name: str, knob: str, *, captions: bool = False, copies: int = 1) -> Setting:
    fields = ("quantization",) if captions else ()
    return Setting(name=name, knobs=frozenset([knob]), changes={}, recipe=RECIPE, captions=fields, copies=copies)


def both(first: Setting, second: Setting) -> Setting | None:
    if first.knobs & second.knobs:
        return None
    return Setting(name=f"{first.name}+{second.name}", knobs=first.knobs | second.knobs, changes={}, recipe=RECIPE)


@dataclass
class Result:
    rate: Estimate | None
    cost_s: float


class Machine:
    """Knows the factor of each setting; those of several settings are multiplied. None does not start, and a number of
    seconds hangs for so long."""

    def __init__(self, factors: Mapping[str, float | None], hangs: Mapping[str, float] | None = None) -> None:
        self.factors, self.hangs = factors, hangs or {}
        self.measured: list[tuple[str, float]] = []
        self.spent_s = 0.0

    def __call__(self, setting: Setting, seconds: float, limit_s: float) -> Result:
        self.measured.append((setting.name, seconds))
        factors = [self.factors.get(name, 1.0) for name in setting.name.split("+")]
        hang = self.hangs.get(setting.name, 0.0)
        cost = min(limit_s, hang or START_S * setting.copies + seconds)
        self.spent_s += cost
        value = 10.0
        for factor in factors:
            value *= factor or 0.0
        return Result(Estimate(value=value, error=0.01, df=9) if value and not hang else None, cost)

    def search(self, offered: list[Setting], budget_s: float) -> Found:
        first = self(DEFAULT, SECONDS, budget_s)
        return search((DEFAULT, first), offered, both, self, seconds=SECONDS, budget_s=budget_s)


def test_the_better_half_is_measured_twice_as_long_and_the_best_of_each_knob_are_combined() -> None:
    factors = {"a1": 1.2, "a2": 1.1, "b1": 1.3, "b2": 0.9, "c1": 1.05, "d1": 0.5, "e1": 1.15, "e2": 1.02, "fp8": 3.0}
    offered = [setting(name, name[0], captions=name == "fp8") for name in factors]
    machine = Machine(factors)
    found = machine.search(offered, 1200.0)
    names = [name for name, _ in machine.measured]
    assert names[:10] == ["default", *factors], "everything once, in the order in which it is offered"
    again = [name for name, seconds in machine.measured if seconds == 20 and "+" not in name]
    assert again == ["default", "b1", "a1", "e1", "a2"], "the recipe too, for the machine may be busier now"
    assert found.best and found.best.name == "b1+a1+e1+c1", "a1 and e1 already turn the knobs of a2 and e2"
    gain = found.gain(found.best)
    assert gain and abs(gain.value - 1.2 * 1.3 * 1.15 * 1.05) < 1e-9 and faster(gain)
    assert found.confirmed and machine.measured[-2:] == [("default", 40.0), ("b1+a1+e1+c1", 40.0)]
    assert names.count("fp8") == 1 and not found.left, "what may change captions is measured once, and never wins"
    assert machine.spent_s <= 1200


def test_a_setting_that_does_not_start_or_hangs_is_a_result_and_the_search_goes_on() -> None:
    offered = [setting("broken", "a"), setting("hangs", "b"), setting("good", "c")]
    machine = Machine({"broken": None, "good": 1.5}, hangs={"hangs": 1e6})
    found = machine.search(offered, 600.0)
    assert machine.measured[1:4] == [("broken", 10.0), ("hangs", 10.0), ("good", 10.0)]
    assert found.rate(offered[0]) is None and found.rate(offered[1]) is None
    assert found.best is offered[2] and found.confirmed
    assert found.results["hangs"][1].cost_s == 90, "ended after three times of what was expected of it"


def test_the_recipe_stays_where_nothing_is_faster() -> None:
    found = Machine({"a": 0.9, "b": 1.0}).search([setting("a", "a"), setting("b", "b")], 600.0)
    assert found.best is None
    found = Machine({"a": 1.01}).search([setting("a", "a")], 600.0)
    assert found.best and not faster(found.gain(found.best)), "less than two measurements differ"
    assert not faster(Estimate(value=1.04, error=None)) and faster(Estimate(value=1.06, error=None))


class FailsLater(Machine):
    """A machine on which some settings work only in the first round."""

    def __init__(self, factors: Mapping[str, float | None], *later: str) -> None:
        super().__init__(factors)
        self.later = later

    def __call__(self, setting: Setting, seconds: float, limit_s: float) -> Result:
        found = super().__call__(setting, seconds, limit_s)
        return Result(None, found.cost_s) if seconds > SECONDS and setting.name in self.later else found


def test_a_winner_that_fails_when_it_is_measured_again_is_none_and_the_next_one_takes_its_place() -> None:
    offered = [setting("a", "x"), setting("b", "x")]
    found = FailsLater({"a": 2.0}, "a").search(offered[:1], 600.0)
    assert found.best is None and not found.confirmed
    machine = FailsLater({"a": 2.0, "b": 1.5}, "a")
    found = machine.search(offered, 600.0)
    assert found.best is offered[1] and found.confirmed and faster(found.gain(offered[1]))
    assert machine.measured[-3:] == [("default", 20.0), ("a", 20.0), ("b", 20.0)]
    found = FailsLater({"a": 2.0}, "default").search(offered[:1], 600.0)
    assert found.best is offered[0] and not found.confirmed, "there is nothing to compare with"


def test_without_time_nothing_is_begun_and_the_rest_is_named() -> None:
    offered = [setting("two", "a", copies=2), setting("b", "b"), setting("c", "c")]
    machine = Machine({"two": 2.0, "b": 1.5})
    found = machine.search(offered, START_S + SECONDS + 10)
    assert machine.measured == [("default", 10.0)] and found.left == offered and found.best is None
    assert fitting(offered, START_S, SECONDS, 49) == 0 and fitting(offered, START_S, SECONDS, 50) == 1
    assert fitting(offered, START_S, SECONDS, 110) == 2, "50 + 30, and 30 for both together"
    assert rounds(FINALISTS) == [FINALISTS] and rounds(17) == [17, 9, 5, 3]


@examples(max_examples=200, deadline=None)
@given(
    factors=some.lists(some.one_of(some.none(), some.floats(0.2, 3.0)), max_size=14),
    may_change=some.sets(some.integers(0, 13)),
    hangs=some.sets(some.integers(0, 13)),
    budget_s=some.floats(30.0, 3000.0),
)
def test_a_search_keeps_to_its_time_and_loses_no_setting(
    factors: list[float | None], may_change: set[int], hangs: set[int], budget_s: float
) -> None:
    names = [f"s{number}" for number in range(len(factors))]
    offered = [setting(name, name, captions=number in may_change) for number, name in enumerate(names)]
    machine = Machine(dict(zip(names, factors, strict=True)), {f"s{number}": 1e6 for number in hangs})
    found = machine.search(offered, budget_s)
    assert machine.spent_s <= budget_s + 1e-6
    assert {one.name for one in found.left} | found.results.keys() >= set(names)
    assert len(set(machine.measured)) == len(machine.measured), "no measurement is made twice"
    if found.best:
        assert not found.best.captions and found.rate(found.best)
        alone = [factor or 0 for number, factor in enumerate(factors) if number not in may_change | hangs]
        if not found.left:
            assert found.rate(found.best).value >= 10 * max(alone) - 1e-9  # type: ignore[union-attr]
