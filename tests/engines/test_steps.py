"""A healthy engine's steps advance under every vLLM. Otherwise it would be killed as stalled."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from caprl_ray.cluster import optional
from caprl_ray.engines import internals
from caprl_ray.engines.protocol import Completion, Picture
from caprl_ray.engines.vllm_engine import VllmEngine
from caprl_ray.models.chat import ChatFormat

WORDS = ["a ", "red ", "circle"]
TOKENIZER = SimpleNamespace(get_added_vocab=dict, encode=lambda *_, **__: [])
PICTURE = Picture(pixels=memoryview(bytes(3 * 28 * 28)), width=28, height=28)


class Core:
    async def get_output_async(self) -> None:
        await asyncio.sleep(0)


class Llm:
    """The part of AsyncLLM that a VllmEngine needs: each answer of the core gives each caption a word."""

    def __init__(self, core: Any, *, looked_up: bool) -> None:
        self.engine_core = core
        self.asked: list[str] = []
        self._bound = None if looked_up else getattr(core, "get_output_async", Core().get_output_async)

    async def generate(self, _: Any, kind: str, name: str) -> AsyncIterator[Any]:
        self.asked.append(kind)
        for number, word in enumerate(WORDS):
            await (self._bound or self.engine_core.get_output_async)()
            last = number == len(WORDS) - 1
            if kind == "DELTA":
                yield output(word, [number], last)
            elif last:
                yield output("".join(WORDS), list(range(len(WORDS))), last)


def output(text: str, tokens: list[int], last: bool) -> Any:
    choice = SimpleNamespace(text=text, token_ids=tokens, finish_reason="stop" if last else None)
    return SimpleNamespace(finished=last, prompt_token_ids=[1, 2], outputs=[choice])


def captions(llm: Llm, count: int) -> tuple[list[Completion], int]:
    async def run() -> tuple[list[Completion], int]:
        processor: Any = SimpleNamespace(image_processor=None, tokenizer=TOKENIZER)
        none: Any = None
        chat = ChatFormat(prefix="", suffix="")
        engine = VllmEngine(
            llm, none, lambda system, image: chat, processor, sampling=lambda kind, _: kind, arguments={}
        )
        made = await asyncio.gather(*(engine.caption(PICTURE, "") for _ in range(count)))
        return made, engine.steps

    return asyncio.run(run())


WHOLE = Completion(text="a red circle", finish_reason="stop", prompt_tokens=2, caption_tokens=3)


def test_where_the_cores_answers_are_counted_captions_come_whole() -> None:
    llm = Llm(Core(), looked_up=True)
    made, steps = captions(llm, 5)
    assert made == [WHOLE] * 5 and steps >= 5 * len(WORDS)
    assert llm.asked == ["DELTA"] + 4 * ["FINAL_ONLY"]


def test_where_vllm_receives_in_another_way_each_piece_of_a_caption_is_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "_missing", {})
    llm = Llm(Core(), looked_up=False)
    made, steps = captions(llm, 5)
    assert made == [WHOLE] * 5 and steps == 5 * len(WORDS)
    assert set(llm.asked) == {"DELTA"} and internals.COUNTED in optional._missing


def test_where_vllm_has_no_such_place_it_is_the_same() -> None:
    made, steps = captions(Llm(SimpleNamespace(), looked_up=False), 2)
    assert made == [WHOLE] * 2 and steps == 2 * len(WORDS)


def test_on_a_cpu_a_long_step_is_progress_while_the_core_computes_and_on_a_gpu_it_is_not() -> None:
    class Computing:
        seconds = 0.0

        def cpu_seconds(self) -> float:
            return self.seconds

    async def run(on_cpu: bool) -> list[int]:
        processor: Any = SimpleNamespace(image_processor=None, tokenizer=TOKENIZER)
        reaper: Any = Computing()
        chat = ChatFormat(prefix="", suffix="")
        engine = VllmEngine(
            Llm(Core(), looked_up=True),
            reaper,
            lambda system, image: chat,
            processor,
            sampling=lambda kind, _: kind,
            arguments={},
            on_cpu=on_cpu,
        )
        seen = []
        for reaper.seconds in (0.0, 1.0, 60.0, 60.0, 120.0):
            seen.append(engine.steps)
        return seen

    hung, long = asyncio.run(run(on_cpu=False)), asyncio.run(run(on_cpu=True))
    assert hung == [0] * 5
    assert long[0] == long[1] < long[2] == long[3] < long[4]
