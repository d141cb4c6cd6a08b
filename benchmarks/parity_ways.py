"""The two ways that parity.py compares. Each runs in its own process; captioning.py describes what they write."""

import sys
from collections.abc import Callable
from pathlib import Path

import captioning
from PIL import Image

from caprl_ray.commands.demo import demo_recipe
from caprl_ray.models.resolve import resolve
from caprl_ray.prepare.decode import Limits, prepare
from caprl_ray.recipe.load import parse


def chat(images: Path, out: Path) -> None:
    """Run `vllm.LLM.chat` on the pixels that the pipeline's `prepare` makes from the files."""
    recipe = parse(demo_recipe([images], out))
    rule = resolve(recipe).size_rule
    limits = Limits(max_bytes=recipe.prepare.max_bytes, max_source_pixels=recipe.prepare.max_source_pixels)
    asked = {}
    for file in sorted(images.iterdir()):
        seen = prepare(file.read_bytes(), rule, limits)
        image = Image.frombytes("RGB", (seen.pixel_width, seen.pixel_height), seen.pixels)
        asked[file.name] = {"type": "image_pil", "image_pil": image}
    captioning.chat(recipe, asked, out)


def caprl_ray(images: Path, out: Path) -> None:
    """Run this pipeline on the files, as `caprl-ray caption` does."""
    captioning.run_pipeline(demo_recipe([images], out), out, held=False)


WAYS: dict[str, Callable[[Path, Path], None]] = {"chat": chat, "caprl_ray": caprl_ray}


if __name__ == "__main__":
    WAYS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
