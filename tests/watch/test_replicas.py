"""When a run without enough replicas ends, and when it goes on: the decision, and the counts behind it."""

import math

import pytest

from caprl_ray.recipe.replicas import Replicas
from caprl_ray.watch.batch import Batch
from caprl_ray.watch.counter import Counter
from caprl_ray.watch.record import Replicas as Counts
from caprl_ray.watch.replicas import hopeless
from caprl_ray.watch.starts import GONE_S, STARTS, Pool, Starts

NODES = {"a": "10.0.0.1 (a)", "b": "10.0.0.2 (b)"}
BROKEN = "model.source: X did not start (no driver)."


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def starts(clock: Clock) -> Starts:
    return Starts(clock)


def said(pool: Pool, able: dict[str, str] = NODES, **replicas: int) -> str | None:
    failure = hopeless(pool, able, Replicas(**replicas))
    return str(failure) if failure else None


def test_a_node_that_starts_none_ends_no_run_while_another_may() -> None:
    for others in ({"running": 1}, {"starting": 1}, {}):
        assert said(Pool(struck={"a": BROKEN}, **others)) is None


def test_a_run_ends_when_every_node_is_struck_and_nothing_runs_or_starts() -> None:
    struck = {"a": BROKEN, "b": "another"}
    assert said(Pool(struck=struck, running=1)) is None
    assert said(Pool(struck=struck, starting=1)) is None
    assert said(Pool(struck=struck)) == (
        f"{BROKEN} No replica can start: {STARTS} starts failed on nodes 10.0.0.1 (a), 10.0.0.2 (b)."
    )


def test_nodes_that_have_left_or_are_too_small_do_not_count() -> None:
    assert said(Pool(struck={"a": BROKEN, "gone": BROKEN}), {"a": NODES["a"]}) is not None
    assert said(Pool(struck={"gone": BROKEN}), {}) is None, "without any node the run waits for one"
    assert said(Pool(struck={"gone": BROKEN}, short_s=9999), NODES) is None, "it was lost, not struck"


def test_fewer_than_the_least_may_run_for_so_long() -> None:
    pool = {"struck": {"a": BROKEN}, "running": 1}
    assert said(Pool(short_s=59, **pool), min=2, wait_s=60) is None
    text = said(Pool(short_s=61, **pool), min=2, wait_s=60)
    assert text and text.startswith("replicas.min: fewer than 2 replicas ran for 60 seconds") and BROKEN in text
    assert said(Pool(short_s=61, running=1), min=2, wait_s=60) is None, "no node was struck: the rest may still come"


def test_a_pool_that_has_no_rows_left_ends_no_run_while_a_later_one_finishes_them(starts: Starts, clock: Clock) -> None:
    able, wait = {"a": NODES["a"]}, 60
    for number in range(STARTS):
        starts.failed(f"r{number}", "a", BROKEN)
    assert "No replica can start" in str(said(starts.pool(1), able, wait_s=wait))
    for _ in range(5):  # as long as the readers take
        starts.passed()
        clock.now += wait - 1
        assert said(starts.pool(1), able, wait_s=wait) is None and starts.absent() == 0
    assert starts.pool(1).short_s > wait
    clock.now += 2
    assert "No replica can start" in str(said(starts.pool(1), able, wait_s=wait))
    clock.now += GONE_S
    assert starts.absent() > wait


def test_rows_that_a_later_pool_finishes_have_passed_the_first_one() -> None:
    counter = Counter()
    for told in (Batch(rows=8), Batch(rows=0, pool="score")):
        counter.add(told)
        assert counter.pool(1).passed_s == math.inf
    counter.add(Batch(rows=8, pool="score"))
    assert counter.pool(1).passed_s < GONE_S and counter.pool(1, "score").passed_s == math.inf


def test_a_node_is_struck_by_starts_that_fail_one_after_the_other(starts: Starts) -> None:
    results = [starts.failed(f"r{n}", "a", BROKEN) for n in range(STARTS + 1)]
    assert results == [False] * (STARTS - 1) + [True, False] and starts.struck() == {"a": BROKEN}
    for n in range(2 * STARTS):
        starts.failed(f"s{n}", "b", BROKEN)
        starts.captioned("b")
    assert "b" not in starts.struck()


def test_replicas_run_while_they_give_signs_of_life(starts: Starts, clock: Clock) -> None:
    starts.alive("one", runs=False)
    starts.alive("two", runs=True)
    assert (starts.pool(1).running, starts.pool(1).starting) == (1, 1)
    clock.now += GONE_S - 1
    starts.alive("one", runs=True)
    clock.now += 1
    assert (starts.pool(1).running, starts.pool(1).starting) == (1, 0), "the other has given no sign"
    starts.failed("one", "a", BROKEN)
    starts.alive("one", runs=True)  # a late sign
    assert starts.pool(1).running == 0


def test_the_seconds_with_too_few_are_counted_from_the_last_moment_with_enough(starts: Starts, clock: Clock) -> None:
    clock.now += 50
    assert starts.pool(1).short_s == 50
    starts.alive("one", runs=True)
    assert starts.pool(1).short_s == 0
    clock.now += 10
    assert (starts.pool(1).short_s, starts.pool(2).short_s) == (0, 0)
    clock.now += 20
    assert starts.pool(2).short_s == 20


def test_replicas_cost_from_their_first_sign_to_their_last_and_the_lost_are_counted(
    starts: Starts, clock: Clock
) -> None:
    starts.alive("one", runs=False)
    starts.alive("two", runs=False)
    clock.now += 20
    starts.alive("two", runs=True)
    starts.alive("three", runs=True)
    clock.now += 10
    assert starts.counts() == Counts(running=2, starting=1, lost=0, seconds=30 + 30 + 10)
    starts.failed("one", "a", BROKEN)
    starts.left("three")
    clock.now += GONE_S
    # A replica without further signs of life has cost until its last one.
    assert starts.counts() == Counts(running=0, starting=0, lost=3, seconds=30 + 20 + 10)
    assert starts.counts().lost == 3
