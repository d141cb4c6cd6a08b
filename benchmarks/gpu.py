"""Measure how close `vllm.LLM.chat` and this pipeline come to the engine's own rate on a GPU.

    python benchmarks/gpu.py [--images 1000] [--repeat 1] [--ways engine chat caprl_ray] [--json FILE]

With a GPU: the model has CapRL-3B's exact shape and random weights (dummy_model.py; nothing is downloaded). The images
are scenes with photographic noise, as JPEGs of 640 x 480 to 4000 x 3000. The model sees them at up to 1,003,520 pixels.
Captions have 500 tokens at temperature 1. Engine arguments are those that the pipeline chooses for this GPU. Without a
GPU: the embedded model captions fewer and smaller images greedily on the CPU.

Three ways, each in its own process, one after another:

    engine      the engine alone (AsyncLLM) on pre-rendered requests: the ceiling. It holds all requests in memory: 6 MB
                for each of the largest images, or 24 MB if vLLM's processor makes them float32
    chat        vllm.LLM.chat on file:// URLs: a first call with 32 images, then one call with all others
    caprl_ray   caprl_ray.pipeline.run on the folder, with one replica

The steady-state rate is the number of images over the seconds in which they were captioned, including the first and the
last ones. For `engine` and `chat` it covers the images after the first call. For `caprl_ray` it covers all images, in a
separate run that holds them back until the engine is ready and has had a first call (throughput.py explains why). With
few images the rate mostly shows how the GPU fills and empties: 1,000 images are twice what it runs at once.

First caption and whole run are seconds from the start of the way's process, including imports and engine start, in a
run that holds nothing back. For `engine` they include the rendering of its requests. If vLLM has not yet compiled this
model on this machine, the first way does it, which affects only its start. Figures are medians over --repeat rounds,
in which the ways take turns. The GPU's memory must be free before each way: the benchmark waits for other processes,
and exits if they do not end.

Keys of the JSON, where <way> is one of the three:

    <way>                               images/s in steady state
    <way>_tokens_s                      caption tokens per second: images/s times the mean length
    <way>_share                         images/s, divided by those of `engine`
    <way>_first_caption_s, <way>_whole_s    seconds to the first caption, and of the whole run
    images, image_bytes, image_tokens   number of images, their mean stored size, and their mean number of tokens
    gpu, vllm, ray, torch, transformers    the GPU's name (null on a CPU), and the versions
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean
from typing import Any

import dummy_model
import noisy_scenes
from alone import Captions, captions_in, medians, run_alone, steady
from gpu_ways import MODEL, WAYS, recipe_for
from PIL import Image

from caprl_ray.models.resolve import resolve
from caprl_ray.recipe.load import parse

SCRIPT = "gpu_ways.py"
GPU_SIZES = ((640, 480), (1024, 768), (768, 1024), (1920, 1080), (2048, 1536), (4000, 3000))
CPU_SIZES = ((320, 240), (240, 320), (448, 448), (640, 480))
GPU_IMAGES, CPU_IMAGES, FEWEST_IMAGES = 1000, 300, 100
TOKEN_PIXELS = 28 * 28
# A GPU counts as free if at most FREE_MIB of its memory are in use (the driver itself uses some). The processes of an
# engine end some seconds after the way that started them.
FREE_MIB, FREE_WITHIN_S = 2048, 120


def gpu_name() -> str | None:
    """The name of this machine's first GPU, or None. Uses the same driver call as the pipeline."""
    from vllm.platforms import current_platform

    return str(current_platform.get_device_name()) if current_platform.is_cuda_alike() else None


def versions() -> dict[str, str]:
    """The versions of the packages that are measured."""
    found = {name: _version(name, f"{name}-cpu") for name in ("vllm", "ray", "torch", "transformers")}
    return {name: text for name, text in found.items() if text}


def _version(*names: str) -> str | None:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def measure(way: str, images: Path, out: Path, gpu: str | None) -> tuple[dict[str, float], Captions]:
    """Measure one way. Returns its figures, and caption and tokens of each image."""
    began, finished, ended = _alone(way, images, out, gpu)
    captions = captions_in((out / "data").glob("*.parquet"))
    figures = {f"{way}_first_caption_s": finished[0] - began, f"{way}_whole_s": ended - began}
    if way == "caprl_ray":
        out = out.with_name(f"{out.name}-held")
        finished = _alone(way, images, out, gpu, "held")[1]
    figures[way] = steady(out, finished)
    figures[f"{way}_tokens_s"] = figures[way] * mean(tokens for _, tokens in captions.values())
    return figures, captions


def _alone(way: str, images: Path, out: Path, gpu: str | None, *held: str) -> tuple[float, list[float], float]:
    if gpu:
        _wait_for_memory()
    return run_alone(SCRIPT, way, images, out, *held)


def _wait_for_memory() -> None:
    until = time.monotonic() + FREE_WITHIN_S
    while (taken := _memory_taken()) > FREE_MIB:
        if time.monotonic() > until:
            sys.exit(f"{taken} MiB of the GPU's memory are in use by other processes.")
        time.sleep(1)


def _memory_taken() -> int:
    """Used memory of the first GPU in MiB."""
    command = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def image_tokens(images: Path) -> float:
    """The mean number of tokens per image, as the model sees it."""
    recipe = parse(recipe_for(images, images))
    rule = resolve(recipe).size_rule
    seen = []
    for file in images.iterdir():
        with Image.open(file) as image:
            width, height = rule.settled(*image.size)
        seen.append(width * height / TOKEN_PIXELS)
    return mean(seen)


def table(figures: dict[str, Any], ways: list[str], sizes: tuple[tuple[int, int], ...]) -> None:
    """Print what was measured, then the figures, one line per way."""
    machine = figures["gpu"] or f"no GPU, {len(os.sched_getaffinity(0))} CPU cores"
    packages = ", ".join(f"{name} {figures[name]}" for name in versions())
    (width, height), (most_width, most_height) = min(sizes, key=math.prod), max(sizes, key=math.prod)
    print(f"{machine}; {packages}")
    print(
        f"{figures['images']} JPEGs of {width} x {height} to {most_width} x {most_height}, "
        f"{figures['image_bytes'] / 1e3:.0f} kB and {figures['image_tokens']:.0f} image tokens each, captions of "
        f"{figures[f'{ways[0]}_tokens_s'] / figures[ways[0]]:.0f} tokens"
    )
    columns = ("images/s", "tokens/s", "of the engine", "first caption", "whole run")
    print(f"{'':<10}" + "".join(f"{name:>15}" for name in columns))
    for way in ways:
        share = f"{100 * figures[f'{way}_share']:.0f} %" if f"{way}_share" in figures else ""
        seconds = [f"{figures[f'{way}_{name}_s']:.1f} s" for name in ("first_caption", "whole")]
        cells = [f"{figures[way]:.1f}", f"{figures[f'{way}_tokens_s']:.0f}", share, *seconds]
        print(f"{way:<10}" + "".join(f"{cell:>15}" for cell in cells))


def main() -> None:
    """Measure all ways in turns and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=int, help=f"number of images, at least {FEWEST_IMAGES} ({GPU_IMAGES}; {CPU_IMAGES} on a CPU)"
    )
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="rounds; the figures are medians over them")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help="measure only these ways"
    )
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    gpu = gpu_name()
    args.images = args.images or (GPU_IMAGES if gpu else CPU_IMAGES)
    if args.images < FEWEST_IMAGES or args.repeat < 1:
        parser.error(f"--images is at least {FEWEST_IMAGES} and --repeat at least 1")
    if gpu is None:
        print("This machine has no GPU: the embedded model captions smaller images on its CPU.")
    sizes = GPU_SIZES if gpu else CPU_SIZES
    with tempfile.TemporaryDirectory(prefix="gpu-") as temporary:
        figures = run(Path(temporary), args, gpu, sizes)
    table(figures, args.ways, sizes)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def run(folder: Path, args: argparse.Namespace, gpu: str | None, sizes: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    """Run all rounds of all ways. Returns the medians, and a description of what was measured."""
    images = folder / "images"
    keys = noisy_scenes.write(images, args.images, sizes).keys()
    if gpu:
        dummy_model.write(images.with_name(MODEL))
    rounds = []
    for number in range(args.repeat):
        for way in args.ways:
            measured, captions = measure(way, images, folder / f"{way}-{number}", gpu)
            if captions.keys() != keys:
                sys.exit(f"{way} captioned {len(captions)} images of {len(keys)}.")
            rounds.append(measured)
            print(", ".join(f"{name} {value:.1f}" for name, value in measured.items()), file=sys.stderr)
    figures: dict[str, Any] = dict(medians(rounds))
    if "engine" in figures:
        figures |= {f"{way}_share": figures[way] / figures["engine"] for way in args.ways}
    size = mean(file.stat().st_size for file in images.iterdir())
    described = {"images": args.images, "image_bytes": size, "image_tokens": image_tokens(images), "gpu": gpu}
    return figures | described | versions()


if __name__ == "__main__":
    main()
