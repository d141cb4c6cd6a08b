"""Prompts without a picture: how an endpoint is asked, what a tokenizer must have, and letters."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from caprl_ray.engines import choices, launch
from caprl_ray.engines.protocol import Completion
from caprl_ray.engines.shared_text import SharedText
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.models.chat import ChatFormat
from caprl_ray.models.resolve import EMBEDDED_FOLDER, resolve
from caprl_ray.recipe.load import parse_as
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.recipe.turns import Turns
from caprl_ray.score.ask import NEUTRAL, SAMPLING, Asking
from caprl_ray.score.question import Question
from tests.engines.test_endpoint import KEY_ENV, chat, key, models, serving

LETTERS = ("A", "B", "C")
TURNS = Turns(user="Which?", system="Be brief.", begin="The answer is", choices=LETTERS)
ONE_LETTER = {**NEUTRAL, **SAMPLING["deterministic"]}
__all__ = ["key"]  # a fixture


def recipe(**model: Any) -> ScoreRecipe:
    score = {"questions": ["-"], "system": "Be brief."}
    document = {"input": {"paths": ["-"]}, "output": {"path": "-"}, "score": score, "replicas": {"gpus": 0}}
    return parse_as(ScoreRecipe, document | {"model": {"source": "embedded", **model}})


async def answered(asked: ScoreRecipe, turns: Turns, sampling: dict[str, Any]) -> Completion:
    engine = await launch.start(asked, resolve(asked))
    return await engine.caption(None, turns, sampling)


def test_a_vllm_service_goes_on_from_the_beginning_with_one_of_the_letters() -> None:
    likely = [{"token": f" {letter}", "logprob": -n} for n, letter in enumerate(LETTERS)]
    logprobs = {"content": [{"token": " A", "logprob": 0.0, "top_logprobs": likely}]}
    choice = {"index": 0, "message": {"role": "assistant", "content": " A"}, "finish_reason": "stop"}
    reply = chat(choices=[{**choice, "logprobs": logprobs}])
    with serving(lambda body: reply, models("embedded", owner="vllm")) as service:
        asked = recipe(endpoint=service.url, api_key_env=KEY_ENV)
        said = asyncio.run(answered(asked, TURNS, ONE_LETTER))
    assert (said.text, said.logprobs) == (" A", {"A": 0.0, "B": -1.0, "C": -2.0})
    (body,) = service.bodies
    assert [(m["role"], m["content"]) for m in body["messages"]] == [
        ("system", "Be brief."),
        ("user", "Which?"),
        ("assistant", "The answer is"),
    ]
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
    assert body["structured_outputs"] == {"choice": [" A", " B", " C"]} and body["temperature"] == 0
    assert body["logprobs"] is True and body["top_logprobs"] == 20


def test_a_service_that_is_not_vllm_is_refused_before_the_run() -> None:
    with serving(lambda body: chat(), models("embedded")) as service:
        asked = recipe(endpoint=service.url, api_key_env=KEY_ENV)
        with pytest.raises(RecipeError, match="is not vLLM, and no other is known to go on"):
            launch.check_goes_on(asked, resolve(asked))
    assert not service.bodies


@pytest.mark.parametrize("said", ["Sure! The answer is B.", " B"])
def test_a_vllm_service_that_ignores_how_it_is_asked_is_refused_before_the_run(said: str) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    with serving(lambda body: chat(choices=[choice]), models("embedded", owner="vllm")) as service:
        asked = recipe(endpoint=service.url, api_key_env=KEY_ENV)
        if said == " B":
            asyncio.run(on_a_loop(partial(launch.check_goes_on, asked, resolve(asked))))
        else:
            with pytest.raises(RecipeError, match=r"letter A or B, and answered 'Sure! The answer is B\.': it, or"):
                launch.check_goes_on(asked, resolve(asked))
    (body,) = service.bodies
    assert body["continue_final_message"] is True and body["structured_outputs"]["choice"] == [" A", " B"]


async def on_a_loop(call: Callable[[], None]) -> None:
    """Call where an event loop runs, as a notebook does."""
    call()


class Tokenizer:
    """Each known text is a token; every other one is two."""

    def __init__(self, *known: str) -> None:
        self._known = known

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [self._known.index(text)] if text in self._known else [0, 0]


def test_a_letter_is_one_token_with_its_space_or_behind_it() -> None:
    turns, tokens = choices.as_tokens(TURNS, Tokenizer(" A", " B", " C", "A", "B", "C"))
    assert (turns.begin, tokens) == ("The answer is", {"A": 0, "B": 1, "C": 2})
    turns, tokens = choices.as_tokens(TURNS, Tokenizer("A", "B", "C"))
    assert (turns.begin, tokens) == ("The answer is ", {"A": 0, "B": 1, "C": 2})
    with pytest.raises(SystemFailure, match="needs a token for each letter"):
        choices.as_tokens(TURNS, Tokenizer("A", "B"))
    first = {0: SimpleNamespace(logprob=-1.0), 1: SimpleNamespace(logprob=-2.0)}
    pieces = [SimpleNamespace(logprobs=[first])]
    assert choices.logprobs(pieces, {"A": 0, "B": 1}) == {"A": -1.0, "B": -2.0}
    assert choices.logprobs(pieces, {"A": 0, "B": 7}) is None


def test_the_shared_part_of_prompts_is_tokenized_once_and_tokens_are_those_of_the_whole() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    encoded: Counter[str] = Counter()

    def encode(text: str, special: bool) -> list[int]:
        encoded[text] += 1
        return list(tokenizer.encode(text, add_special_tokens=special))

    texts = ("What?", " Why?", "\n\nWho", "1 or 2?", "\u3000\u00c4h?", "{caption}")
    common = {"image": "", "metric": "choice", "benchmark": "", "choices": ("a", "b", "c"), "right": 0}
    questions = [Question(id=text, text=text, **common) for text in texts]
    asking, shared, found = Asking(recipe().score), SharedText(encode), 0
    for caption in ("On a red background.", "", "\n", "A {question} <Caption", "\u00c4\u4f60 "):
        turns = [one.turns for one in asking.asks(questions, caption) if one.condition == "caption"]
        (start,) = {one.user[: one.shared] for one in turns}
        for rest in (one.user[one.shared :] for one in turns):
            whole = tokenizer.encode(start + rest)
            said = shared.tokens(start, rest)
            assert rest.startswith("Question: ") and said in (None, whole)
            shared.learn(start, rest, whole)
            found += said is not None
        assert encoded[start] == 1
    assert found == 5 * 18 - 1, "the first prompt is the check"
    other = SharedText(lambda text, special: [len(text)])  # its tokens are not those of the parts
    other.learn("a\n", "b", [3])
    assert other.tokens("a\n", "b") is None


def test_a_chat_format_without_an_image_adds_no_system_turn() -> None:
    def apply(messages: Any) -> str:
        """As Qwen's template, for models that know only texts."""
        default = [] if messages[0]["role"] == "system" else [{"role": "system", "content": "You are a help."}]
        turns = (f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in [*default, *messages])
        return "".join(turns) + "<|im_start|>assistant\n"

    bare = ChatFormat.render(apply, None, image=False).prompt("Why?")
    assert bare == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert "system\nBe brief.<" in ChatFormat.render(apply, "Be brief.", image=False).prompt("Why?")


def test_a_model_that_cannot_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["CLIPVisionModel"], "vision_config": {}}))
    with pytest.raises(RecipeError, match="is not a language model \\(CLIPVisionModel\\)"):
        resolve(recipe(source=str(tmp_path)))
