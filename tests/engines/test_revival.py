"""An engine that dies, hangs or lies is started again; each row ends captioned once, or failed if it is deadly."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caprl_ray.engines import revival
from caprl_ray.engines.protocol import Completion, EngineDied, Picture
from caprl_ray.engines.revival import Revival
from caprl_ray.errors import RowFailure, SystemFailure

STALL_S = 0.1


class Script:
    """Rows that end the engine (`deadly`) and that stop it (`hanging`), and how often it dies by chance."""

    def __init__(self, deadly: set[int] | None = None, hanging: set[int] | None = None, chance: float = 0.0) -> None:
        self.deadly, self.hanging, self.chance = deadly or set(), hanging or set(), chance
        self.random = random.Random(1)
        self.captioned: Counter[int] = Counter()
        self.engines: list[Scripted] = []
        self.broken = False
        self.failing_starts: list[Exception] = []

    async def start(self) -> "Scripted":
        await asyncio.sleep(0)
        if self.failing_starts:
            raise self.failing_starts.pop(0)
        assert all(engine.stopped for engine in self.engines), "an engine was started beside another"
        self.engines.append(Scripted(self))
        return self.engines[-1]


class Scripted:
    """An engine of a script: a row takes a few turns of the event loop, in which others go on."""

    control_tokens: Sequence[str] = ("<x>",)

    def __init__(self, script: Script) -> None:
        self.script, self.steps, self.stopped, self.dead = script, 0, False, asyncio.Event()
        self.hung = False

    async def caption(self, picture: Picture, prompt: str, sampling: Any = None) -> Completion:
        number = int(prompt) if prompt.isdigit() else -1
        for _ in range(3):
            await asyncio.sleep(0)
            if self.hung or number in self.script.hanging:
                self.hung = True
                await asyncio.Event().wait()
            if self.script.broken or number in self.script.deadly or self._dies():
                self.dead.set()
            if self.dead.is_set():
                raise EngineDied("it fell over")
            self.steps += 1
        self.script.captioned[number] += 1
        return Completion(text=f"caption {prompt}", finish_reason="stop", prompt_tokens=1, caption_tokens=2)

    def _dies(self) -> bool:
        return self.script.random.random() < self.script.chance

    def stop(self) -> None:
        self.stopped = True


def picture() -> Picture:
    return Picture(pixels=memoryview(bytes(12)), width=2, height=2)


async def caption_all(script: Script, rows: int) -> tuple[list[Any], Revival]:
    living = await Revival.begin(script.start, STALL_S)
    calls = [living.caption(picture(), str(number)) for number in range(rows)]
    return await asyncio.gather(*calls, return_exceptions=True), living


def run(script: Script, rows: int) -> tuple[list[Any], Revival]:
    """Every row's result. Fails if a row waits for ever."""
    return asyncio.run(asyncio.wait_for(caption_all(script, rows), 30))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revival, "START_PAUSE_S", 0.0)


def failed(results: list[Any]) -> set[int]:
    return {number for number, result in enumerate(results) if isinstance(result, RowFailure)}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 150), st.sets(st.integers(0, 149), max_size=4))
def test_exactly_the_deadly_rows_fail_and_the_deaths_are_bounded(rows: int, deadly: set[int]) -> None:
    deadly = {number for number in deadly if number < rows}
    script = Script(deadly)
    results, living = run(script, rows)
    assert failed(results) == deadly
    assert all(result.code == "engine_crash" for result in results if isinstance(result, RowFailure))
    assert all(r.text == f"caption {n}" for n, r in enumerate(results) if n not in deadly)
    assert bool(deadly) == bool(living.deaths) and living.deaths <= 5 * len(deadly)
    assert living.deaths <= len(script.engines) <= living.deaths + 1


def test_a_row_that_hangs_the_engine_is_found_as_well() -> None:
    script = Script(hanging={7})
    results, living = run(script, 20)
    assert failed(results) == {7} and living.deaths == 5


def test_an_engine_that_dies_by_chance_loses_no_row() -> None:
    script = Script(chance=0.002)
    results, living = run(script, 300)
    assert living.deaths > 2 and not failed(results)
    assert [result.text for result in results] == [f"caption {number}" for number in range(300)]


def test_a_death_from_outside_releases_every_row_and_costs_one_start() -> None:
    async def scenario() -> None:
        script = Script()
        living = await Revival.begin(script.start, STALL_S)
        calls = [asyncio.ensure_future(living.caption(picture(), str(number))) for number in range(50)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        script.engines[0].hung = True  # all of them wait in it now
        results = await asyncio.wait_for(asyncio.gather(*calls), 10)
        assert living.deaths == 1 and len(script.engines) == 2 and script.engines[0].stopped
        assert [result.text for result in results] == [f"caption {number}" for number in range(50)]

    asyncio.run(scenario())


def test_an_engine_that_steps_on_is_left_alone_however_long_a_caption_takes() -> None:
    async def scenario() -> None:
        script = Script()
        living = await Revival.begin(script.start, STALL_S)
        script.engines[0].hung = True
        call = asyncio.ensure_future(living.caption(picture(), "1"))
        for _ in range(40):
            await asyncio.sleep(STALL_S / 10)
            script.engines[0].steps += 1
        assert not living.deaths and not call.done()
        await asyncio.wait_for(call, 10)  # now it stands still
        assert living.deaths == 1

    asyncio.run(scenario())


def test_a_broken_system_is_no_deadly_row() -> None:
    script = Script()
    script.broken = True
    results, living = run(script, 40)
    assert all(isinstance(result, SystemFailure) for result in results)
    assert "dies at once" in str(results[0]) and living.deaths <= 5


def test_a_system_that_breaks_later_is_no_deadly_row_either() -> None:
    async def scenario() -> None:
        script = Script({3})
        living = await Revival.begin(script.start, STALL_S)
        await living.caption(picture(), "1")
        with pytest.raises(RowFailure):
            await living.caption(picture(), "3")
        script.broken = True
        for number in (4, 5):
            with pytest.raises(SystemFailure):
                await living.caption(picture(), str(number))
        assert script.captioned[1] >= 5  # it was the proof

    asyncio.run(scenario())


def test_a_group_of_nothing_but_deadly_rows_is_still_taken_apart_and_a_run_of_them_is_not() -> None:
    results, _ = run(Script(set(range(revival.GROUP))), revival.GROUP)
    assert failed(results) == set(range(revival.GROUP))
    results, living = run(Script(set(range(1000))), 1000)
    assert isinstance(results[-1], SystemFailure) and living.deaths <= revival.MOST_FRUITLESS_DEATHS


def test_deaths_count_against_the_engine_only_where_it_captions_nothing_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(revival, "MOST_FRUITLESS_DEATHS", 4)

    async def scenario() -> None:
        script = Script()
        living = await Revival.begin(script.start, STALL_S)
        for number in range(12):
            script.engines[-1].dead.set()
            await living.caption(picture(), str(number))
        assert living.deaths == 12

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("faults", "starts"),
    [
        ([EngineDied("no memory")] * 2, True),
        ([EngineDied("no memory")] * 3, False),
        ([SystemFailure("no such model")], False),
    ],
)
def test_a_start_is_tried_again_where_it_may_help(faults: list[Exception], starts: bool) -> None:
    script = Script()
    script.failing_starts = list(faults)
    if starts:
        assert run(script, 3)[0][2].text == "caption 2"
    else:
        with pytest.raises(SystemFailure, match=r"no memory|no such model"):
            run(script, 3)
    assert not script.failing_starts


def test_an_engine_that_is_stopped_for_good_answers_nothing_and_is_not_started_again() -> None:
    async def stopped(script: Script) -> None:
        engine = await Revival.begin(script.start, STALL_S)
        await engine.caption(picture(), "1")
        await engine.stop()
        with pytest.raises(SystemFailure, match="was stopped"):
            await engine.caption(picture(), "2")

    asyncio.run(stopped(script := Script()))
    assert [engine.stopped for engine in script.engines] == [True] and script.captioned == {1: 1}


def test_an_engine_that_is_stopped_while_it_starts_again_leaves_none_behind() -> None:
    async def scenario(script: Script, *faults: Exception) -> None:
        living = await Revival.begin(script.start, STALL_S)
        script.engines[0].dead.set()
        script.failing_starts = list(faults)
        call = asyncio.ensure_future(living.caption(picture(), "1"))
        while not script.engines[0].stopped:
            await asyncio.sleep(0)
        await asyncio.wait_for(living.stop(), 10)
        assert all(engine.stopped for engine in script.engines)
        with pytest.raises(SystemFailure, match="was stopped"):
            await asyncio.wait_for(call, 10)

    for faults in ((), (EngineDied("no memory"),)):
        asyncio.run(scenario(script := Script(), *faults))
        assert len(script.engines) == 2 - len(faults)
