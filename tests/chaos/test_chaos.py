"""Faults of every kind at drawn points of a run, on a cluster of several nodes: the ledger always balances.

`make chaos N=200` runs more of them.
"""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.chaos import divided, victims
from tests.chaos.arena import FILES, Arena, Outcome, new_arena
from tests.chaos.schedule import KINDS, STORAGE, Kill, Point, Schedule, draw

SEEDS = range(20)
QUICK = (0, 3, 16)  # not marked slow
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    with new_arena(tmp_path_factory.mktemp("chaos")) as arena:
        yield arena


def test_schedules_come_from_the_seed_alone_and_hold_every_kind() -> None:
    drawn = [draw(seed) for seed in SEEDS]
    assert drawn == [draw(seed) for seed in SEEDS]
    assert set.union(*(schedule.kinds for schedule in drawn)) == set(KINDS)


def assert_right(outcome: Outcome) -> None:
    assert outcome.problem is None, outcome
    assert outcome.fired or outcome.storage_faults, f"nothing struck: {outcome}"


def test_the_seeds_of_every_suite_run_hold_every_kind() -> None:
    assert set.union(*(draw(seed).kinds for seed in QUICK)) == set(KINDS)


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=() if seed in QUICK else pytest.mark.slow) for seed in SEEDS]
)
def test_every_image_is_captioned_once_whatever_dies(arena: Arena, seed: int) -> None:
    assert_right(arena.run(draw(seed)))


@pytest.mark.slow
def test_three_drivers_of_one_output_caption_every_image_once_although_one_is_killed(arena: Arena) -> None:
    schedule = Schedule(seed=1, kills=(Kill("driver killed", Point("PUT", "out/data/", 4)),), share=0.0)
    outcome = divided.run(arena, schedule, apart=False)
    assert_right(outcome)
    assert not outcome.missed and outcome.drivers == divided.PARTS + 1


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.slow
def test_three_drivers_on_machines_of_their_own_caption_every_image_once_whatever_dies(arena: Arena, seed: int) -> None:
    assert_right(divided.run(arena, divided.drawn(seed), apart=True))


@pytest.mark.engine
@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(
            seed=0,
            kills=(
                Kill("core killed", Point("PUT", "out/data/", 1)),
                Kill("driver killed", Point("PUT", "out/data/", 4)),
            ),
            share=0.0,
        ),
        Schedule(seed=1, kills=(Kill("replica killed", Point("PUT", "out/data/", 2)),), share=0.05),
    ],
    ids=lambda schedule: ", ".join(sorted(schedule.kinds)),
)
@pytest.mark.slow
def test_the_real_engine_outlives_it_too(arena: Arena, schedule: Schedule) -> None:
    outcome = replace(arena, model={"source": "embedded"}).run(schedule)
    assert_right(outcome)
    assert not outcome.missed
    assert outcome.storage_faults or STORAGE not in schedule.kinds


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """A node that prepares and a node that captions."""
    with new_arena(tmp_path_factory.mktemp("apart"), workers=((1, 0), (0, 1)), pause_s=0.05) as arena:
        yield arena


def wait(condition: Callable[[], object], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s: {condition}"
        time.sleep(0.05)


def rests(arena: Arena) -> bool:
    """Whether every loose file was requested and no request came for a while."""
    before = len(arena.server.of("GET", "in/"))
    time.sleep(1.5)
    return len(arena.server.of("GET", "in/files/")) >= FILES and before == len(arena.server.of("GET", "in/"))


@pytest.mark.parametrize("lost", ["pixels", "captions"])
@pytest.mark.slow
def test_blocks_that_are_lost_are_made_again_and_no_row_is_lost_or_repeated(apart: Arena, lost: str) -> None:
    document = apart.clear()
    document["replicas"]["max"] = 1
    document["engine"]["stall_timeout_s"] = 100
    document["output"]["rows_per_object"] = 2048  # no caption is committed before the last
    driver = apart.start(document)
    nodes = {"pixels" if cpus else "captions": pid for pid, (cpus, _) in apart.head.workers.items()}
    wait(lambda: list(victims.cores(apart.head)))
    (core,) = victims.cores(apart.head)
    if lost == "pixels":  # the engine stands still until they are lost
        core.send_signal(signal.SIGSTOP)
    else:  # files and some shards are captioned, and their pixels are gone
        time.sleep(9)
    wait(lambda: rests(apart))
    asked = len(apart.server.of("GET", "in/"))
    assert driver.poll() is None
    apart.head.replace(nodes[lost])
    if lost == "pixels":
        core.send_signal(signal.SIGCONT)
    assert apart.finish(driver) is None
    assert apart.check(document) is None
    assert len(apart.server.of("GET", "in/")) > asked, "nothing was made again"
