"""The meter tells how many requests an engine runs and how many wait, as means over time."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from caprl_ray.engines.meter import Meter
from caprl_ray.engines.protocol import Completion, Picture
from caprl_ray.errors import RowFailure

PICTURE = Picture(pixels=memoryview(b"123"), width=1, height=1)


class Engine:
    """An engine whose requests end when they are told to."""

    control_tokens = ("<eos>",)

    def __init__(self) -> None:
        self.answers: list[asyncio.Future[Completion]] = []

    async def caption(self, picture: Picture, prompt: str, sampling: Mapping[str, Any] = {}) -> Completion:
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]


def test_requests_are_means_over_time_and_those_without_a_place_wait() -> None:
    now, engine = [100.0], Engine()
    meter = Meter(engine, 2, lambda: now[0])

    async def run() -> None:
        asked = [asyncio.create_task(meter.caption(PICTURE, "p")) for _ in range(3)]
        await asyncio.sleep(0)
        now[0] += 10  # three requests, two places
        engine.answers[0].set_exception(RowFailure("engine_rejected"))
        with pytest.raises(RowFailure):
            await asked[0]
        now[0] += 10  # two requests
        found = meter.requests()
        assert (found.running, found.waiting) == (2.0, 0.5)
        asked[1].cancel()
        await asyncio.wait([asked[1]])
        now[0] += 5  # one request
        found = meter.requests()
        assert (found.running, found.waiting) == (1.0, 0.0), "only since the last question"
        found = meter.requests()
        assert (found.running, found.waiting) == (1.0, 0.0), "no time has passed"
        asked[2].cancel()
        await asyncio.wait([asked[2]])
        now[0] += 5
        assert meter.requests().running == 0.0 and meter.control_tokens == ("<eos>",)

    asyncio.run(run())
