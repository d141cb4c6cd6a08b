"""Measure the CPU time of the engine's frontend per image: work of one process, however fast its GPU is.

    python benchmarks/frontend.py [--images 40] [--tokens 129] [--repeat 3] [--json FILE]

The frontend is the replica's own process. It turns images into engine inputs, sends them to the engine core (another
process), and turns the core's tokens into text. All of it is Python in one process, so its CPU time limits a replica.
The embedded model captions noise at three sizes; CapRL-3B sees most photographs at the largest. Each part is measured
separately, as CPU time of all threads of this process:

    render    make an engine input from an image's pixels, in one of the ways below
    send      a request of one token, without the cost of the token
    token     each further token of a request with --tokens tokens, as the engine core sends them

    vllm      vLLM renders each image with the tokenizer and the model's Hugging Face processor; the core sends each
              token by itself
    cut       patches are cut here, the rest is copied from the first image of the same size; tokens as above
    caprl_ray as the package does: patches are cut here, and the core sends tokens in chunks (engines/chunks.py)
    workers   as if CPU workers had cut the patches, each once (frames are repeated here; else twice the data travels);
              tokens in chunks

`together` is render + send + 500 tokens. `a core` is the images/s that one core can handle. The engines with and
without chunks run one after the other, `--repeat` times in turns; the figures are medians.

Keys of the JSON: `<size>_<way>_<part>` with the parts `render_ms`, `send_ms`, `token_us` and `together_ms`; sizes are
`small`, `photo` and `megapixel`.
"""

import argparse
import asyncio
import itertools
import json
import os
import time
from collections.abc import Awaitable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from alone import medians

from caprl_ray.commands.demo import demo_recipe
from caprl_ray.engines import internals
from caprl_ray.engines.protocol import Picture
from caprl_ray.engines.vllm_engine import VllmEngine
from caprl_ray.models.resolve import resolve
from caprl_ray.recipe.load import parse

SIZES = {"small": (112, 84), "photo": (644, 476), "megapixel": (1148, 868)}
RENDERED = {"vllm": "vllm", "cut": "caprl_ray", "caprl_ray": "caprl_ray", "workers": "workers"}
CHUNKED = {"vllm": False, "cut": False, "caprl_ray": True, "workers": True}
CAPTION_TOKENS = 500
PROMPT = "Please describe this image in detail."

Figures = dict[str, float]


class Frontend:
    """An engine whose frontend is this process, and the ways to feed it."""

    def __init__(self, engine: VllmEngine) -> None:
        self._llm, self._renderer = engine._llm, engine._renderer
        self._prompt = engine._chat(engine._system, True).prompt(PROMPT)
        self._numbers = itertools.count()

    async def render(self, way: str, pictures: list[Picture]) -> tuple[float, list[Any]]:
        """Render pictures of one size. Returns the CPU seconds per picture, and the engine inputs."""
        first = await self._renderer.render(pictures[0], self._prompt)  # now the template of this size exists
        assert first["type"] == "multimodal"
        if way == "vllm":
            return await spent(self._renderer._by_vllm(picture, self._prompt) for picture in pictures)
        if way == "caprl_ray":
            return await spent(self._renderer.render(picture, self._prompt) for picture in pictures)
        return await spent(itertools.starmap(self._fill, [(p, self._cut(p)) for p in pictures]))

    def _cut(self, picture: Picture) -> np.ndarray:
        """The patches as a worker would send them: each patch once."""
        patches = self._renderer._patches
        assert patches
        cut = patches.of_picture(picture).numpy()
        return np.ascontiguousarray(cut.reshape(len(cut), 3, patches.frames, -1)[:, :, :1])

    async def _fill(self, picture: Picture, once: np.ndarray) -> Any:
        patches = self._renderer._patches
        assert patches
        repeated = np.repeat(once, patches.frames, axis=2).reshape(len(once), -1)
        template = self._renderer._templates[(picture.width, picture.height, self._prompt)]
        image = template.image(torch.from_numpy(repeated))
        name = f"worker-{next(self._numbers)}"
        return internals.engine_input(template.token_ids, template.placeholders, image, name)

    async def generate(self, inputs: list[Any], tokens: int) -> float:
        """CPU seconds per caption of exactly `tokens` tokens."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.FINAL_ONLY
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, output_kind=kind)

        async def one(request: Any) -> None:
            async for _ in self._llm.generate(request, sampling, f"request-{next(self._numbers)}"):
                pass

        return (await spent(map(one, inputs)))[0]


async def spent(work: Iterable[Awaitable[Any]]) -> tuple[float, list[Any]]:
    """Run all concurrently. Returns this process's CPU seconds per item, and the results."""
    began = time.process_time()
    results = await asyncio.gather(*work)
    return (time.process_time() - began) / len(results), results


def noise(width: int, height: int, count: int) -> list[Picture]:
    """Pictures of random noise, each one different."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, 3 * width * height), dtype=np.uint8)
    return [Picture(pixels=memoryview(row.tobytes()), width=width, height=height) for row in pixels]


async def measure(frontend: Frontend, size: str, images: int, tokens: int, ways: list[str]) -> Figures:
    """Measure all figures of one size in these ways, which have the same engine."""
    pictures, figures = noise(*SIZES[size], images), Figures()

    async def fresh() -> list[Any]:  # the engine consumes an image's tensors
        return (await frontend.render("caprl_ray", pictures))[1]

    await frontend.generate(await fresh(), 1)  # bears the one-time costs
    one = await frontend.generate(await fresh(), 1)
    token = (await frontend.generate(await fresh(), tokens) - one) / (tokens - 1)
    for way in ways:
        rendered, _ = await frontend.render(RENDERED[way], pictures)
        parts = {"render_ms": 1e3 * rendered, "send_ms": 1e3 * (one - token), "token_us": 1e6 * token}
        parts["together_ms"] = 1e3 * (rendered + one + (CAPTION_TOKENS - 1) * token)
        figures |= {f"{size}_{way}_{name}": value for name, value in parts.items()}
    return figures


def table(figures: Figures) -> None:
    """Print the figures, one line per size and way."""
    print(f"{'seen':<12}{'way':<11}{'render':>10}{'send':>10}{'token':>10}{'together':>11}{'a core':>8}")
    for size, (width, height) in SIZES.items():
        for way in RENDERED:
            names = ("render_ms", "send_ms", "token_us", "together_ms")
            render, send, token, together = (figures[f"{size}_{way}_{name}"] for name in names)
            cells = f"{render:>7.2f} ms{send:>7.2f} ms{token:>7.1f} us{together:>8.1f} ms{1e3 / together:>6.0f}/s"
            print(f"{f'{width} x {height}':<12}{way:<11}{cells}")


async def run(images: int, tokens: int, *, chunked: bool) -> Figures:
    """Start the engine for pictures of up to a megapixel, and measure every size."""
    recipe = parse(demo_recipe([Path("-")], Path("-")))
    model = resolve(recipe)
    model = replace(model, size_rule=replace(model.size_rule, max_pixels=1_003_520))
    with mock.patch.object(internals, "can_chunk", return_value=chunked):
        engine = await VllmEngine.start(recipe, model)
    try:
        # One for all sizes: the core knows images and requests by their names, which must be unique.
        frontend, figures = Frontend(engine), Figures()
        ways = [way for way in RENDERED if CHUNKED[way] == chunked]
        for size in SIZES:
            figures |= await measure(frontend, size, images, tokens, ways)
        return figures
    finally:
        engine.stop()


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40, help="number of pictures of each size")
    parser.add_argument("--tokens", type=int, default=129, help="length of the captions in the token measurement")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds; the figures are medians over them")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    if args.images < 2 or args.tokens < 2 or args.repeat < 1:
        parser.error("--images and --tokens are at least 2 and --repeat at least 1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    rounds = [
        asyncio.run(run(args.images, args.tokens, chunked=False))
        | asyncio.run(run(args.images, args.tokens, chunked=True))
        for _ in range(args.repeat)
    ]
    figures = medians(rounds)
    table(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
