"""The reward: as CapRL's server asks, stricter, and in the forms that TRL and verl call."""

import asyncio
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.recipe.turns import Turns
from caprl_ray.score import ask
from caprl_ray.score.question import CAN_NOT_ANSWER
from caprl_ray.score.reward import (
    RELEASED,
    STRICT,
    Reward,
    caption_reward,
    caption_reward_async,
    length_share,
)
from caprl_ray.score.trainers import trl_reward, trl_reward_async, verl_reward, verl_reward_async

QUESTIONS = [
    {"question": "Color?", "choices": ["A) red", "B) blue", "C) green"], "answer": "B"},
    {"question": "Animal?", "choices": ["A) dog", "B) cat", "C) cow", "D) hen"], "answer": "A"},
]


@dataclass
class Said:
    text: str
    logprobs: Mapping[str, float] | None = None


class Literal:
    """A reader that takes the first option whose text is in the caption, or the way out; it notes what it is asked."""

    def __init__(self, *, down: bool = False, mute: bool = False) -> None:
        self.asked: list[tuple[Turns, Mapping[str, Any]]] = []
        self._down, self._mute = down, mute

    async def caption(self, picture: None, prompt: Turns, sampling: Mapping[str, Any]) -> Said:
        self.asked.append((prompt, sampling))
        if self._down:
            raise RowFailure("engine_error")
        if self._mute:
            return Said(" I cannot tell")
        caption = prompt.user.rpartition("<Caption Start>")[2].partition("<Caption End>")[0]
        options = [line[2:].split(") ", 1) for line in prompt.user.splitlines()[-6:] if line[:2] == "- "]
        found = [letter for letter, text in options if text in caption]
        return Said(f" {(found or [options[-1][0]])[0]}")


def test_right_captions_earn_all_and_wrong_ones_nothing_and_half_is_half() -> None:
    captions = ["a blue dog", "a red cat", "", "a blue thing"]
    for reward in (RELEASED, STRICT):
        first = caption_reward(captions, [QUESTIONS] * 4, Literal(), reward=reward)
        assert first[:3] == [1, 0, 0] and first[3] is not None and 0 < first[3] < 1
        assert first == caption_reward(captions, [QUESTIONS] * 4, Literal(), reward=reward)  # seeded
    assert caption_reward(captions, [QUESTIONS] * 4, Literal(), reward=STRICT)[3] == 0.5


def test_the_released_reward_asks_as_the_released_server_does() -> None:
    reader = Literal()
    for seed in range(25):
        caption_reward(["a blue dog"], [QUESTIONS], reader, reward=Reward(seed=seed))
    assert len(reader.asked) == 25 * 8  # eight draws of two questions: with replacement
    drawn = Counter("Color?" in turns.user.rpartition("Question:")[2] for turns, _ in reader.asked)
    assert abs(drawn[True] - 100) < 30
    orders = Counter(turns.user.rpartition("Question:")[2] for turns, _ in reader.asked)
    assert len([text for text in orders if "Color?" in text]) == 6  # every order of three options
    said = Literal()
    caption_reward(["a blue dog"], [QUESTIONS], said, reward=Reward(system="Be brief."))
    assert {turns.system for turns, _ in said.asked} == {"Be brief."}
    for turns, sampling in reader.asked:
        assert turns.user.endswith(f") {CAN_NOT_ANSWER}") and turns.begin == "The answer is"
        assert (turns.system, turns.choices) == (None, ())
        assert (sampling["temperature"], sampling["top_p"], sampling["max_tokens"]) == (0.6, 1.0, 10)
    assert len({sampling["seed"] for _, sampling in reader.asked}) > 190


def test_the_stricter_one_asks_every_question_in_every_rotation_for_one_letter() -> None:
    reader = Literal()
    caption_reward(["a blue dog"], [QUESTIONS], reader, reward=STRICT)
    assert Counter(len(turns.choices) for turns, _ in reader.asked) == {4: 3, 5: 4}
    assert {(sampling["temperature"], sampling["max_tokens"]) for _, sampling in reader.asked} == {(0.0, 1)}
    assert len({turns.user for turns, _ in reader.asked}) == 7
    reader = Literal()
    caption_reward(["a blue dog"], [QUESTIONS], reader, reward=Reward(mode="deterministic", rotations=2))
    assert len(reader.asked) == 4


def test_captions_that_cannot_be_scored_have_no_reward() -> None:
    assert caption_reward(["a", "b"], [QUESTIONS, []], Literal(down=True)) == [None, None]
    assert caption_reward(["a"], [QUESTIONS], Literal(mute=True)) == [None]
    with pytest.raises(ValueError, match="question 0: its answer 'F' is none of its options"):
        caption_reward(["a"], [[QUESTIONS[0] | {"answer": "F"}]], Literal())

    class Gone:
        async def caption(self, picture: None, prompt: Turns, sampling: Mapping[str, Any]) -> Said:
            raise SystemFailure("The service is gone.")

    with pytest.raises(SystemFailure):
        caption_reward(["a"], [QUESTIONS], Gone())


def test_a_wrong_setting_is_refused_when_it_is_given() -> None:
    with pytest.raises(ValueError, match="mode"):
        Reward(mode="other")


def test_length_earns_in_full_up_to_2048_tokens_and_nothing_from_3072() -> None:
    assert [length_share(n) for n in (0, 2048, 2560, 3072, 9999)] == [1, 1, 0.5, 0, 0]
    long = Reward(mode="deterministic", length_weight=0.2)
    rewards = caption_reward(["a blue dog"] * 3, [QUESTIONS] * 3, Literal(), reward=long, tokens=[10, 2560, 4000])
    assert rewards == pytest.approx([1.2, 1.1, 1.0])
    with pytest.raises(ValueError, match="give `tokens`"):
        caption_reward(["a"], [QUESTIONS], Literal(), reward=long)


def test_trl_calls_it_sync_and_async_with_its_columns() -> None:
    columns = {
        "prompts": ["p"] * 2,
        "completion_ids": [[1] * 2560, [1]],
        "questions": [QUESTIONS] * 2,
        "log_extra": None,
    }
    parts = [{"type": "text", "text": "a red cat"}]
    conversations = [[{"role": "assistant", "content": content}] for content in ("a blue dog", parts)]
    reward = Reward(mode="deterministic", length_weight=0.2)
    plain, other = trl_reward(Literal(), reward=reward), trl_reward_async(Literal(), reward=reward)
    assert plain.__name__ and inspect.iscoroutinefunction(other) and not inspect.iscoroutinefunction(plain)
    assert plain(completions=["a blue dog", "a red cat"], **columns) == pytest.approx([1.1, 0.2])
    assert plain(completions=conversations, **columns) == pytest.approx([1.1, 0.2])
    assert asyncio.run(other(completions=conversations, **columns)) == pytest.approx([1.1, 0.2])
    thought = [[{"role": "assistant", "content": None}]] * 2
    assert plain(completions=thought, **columns) == pytest.approx([0.1, 0.2])
    assert trl_reward(Literal(down=True))(completions=["a", "b"], **columns) == [None, None]


async def by_verl(
    compute_score: Callable[..., Any], captions: Sequence[str], **router: object
) -> list[dict[str, float]]:
    """Call for the captions of a batch as the naive manager of verl 0.9 does: by keywords, all at once.

    A coroutine function runs on verl's loop, any other one in threads. `router`: what is passed if verl serves a model.
    """
    ground_truth, info = np.array(QUESTIONS, object), {"num_turns": 2}
    given = {"data_source": "image_caption_rl", "ground_truth": ground_truth, "extra_info": info, **router}

    async def one(caption: str) -> dict[str, float]:
        called = partial(compute_score, **given, solution_str=caption)
        if inspect.iscoroutinefunction(called):
            return dict(await called())
        return dict(await asyncio.get_running_loop().run_in_executor(None, called))

    return await asyncio.gather(*map(one, captions))


@pytest.mark.parametrize("made", [verl_reward, verl_reward_async])
def test_verl_calls_compute_score_by_its_names(made: Callable[..., Any]) -> None:
    compute_score = made(Literal(), reward=STRICT)
    assert list(inspect.signature(compute_score).parameters)[:4] == [
        "data_source",
        "solution_str",
        "ground_truth",
        "extra_info",
    ]
    right, wrong = {"score": 1.0, "scored": 1.0}, {"score": 0.0, "scored": 1.0}
    for router in ({}, {"reward_router_address": "10.0.0.1:80", "reward_model_tokenizer": None}):
        said = asyncio.run(by_verl(compute_score, ["a blue dog", "a red cat"] * 8, **router))
        assert said == [right, wrong] * 8
    with pytest.raises(RuntimeError, match="could not be scored"):
        asyncio.run(by_verl(made(Literal(down=True)), ["a"]))
    neutral = made(Literal(down=True), unscored=0.5)
    assert asyncio.run(by_verl(neutral, ["a"])) == [{"score": 0.5, "scored": 0.0}]
    long = Reward(mode="deterministic", length_weight=0.2)
    counted = made(Literal(), reward=long, count=lambda caption: 2560 if caption == "a blue dog" else 1)
    assert [one["score"] for one in asyncio.run(by_verl(counted, ["a blue dog", "a red cat"]))] == pytest.approx(
        [1.1, 0.2]
    )


def test_a_score_is_the_mean_of_questions_and_of_draws_in_the_released_reward() -> None:
    judged = (("1", 1), ("1", 1), ("1", 0), ("2", 0), ("3", None))
    rows = [{"benchmark": "b", "question_id": name, "condition": "caption", "correct": c} for name, c in judged]
    assert ask.score(rows) == pytest.approx(1 / 3) and ask.score(rows, draws=True) == 0.5
    assert ask.score([]) is ask.score(rows[-1:]) is None
    assert asyncio.run(caption_reward_async(["a blue dog"], [QUESTIONS], Literal())) == [1]
