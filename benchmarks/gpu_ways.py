"""The ways that gpu.py measures, each run alone in a process of its own; captioning.py says what they write.

Every way gets the same files and the same recipe: that of the model beside them, for one GPU, or, where there is none,
the demonstration's for this machine's CPU.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import captioning
from captioning import FINISHED, FIRST_CALL, READY, note, write_captions

from caprl_ray import engines
from caprl_ray.engines import Completion, Picture
from caprl_ray.model import resolve
from caprl_ray.prepare import Limits, prepare
from caprl_ray.recipe import Recipe, parse
from caprl_ray.sizes import SizeRule

MODEL = "model"
CAPTION_TOKENS = 500


def recipe_for(images: Path, out: Path) -> dict[str, Any]:
    """The recipe of every way, as the pipeline is given it."""
    model = images.with_name(MODEL)
    if not model.exists():
        from caprl_ray.demo import demo_recipe  # imports Ray, which the other ways do without

        return demo_recipe([images], out)
    return {
        "input": {"paths": [str(images)]},
        "model": {"source": str(model), "engine": {"load_format": "dummy", "max_model_len": 8192}},
        "replicas": {"gpus": 1, "max": 1},
        "sampling": {"max_tokens": CAPTION_TOKENS, "ignore_eos": True},
        "output": {"path": str(out)},
    }


def engine(images: Path, out: Path, held: bool) -> None:
    """The pipeline's engine alone, fed with requests that were rendered beforehand."""
    asyncio.run(_engine(parse(recipe_for(images, out)), sorted(images.iterdir()), out))


def chat(images: Path, out: Path, held: bool) -> None:
    """`vllm.LLM.chat` over the files."""
    captioning.chat_over_files(parse(recipe_for(images, out)), images, out)


def caprl_ray(images: Path, out: Path, held: bool) -> None:
    """This pipeline on the files, as `caprl-ray caption` runs it."""
    captioning.run_pipeline(recipe_for(images, out), out, held)


WAYS: dict[str, Callable[[Path, Path, bool], None]] = {"engine": engine, "chat": chat, "caprl_ray": caprl_ray}


class _Rendered:
    """In the place of the engine's renderer: requests rendered beforehand, each given out once."""

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer
        self._requests: dict[int, Any] = {}

    async def add(self, picture: Picture, prompt: str) -> None:
        self._requests[id(picture)] = await self._renderer.render(picture, prompt)

    async def render(self, picture: Picture, prompt: str) -> Any:
        return self._requests.pop(id(picture))


async def _engine(recipe: Recipe, files: Sequence[Path], out: Path) -> None:
    from caprl_ray.engines.vllm_engine import VllmEngine

    model = resolve(recipe)
    llm: Any = await VllmEngine.start(recipe, model)
    rendered = llm._renderer = _Rendered(llm._renderer)
    prompt = llm._chat.prompt(recipe.prompt.user)
    room = asyncio.Semaphore(engines.rows_in_flight(recipe))  # as many as a replica gives to its engine

    async def one(picture: Picture) -> Completion:
        async with room:
            completion: Completion = await llm.caption(picture, recipe.prompt.user)
        note(out / FINISHED, 1)
        return completion

    async def ready(part: Sequence[Path]) -> list[Picture]:
        pictures = _pictures(part, model.size_rule, recipe)
        await asyncio.gather(*(rendered.add(picture, prompt) for picture in pictures))
        return pictures

    completions = await asyncio.gather(*map(one, await ready(files[:FIRST_CALL])))
    pictures = await ready(files[FIRST_CALL:])
    note(out / READY, 0)
    completions += await asyncio.gather(*map(one, pictures))
    llm.stop()
    captions = zip(files, completions, strict=True)
    write_captions(out, {file.name: (c.text, c.caption_tokens or 0) for file, c in captions})


def _pictures(files: Sequence[Path], rule: SizeRule, recipe: Recipe) -> list[Picture]:
    """The pixels that the pipeline's workers make of the files, by all cores."""
    limits = Limits(max_bytes=recipe.prepare.max_bytes, max_source_pixels=recipe.prepare.max_source_pixels)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(partial(_picture, rule=rule, limits=limits), files))


def _picture(file: Path, rule: SizeRule, limits: Limits) -> Picture:
    prepared = prepare(file.read_bytes(), rule, limits)
    return Picture(pixels=memoryview(prepared.pixels), width=prepared.pixel_width, height=prepared.pixel_height)


if __name__ == "__main__":
    WAYS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:] == ["held"])
