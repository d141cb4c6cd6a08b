"""Several captions of an image: named prompts, and several captions for each."""

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from caprl_ray.caption.columns import check_prompt
from caprl_ray.caption.rules import Rules
from caprl_ray.caption.several import prompt_columns
from caprl_ray.caption.writer import Writer
from caprl_ray.engines.protocol import AS_THE_RECIPE, Completion, Picture
from caprl_ray.errors import RecipeError, RowFailure
from caprl_ray.prepare.sizes import SizeRule
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe

ROW = {"unit": 0, "index": 0, "pixels": memoryview(bytes(3)), "pixel_width": 1, "pixel_height": 1, "meta:txt": "a dog"}
MODEL: Any = SimpleNamespace(
    label="test", size_rule=SizeRule(factor=None, min_pixels=1, max_pixels=10**6, max_aspect=200)
)


class Engine:
    """Answers with the prompt and the number of the request; fails or repeats itself at certain words."""

    control_tokens: Sequence[str] = ()

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Mapping[str, Any]]] = []

    async def caption(self, picture: Picture, prompt: str, sampling: Mapping[str, Any] = AS_THE_RECIPE) -> Completion:
        self.asked.append((picture.name, prompt, sampling))
        await asyncio.sleep(0)
        if "refused" in prompt:
            raise RowFailure("engine_rejected")
        text = "!" * 99 if "sick" in prompt else f"<{prompt}>"
        return Completion(text=text, finish_reason="stop", prompt_tokens=7, caption_tokens=3)


def recipe(**sections: Any) -> Recipe:
    checks = {"checks": {"prompt_echo": "off", "too_short": "off"}, "retries": [], "self_check": 0}
    return parse({"input": {"paths": ["in"]}, "output": {"path": "out"}, "quality": checks, **sections})


def written(settings: Recipe, engine: Engine) -> Any:
    async def run() -> Any:
        (result,) = await Writer(
            settings, MODEL, engine, Rules(settings.quality, settings.sampling), lambda: None
        ).write([ROW])
        return result

    return asyncio.run(run())


def test_a_later_prompt_uses_the_captions_of_earlier_ones() -> None:
    prompts = {"dense": "Describe {txt}.", "short": "Shorten {dense}", "last": "Then {caption} of {json[a]}"}
    settings = recipe(prompts=prompts)
    assert prompt_columns(settings) == ["json", "txt"]
    engine = Engine()
    row = written(settings, engine)
    texts = {one["prompt"]: one.get("text") for one in row["captions"]}
    assert texts == {"dense": "<Describe a dog.>", "short": "<Shorten <Describe a dog.>>", "last": None}
    assert row["captions"][2]["flags"] == ["prompt_column"]
    assert (row["caption"], row["decodes"], row["decoded_tokens"]) == ("<Describe a dog.>", 2, 6)
    assert {name for name, _, _ in engine.asked} == {"row-0"}


def test_the_best_caption_has_the_least_severe_flags() -> None:
    row = written(recipe(prompts={"one": "sick", "two": "good", "three": "refused"}), Engine())
    assert row["caption"] == "<good>"
    assert [one["flags"][:1] for one in row["captions"]] == [["garbage"], [], ["engine_rejected"]]
    assert row["flags"] == []
    failed = written(recipe(prompts={"one": "refused", "two": "{one} more"}), Engine())
    assert isinstance(failed, RowFailure)
    assert failed.code == "engine_rejected"


def test_n_captions_of_one_prompt_have_n_seeds() -> None:
    engine = Engine()
    row = written(recipe(sampling={"n": 3, "seed": 5}, prompt={"user": "Say."}), engine)
    assert [sampling.get("seed") for _, _, sampling in engine.asked] == [None, 6, 7]
    assert [one["prompt"] for one in row["captions"]] == ["prompt"] * 3
    assert row["caption"] == "<Say.>"


def test_one_caption_has_no_column_of_several() -> None:
    assert "captions" not in written(recipe(), Engine())


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"prompts": {"Dense": "Describe."}}, "prompts.Dense"),
        ({"prompts": {"dense": "{a b:>3}"}}, "may not have a format"),
        ({"prompts": {"dense": "Describe."}, "prompt": {"user": "Describe."}}, "prompt.user and prompts cannot both"),
        ({"sampling": {"n": 2, "temperature": 0.0}}, "n is 2, but temperature is 0"),
        ({"sampling": {"n": 0}}, "sampling.n"),
    ],
)
def test_prompts_and_numbers_that_cannot_work_are_refused(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe(**sections)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"prompts": {"txt": "Describe."}}, "prompts.txt: txt is also the name of a column"),
        (
            {"prompts": {"short": "Shorten {dense}", "dense": "Describe."}},
            "prompts.short: {dense} is no earlier prompt",
        ),
        ({"prompts": {"short": "Shorten {short}"}}, "prompts.short: {short} is this prompt's own caption"),
        ({"quality": {"alt_column": "alt"}}, "quality.alt_column: the input has no column alt; it has txt, url."),
    ],
)
def test_columns_that_clash_or_are_missing_are_refused(sections: dict[str, Any], said: str) -> None:
    settings = parse({"input": {"paths": ["in"]}, "output": {"path": "out"}, **sections})
    with pytest.raises(RecipeError) as refused:
        check_prompt(settings, ["txt", "url"])
    assert said in str(refused.value)
