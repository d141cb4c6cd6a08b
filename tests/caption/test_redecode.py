"""A caption that fails a check is decoded again with other sampling, and the best one is kept (promise P6)."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from caprl_ray.caption.redecode import MOST_CAPTION_CHARACTERS, Kept, Redecoder
from caprl_ray.caption.rules import Rules
from caprl_ray.engines.protocol import Completion, Picture
from caprl_ray.errors import RecipeError, RowFailure, SystemFailure
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.quality import RETRIES
from caprl_ray.recipe.sampling import Sampling
from caprl_ray.recipe.sections import Recipe

PICTURE = Picture(pixels=memoryview(bytes(3)), width=1, height=1)
GOOD = "A brown dog runs along the beach. Behind it, two children in red jackets throw a ball into the waves."
LOOP = "The sign reads open. " * 60
FIRST, SECOND = {"temperature": 0.5}, {"temperature": 0.6, "seed": 7}


class Engine:
    """Answers with a text, or raises, by the sampling that it is asked for: the recipe's, FIRST or SECOND."""

    control_tokens: Sequence[str] = ()

    def __init__(self, *answers: Any) -> None:
        self._answers = answers
        self.asked: list[Mapping[str, Any]] = []
        self.ended = 0

    async def caption(self, picture: Picture, prompt: str, sampling: Mapping[str, Any] = {}) -> Completion:
        self.asked.append(sampling)
        answer = self._answers[[{}, FIRST, SECOND].index(dict(sampling))]
        await asyncio.sleep(0.01 if answer == "never" else 0)
        if answer == "never":
            await asyncio.Event().wait()
        self.ended += 1
        if isinstance(answer, Exception):
            raise answer
        text, reason = answer if isinstance(answer, tuple) else (answer, "stop")
        return Completion(text=text, finish_reason=reason, prompt_tokens=10, caption_tokens=len(text.split()))


def recipe(**quality: Any) -> Recipe:
    quality = {"retries": [FIRST, SECOND]} | quality
    return parse({"input": {"paths": ["in"]}, "output": {"path": "out"}, "quality": quality})


def caption(engine: Engine, **quality: Any) -> Kept:
    settings = recipe(**quality)
    rules = Rules(settings.quality, settings.sampling)
    return asyncio.run(Redecoder(engine, rules, settings.quality, most_tokens=100).caption(PICTURE, "Describe."))


def test_a_good_caption_is_decoded_once() -> None:
    engine = Engine(GOOD, AssertionError(), AssertionError())
    kept = caption(engine)
    assert (kept.decode.text, kept.decodes, list(kept.decode.flags), list(kept.repaired)) == (GOOD, 1, [], [])
    assert kept.tokens == len(GOOD.split())


@pytest.mark.parametrize(
    ("first", "flag"),
    [
        (LOOP, "loop"),
        ((GOOD, "length"), "truncated"),
        ((GOOD, "repetition"), "loop"),
        ("", "empty"),
        ("!" * 200, "garbage"),
        ("I'm sorry, but I can't help with identifying people in images.", "refusal"),
    ],
)
def test_a_caption_that_fails_a_check_is_decoded_again(first: Any, flag: str) -> None:
    """With the next changes of sampling, at once. What is still being decoded when one passes is given up."""
    engine = Engine(first, "never", GOOD)
    kept = caption(engine)
    assert engine.asked == [{}, FIRST, SECOND]
    assert (kept.decode.text, list(kept.decode.flags)) == (GOOD, [])
    assert flag in kept.repaired
    assert kept.decodes == 2
    assert engine.ended == 2


def test_the_best_attempt_is_kept_with_its_flags() -> None:
    kept = caption(Engine("!" * 200, (GOOD, "length"), ""))
    assert (kept.decode.text, list(kept.decode.flags)) == (GOOD, ["truncated"])
    assert "garbage" in kept.repaired
    assert "truncated" not in kept.repaired
    assert kept.decodes == 3
    first = caption(Engine((GOOD, "length"), (GOOD + " Two.", "length"), (GOOD + " Three.", "length")))
    assert first.decode.text == GOOD


def test_a_retry_that_fails_costs_nothing() -> None:
    """The row has a caption: it does not become a failed row, or a failed run, by being decoded again."""
    kept = caption(Engine((GOOD, "length"), RowFailure("engine_crash"), RowFailure("engine_rejected")))
    assert (kept.decode.text, list(kept.decode.flags), kept.decodes) == (GOOD, ["truncated"], 1)
    with pytest.raises(SystemFailure):
        caption(Engine((GOOD, "length"), SystemFailure("The engine died."), "never"))


def test_a_caption_that_stays_flagged_is_kept_trimmed_or_failed_as_the_recipe_says() -> None:
    assert caption(Engine((GOOD, "length")), checks={"truncated": "keep"}).decode.flags == ("truncated",)
    assert caption(Engine((GOOD, "length")), checks={"truncated": "off"}).decode.flags == ()
    assert caption(Engine((GOOD, "length")), retries=[]).decode.flags == ("truncated",)
    with pytest.raises(RowFailure) as failed:
        caption(Engine((GOOD, "length")), checks={"truncated": "fail"})
    assert (failed.value.code, failed.value.detail) == ("quality", "truncated")
    with pytest.raises(RowFailure) as failed:
        caption(Engine(LOOP, LOOP, LOOP), at_end="fail")
    assert (failed.value.code, failed.value.detail) == ("quality", "loop")
    with pytest.raises(RowFailure) as failed:
        caption(Engine("", " ", "\n"))
    assert failed.value.code == "caption_empty"


def test_a_caption_is_cut_after_its_last_whole_sentence() -> None:
    kept = caption(Engine((GOOD + " In the fore", "length"), ("", "stop"), ("", "stop")), at_end="trim")
    assert kept.decode.text == GOOD
    assert list(kept.decode.flags) == ["truncated", "trimmed"]


def alt_text_check(caption: Any) -> bool:
    if caption.text == "raise":
        raise KeyError("a row's own text")
    return "dog" in caption.text


def test_a_check_of_ones_own() -> None:
    own = {f"{__name__}:alt_text_check": "keep"}
    assert caption(Engine(GOOD), checks=own).decode.flags == ("alt_text_check",)
    with pytest.raises(RowFailure) as failed:
        caption(Engine("raise"), checks=own)
    assert (failed.value.code, failed.value.detail) == ("check_error", "the check alt_text_check raised KeyError")


@pytest.mark.parametrize(
    ("quality", "said"),
    [
        ({"checks": {"lopp": "retry"}}, "'lopp' is not a check"),
        ({"checks": {"loop": "again"}}, "quality.checks.loop"),
        ({"checks": {"nowhere:check": "keep"}}, "cannot be imported"),
        ({"thresholds": {"loop.none": 1}}, "'loop.none' is not a threshold"),
        ({"retries": [{"temprature": 0.5}]}, "quality.retries[0]: temprature is not a sampling field"),
        ({"retries": [{"temperature": 9.0}]}, "quality.retries[0]: temperature"),
        ({"retries": [{"temperature": 1.0}]}, "quality.retries[0]: {'temperature': 1.0} does not change sampling"),
        ({"retry": []}, "quality.retry: unknown field"),
        ({"retries": [{"n": 2}]}, "quality.retries[0]: n cannot be changed"),
        ({"limits": {"garbge": 0.1}}, "quality.limits.garbge: no check of this name runs"),
        ({"checks": {"language": "fail"}}, "the check language needs the language"),
    ],
)
def test_a_wrong_section_is_refused_in_one_sentence(quality: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        Rules(recipe(**quality).quality, Sampling())
    assert said in str(refused.value)


def test_structured_output_is_checked_by_its_schema() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}
    sampling = Sampling.model_validate({"structured_outputs": {"json": schema}})
    settings = recipe().quality
    engine = Engine('{"title": 5}', "no JSON", '{"title": "Two dogs"}')
    kept = asyncio.run(Redecoder(engine, Rules(settings, sampling), settings).caption(PICTURE, "Describe."))
    assert kept.decode.text == '{"title": "Two dogs"}'
    assert "json" in kept.repaired
    with pytest.raises(RecipeError, match="the schema is not valid"):
        Rules(settings, Sampling.model_validate({"structured_outputs": {"json": {"type": "objekt"}}}))


def test_a_caption_that_is_too_long_to_be_kept_is_not_decoded_again() -> None:
    """No other decoding would help: the model had ended."""
    engine = Engine("".join(f"{number} birds fly over {number * 7} houses. " for number in range(3000)))
    kept = caption(engine, checks={"too_long": "off", "loop": "off"})
    assert len(kept.decode.text) == MOST_CAPTION_CHARACTERS
    assert (kept.decodes, list(kept.decode.flags)) == (1, ["truncated"])


def test_a_default_retry_may_equal_the_sampling() -> None:
    parse({"input": {"paths": ["in"]}, "output": {"path": "out"}, "sampling": RETRIES[0]})


def test_a_stopped_loop_saves_the_tokens_that_it_had_left() -> None:
    kept = caption(Engine(("a a a", "repetition"), ("b b", "repetition"), GOOD))
    assert (kept.decode.text, kept.saved) == (GOOD, 100 - 3 + 100 - 2)
    assert caption(Engine((LOOP, "length"), GOOD, GOOD)).saved == 0
