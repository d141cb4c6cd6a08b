"""The requests of a measured replica to its engine."""

import asyncio
from collections.abc import Mapping
from typing import Any

from caprl_ray.engines.protocol import Completion, Picture
from caprl_ray.tune.replica import _Steered

PICTURE = Picture(pixels=memoryview(b"abc"), width=1, height=1)


class Engine:
    control_tokens = ("<|im_end|>",)

    def __init__(self) -> None:
        self.asked: list[Mapping[str, Any]] = []

    async def caption(self, picture: Any, prompt: Any, sampling: Mapping[str, Any] = {}) -> Completion:
        self.asked.append(sampling)
        reason = "length" if "max_tokens" in sampling else "stop"
        return Completion(text="a", finish_reason=reason, prompt_tokens=1, caption_tokens=1)


def test_captions_are_greedy_and_then_fill_the_places_as_in_the_middle_of_a_run() -> None:
    engine = Engine()
    steered = _Steered(engine)

    async def captions(number: int, **sampling: float) -> list[Completion]:
        return [await steered.caption(PICTURE, "prompt", sampling) for _ in range(number)]

    steered.greedy = True
    asyncio.run(captions(2, top_p=0.9))
    assert engine.asked == [{"top_p": 0.9, "temperature": 0.0, "n": 1}] * 2 and steered.first > 0
    steered.greedy, steered.filling, steered.tokens = False, 200, 100
    asyncio.run(captions(1, temperature=0.0))
    assert engine.asked.pop() == {"temperature": 0.0}, "a self check must be whole"
    cut = asyncio.run(captions(200))
    lengths = [asked["max_tokens"] for asked in engine.asked[2:]]
    assert min(lengths) >= 1 and max(lengths) <= 100 and 40 < sum(lengths) / 200 < 60, "any part of a caption"
    assert {one.finish_reason for one in cut} == {"stop"}, "no check may decode them again"
    asyncio.run(captions(1))
    assert engine.asked[-1] == {}
