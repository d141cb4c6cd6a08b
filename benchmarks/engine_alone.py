"""Measure the pipeline's engine alone on pre-rendered requests: the ceiling of its rate, and its own start time.

captioning.py describes what is written. The engine is started as vLLM does it, with a spawned core that sends each
token by itself. (The pipeline forks the core from a process that imports in parallel with the replica, and its core
sends tokens in chunks.)
"""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from captioning import FINISHED, FIRST_CALL, READY, note, write_captions

from caprl_ray.cluster import resources
from caprl_ray.engines import concurrency, core_process
from caprl_ray.engines.protocol import Completion, Picture
from caprl_ray.models.resolve import resolve
from caprl_ray.prepare.decode import Limits, prepare
from caprl_ray.prepare.sizes import SizeRule
from caprl_ray.recipe.sections import Recipe


def _spawned(*, chunked: bool) -> nullcontext[Path]:
    return nullcontext(Path(os.devnull, "none"))


class _Rendered:
    """Replaces the engine's renderer. Gives out pre-rendered requests, each of them once."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer
        self._requests: dict[int, Any] = {}

    async def add(self, picture: Picture, prompt: str) -> None:
        self._requests[id(picture)] = await self._renderer.render(picture, prompt)

    async def render(self, picture: Picture, prompt: str, text: int = 0) -> Any:
        return self._requests.pop(id(picture))


def caption(recipe: Recipe, images: Path, out: Path, *, beside: bool = False) -> None:
    """Caption the files of a folder: a first call with a few, which is not counted, then all others at once.

    With `beside`, the files are decoded while the engine starts, which saves time on a machine with many cores.
    """
    asyncio.run(_caption(recipe, sorted(images.iterdir()), out, beside))


async def _caption(recipe: Recipe, files: Sequence[Path], out: Path, beside: bool) -> None:
    from caprl_ray.engines.vllm_engine import VllmEngine

    core_process.import_ahead, core_process.forked = lambda: None, _spawned
    model = resolve(recipe)
    decode = partial(_pictures, rule=model.size_rule, recipe=recipe)
    ahead = ThreadPoolExecutor(1).submit(decode, files) if beside else None
    llm: Any = await VllmEngine.start(recipe, model)
    rendered = llm._renderer = _Rendered(llm._renderer)
    prompt = llm._chat(llm._system, True).prompt(recipe.prompt.user)
    batch = resources.batch_rows(model.size_rule.max_pixels)
    in_flight = batch * concurrency.batches_in_flight(recipe, batch)  # as many rows as a replica gives its engine
    slots = asyncio.Semaphore(in_flight)

    async def one(picture: Picture) -> Completion:
        async with slots:
            completion: Completion = await llm.caption(picture, recipe.prompt.user)
        note(out / FINISHED, 1)
        return completion

    async def ready(pictures: list[Picture]) -> list[Picture]:
        await asyncio.gather(*(rendered.add(picture, prompt) for picture in pictures))
        return pictures

    first = ahead.result()[:FIRST_CALL] if ahead else decode(files[:FIRST_CALL])
    completions = await asyncio.gather(*map(one, await ready(first)))
    rest = await ready(ahead.result()[FIRST_CALL:] if ahead else decode(files[FIRST_CALL:]))
    note(out / READY, 0)
    completions += await asyncio.gather(*map(one, rest))
    llm.stop()
    captions = zip(files, completions, strict=True)
    write_captions(out, {file.name: (c.text, c.caption_tokens or 0) for file, c in captions})


def _pictures(files: Sequence[Path], rule: SizeRule, recipe: Recipe) -> list[Picture]:
    """Prepare the files as the pipeline's workers do, on all cores."""
    limits = Limits(max_bytes=recipe.prepare.max_bytes, max_source_pixels=recipe.prepare.max_source_pixels)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(partial(_picture, rule=rule, limits=limits), files))


def _picture(file: Path, rule: SizeRule, limits: Limits) -> Picture:
    prepared = prepare(file.read_bytes(), rule, limits)
    return Picture(pixels=memoryview(prepared.pixels), width=prepared.pixel_width, height=prepared.pixel_height)
