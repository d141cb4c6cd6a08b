"""Planted pictures show an engine that mixes rows up or sees no pixels, and no other."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from caprl_ray.caption.planted import GREEDY, Planted
from caprl_ray.engines.protocol import AS_THE_RECIPE, Completion, Picture
from caprl_ray.errors import RowFailure
from caprl_ray.prepare.sizes import SizeRule
from caprl_ray.recipe.sampling import Sampling

RULE = SizeRule(factor=28, min_pixels=3136, max_pixels=1_003_520, max_aspect=200)
CHINESE = "灰色背景的正中央有一个红色的大圆形。"
RED, BLUE = "A large red circle on a gray wall.", "Two small blue squares lie on yellow ground."


def fault(answer: Callable[[Picture, int], str]) -> str | None:
    class Engine:
        control_tokens = ()
        asked = 0

        async def caption(self, picture: Picture, _: str, sampling: Mapping[str, Any] = AS_THE_RECIPE) -> Completion:
            assert sampling == GREEDY
            self.asked += 1
            text = answer(picture, self.asked)
            return Completion(text=text, finish_reason="stop", prompt_tokens=1, caption_tokens=1)

    return asyncio.run(Planted(RULE, Sampling()).fault(Engine()))


def seen(picture: Picture) -> str:
    """A caption by the pixel in the middle."""
    at = 3 * (picture.width * (picture.height // 2) + picture.width // 2)
    return RED if picture.pixels[at + 1] < 100 else BLUE


def refused(*_: Any) -> str:
    raise RowFailure("engine_rejected")


@pytest.mark.parametrize(
    ("answer", "faulty"),
    [
        (lambda picture, _: seen(picture), False),
        (lambda picture, number: seen(picture) + (" It is bright." if number == 3 else ""), False),
        (lambda *_: "", False),
        (lambda *_: RED, True),
        (lambda _, number: (RED, RED, BLUE)[number - 1], True),
        (lambda _, number: (BLUE, RED, RED)[number - 1], True),
        (lambda _, number: ("Cats.", BLUE, "A dog sleeps.")[number - 1], True),
        (refused, False),
        (lambda picture, number: (CHINESE, BLUE, CHINESE.replace("大", "很大"))[number - 1], False),
    ],
)
def test_fault(answer: Callable[[Picture, int], str], faulty: bool) -> None:
    said = fault(answer)
    assert bool(said) == faulty
    assert not said or said.startswith("quality.self_check: ")


@pytest.mark.parametrize("sampling", [{"n": 2}, {"structured_outputs": {"choice": ["yes", "no"]}, "min_tokens": 100}])
def test_the_recipes_sampling_does_not_stand_in_their_way(sampling: dict[str, Any]) -> None:
    recipe = Sampling.model_validate(sampling)
    seen = recipe.changed(Planted(RULE, recipe)._sampling).model_dump()
    assert (seen["n"], seen["temperature"]) == (1, 0)
    assert not seen.get("structured_outputs") and not seen.get("min_tokens")
