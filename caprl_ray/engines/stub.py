"""An engine for tests. Its caption is computed from the pixels and the prompt, so every mix-up shows.

Words in a row's prompt make it deadly. Only this engine obeys them, and only where an environment variable allows
model.source `stub`.
"""

import asyncio
import hashlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from caprl_ray.engines.concurrency import max_num_seqs
from caprl_ray.engines.protocol import AS_THE_RECIPE, Completion, EngineDied, Picture
from caprl_ray.engines.reaper import Reaper
from caprl_ray.recipe.sections import Recipe
from caprl_ray.recipe.turns import Turns

# Words in a row's prompt: kill the core, stop it for ever, end the replica's process.
DIE, HANG, EXIT = "caprl-ray-die", "caprl-ray-hang", "caprl-ray-exit"

# Words that make a replica sick, once: the first process that can create the path behind the colon writes nothing but
# !!!! from this row on, or swaps the captions of each two rows.
SICK, SWAP = "caprl-ray-sick:", "caprl-ray-swap:"
QUESTIONS = "multiple-choice questions"  # a prompt with these words gets `stub_questions`

ALONE_S = 0.2  # how long a row waits for the next one, with which it swaps captions

# Environment variable: seconds of the shortest and of the longest caption, for instance "2-8".
SECONDS = "CAPRL_RAY_STUB_CAPTION_S"

# The core answers line by line, each after a pause (an environment variable), so that several rows are in flight.
CORE = f"""
import os, sys, time
pause = float(os.environ.get("CAPRL_RAY_STUB_PAUSE_S", "0.005"))
for line in sys.stdin:
    if "{DIE}" in line:
        os.kill(os.getpid(), 9)
    if "{HANG}" in line:
        time.sleep(3600)
    time.sleep(pause)
    print(line.split()[0], flush=True)
"""


class StubEngine:
    """Answers at once, unlike a model. An environment variable must allow model.source `stub`."""

    control_tokens: Sequence[str] = ("<|im_start|>", "<|im_end|>")
    arguments: Mapping[str, Any] = {}
    steps = 0

    def __init__(self) -> None:
        self._sick = self._swaps = False
        self._partner: tuple[str, asyncio.Future[str]] | None = None

    async def caption(
        self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any] = AS_THE_RECIPE
    ) -> Completion:
        """Caption by `stub_caption`, after one turn of the event loop."""
        await asyncio.sleep(0)
        if picture is None or isinstance(prompt, Turns):
            return stub_answer(prompt, picture)
        if EXIT in prompt:
            os._exit(1)
        self._sick |= _first(prompt, SICK)
        self._swaps |= _first(prompt, SWAP)
        if QUESTIONS in prompt:
            return _whole(json.dumps(stub_questions(picture)), prompt)
        text = stub_caption(bytes(picture.pixels), picture.width, picture.height, prompt)
        text = "!" * 200 if self._sick else await self._swapped(text) if self._swaps else text
        return _whole(text, prompt)

    async def _swapped(self, text: str) -> str:
        """The text of the row that comes next, which gets this one. A row that is alone keeps its own."""
        if self._partner and not self._partner[1].done():
            (other, answer), self._partner = self._partner, None
            answer.set_result(text)
            return other
        answer = asyncio.get_running_loop().create_future()
        self._partner = text, answer
        with suppress(TimeoutError):
            return await asyncio.wait_for(answer, ALONE_S)
        return text

    def stop(self) -> None:
        """Do nothing: it has no process."""


class StubWithPlaces(StubEngine):
    """The same with as many places as an engine, and captions that take time."""

    def __init__(self, places: int, seconds: tuple[float, float]) -> None:
        super().__init__()
        self._places, self._seconds = asyncio.Semaphore(places), seconds

    async def caption(
        self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any] = AS_THE_RECIPE
    ) -> Completion:
        """Caption after the picture's own time, in one of the places."""
        async with self._places:
            content = bytes(picture.pixels) if picture else repr(prompt).encode()
            await asyncio.sleep(stub_seconds(content, *self._seconds))
            self.steps += 1
            return await super().caption(picture, prompt, sampling)


class StubWithCore(StubEngine):
    """The same with a process through which every row goes, like an engine's core."""

    def __init__(self, core: Process, reaper: Reaper) -> None:
        super().__init__()
        self._core, self._reaper = core, reaper
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls) -> "StubWithCore":
        """Start the core, marked by a reaper like any engine's."""
        reaper = Reaper()
        with reaper.marking():
            core = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", CORE, stdin=PIPE, stdout=PIPE)
        return cls(core, reaper)

    async def caption(
        self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any] = AS_THE_RECIPE
    ) -> Completion:
        """Caption when the core has answered. Raises EngineDied if it is gone."""
        assert self._core.stdin
        if self._reader.done() or self._core.stdin.is_closing():
            raise EngineDied("the stub's core is gone")
        answer = asyncio.get_running_loop().create_future()
        number = str(id(answer))
        self._waiting[number] = answer
        self._core.stdin.write(f"{number} {' '.join(str(prompt).split())}\n".encode())
        await answer
        return await super().caption(picture, prompt, sampling)

    def stop(self) -> None:
        self._reaper.kill()

    async def _read(self) -> None:
        assert self._core.stdout
        async for line in self._core.stdout:
            self.steps += 1
            answer = self._waiting.pop(line.decode().strip())
            if not answer.done():
                answer.set_result(None)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(EngineDied("the stub's core is gone"))


def _first(prompt: str, word: str) -> bool:
    """Whether the prompt has the word, and this process is the first to read it."""
    _, found, rest = prompt.partition(word)
    if found:
        with suppress(FileExistsError):
            os.close(os.open(rest.split()[0], os.O_CREAT | os.O_EXCL))
            return True
    return False


async def start_stub(recipe: Recipe) -> StubEngine:
    """The stub: with a core if the recipe asks for an engine of several processes, or as slow as SECONDS says."""
    stub = StubEngine()
    if os.environ.get(SECONDS):
        shortest, longest = map(float, os.environ[SECONDS].split("-"))
        stub = StubWithPlaces(max_num_seqs(recipe), (shortest, longest))
    elif recipe.model.engine.get("distributed_executor_backend") == "mp":
        stub = await StubWithCore.start()
    stub.arguments = recipe.model.engine
    return stub


def stub_seconds(pixels: bytes, shortest: float, longest: float) -> float:
    """The seconds of a caption: most are short, as a model's are, and one in twenty takes over 80 % of the longest."""
    even = int.from_bytes(hashlib.sha256(pixels).digest()[:4], "big") / 2**32
    return shortest + (longest - shortest) * even**4


def stub_caption(pixels: bytes, width: int, height: int, prompt: str) -> str:
    """The stub's caption: size, mean of each channel, a hash of the exact pixels, and the prompt's words backwards,
    which no check takes for an echo."""
    red, green, blue = _means(pixels)
    digest = hashlib.sha256(pixels).hexdigest()[:16]
    return f"{width}x{height} rgb({red},{green},{blue}) {digest} | {' '.join(reversed(prompt.split()))}"


def stub_questions(picture: Picture) -> list[dict[str, Any]]:
    """The stub's questions about a picture: one that the picture answers, one that can be guessed, one whose answer is
    wrong, one that is unusable, and one more that the picture answers."""
    size, red = f"{picture.width}x{picture.height}", f"rgb({_means(bytes(picture.pixels))[0]},"
    sizes, reds = [f"{n}{size}" for n in range(3)], [f"rgb(-{n}," for n in range(3)]
    return [
        {"question": "How many pixels has it?", "options": [*sizes, size], "answer": size},
        {"question": "How does a color begin?", "options": ["rgc", "rgb(", "rgd"], "answer": "rgb("},
        {"question": "Which size is wrong?", "options": [*sizes, size], "answer": sizes[0]},
        {"question": "Which option is missing?", "options": sizes, "answer": size},
        {"question": "How much red has it?", "options": [*reds, red], "answer": red},
    ]


def _whole(text: str, prompt: str) -> Completion:
    words = len(text.split())
    return Completion(text=text, finish_reason="stop", prompt_tokens=len(prompt.split()), caption_tokens=words)


def _means(pixels: bytes) -> list[int]:
    """The mean of each channel."""
    values = np.frombuffer(pixels, np.uint8)
    return [round(int(values[channel::3].sum(dtype=np.int64)) / max(1, len(values) // 3)) for channel in range(3)]


def stub_answer(prompt: str | Turns, picture: Picture | None = None) -> Completion:
    """The stub's answer from a caption or from a picture alone: the letter of the first option whose words the caption
    has in this order, or of the last option; the caption's last word to a question without options.

    A picture's caption is the stub's own. Without either it chooses the option that comes first in the alphabet.
    """
    assert isinstance(prompt, Turns)
    if EXIT in prompt.user:
        os._exit(1)
    boxed = "detailed caption of an image: " in prompt.user
    start, end = (
        ("detailed caption of an image: ", ". Please answer") if boxed else ("<Caption Start>", "<Caption End>")
    )
    caption = prompt.user.rpartition(start)[2].partition(end)[0] if start in prompt.user else ""
    if picture:
        caption = stub_caption(bytes(picture.pixels), picture.width, picture.height, "")
    blind = start not in prompt.user and not picture
    lines = prompt.user.rpartition("Question:")[2].splitlines()
    options = [line[2:].split(") ", 1) for line in lines if line.startswith("- ") and ") " in line]
    there = [letter for letter, text in options if text.casefold() in caption.casefold()]
    if blind and options:
        there = [min(options, key=lambda option: option[1])[0]]
    answer = (there or [options[-1][0] if options else (caption.split() or ["nothing"])[-1]])[0]
    return Completion(
        text=f"<answer>\\boxed{{{answer}}}</answer>" if boxed else f" {answer}",
        finish_reason="length" if prompt.choices else "stop",
        prompt_tokens=len(prompt.user.split()),
        caption_tokens=1,
        logprobs={letter: -0.1 if letter == answer else -3.0 for letter in prompt.choices} or None,
    )
