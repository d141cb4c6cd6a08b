"""Measure how close `vllm.LLM.chat` and this pipeline come to the engine's own rate on a GPU.

    python benchmarks/gpu.py [--minutes 7] [--images 1500] [--ways engine caprl_ray engine_fp8 chat] [--json FILE]

With a GPU: the model has CapRL-3B's exact shape and random weights (dummy_model.py; nothing is downloaded). The images
are scenes with photographic noise, as JPEGs of 640 x 480 to 4000 x 3000. The model sees them at up to 1,003,520 pixels.
Captions have 500 tokens at temperature 1. Engine arguments are those that the pipeline chooses for this GPU. Without a
GPU: the embedded model captions fewer and smaller images greedily on the CPU.

The ways, each in its own process, one after another:

    engine      the engine alone (AsyncLLM) on pre-rendered requests: the ceiling. It holds all requests in memory: 6 MB
                for each of the largest images, or 24 MB if vLLM's processor makes them float32
    caprl_ray   caprl_ray.pipeline.run on the folder, with one replica; images are held back until the engine is ready
                and has had a first call (throughput.py explains why)
    engine_fp8  as `engine`, with weights of 8 bits; its captions differ. Left out on a CPU
    chat        vllm.LLM.chat on file:// URLs of the first 600 images: a first call with 32 images, then one call

The steady-state rate is the number of images over the seconds in which they were captioned, including the first and the
last ones, after a first call of 32 images. With few images the rate mostly shows how the GPU fills and empties.

First caption is in seconds from the start of the way's process, including imports and engine start. For `caprl_ray` it
is the end of the first call. If vLLM has not yet compiled this model on this machine, the first way does it, which
affects only its start. The GPU's memory must be free before each way: the benchmark waits for other processes, and
exits if they do not end.

After --minutes, the way that runs is ended and the others are left out. The rate of such a way covers the captions that
it had. A way that fails is left out, and its log is printed. All that is known is written to --json after each way.

Keys of the JSON, where <way> is one of the ways:

    <way>                               images/s in steady state
    <way>_tokens_s                      caption tokens per second: images/s times the mean length
    <way>_share                         images/s, divided by those of `engine`
    <way>_middle                        images/s from the first quarter of its captions to the third: without the time
                                        in which places fill and empty. Captions of one length come in waves, so it is
                                        exact for many images only
    <way>_first_caption_s, <way>_whole_s    seconds to the first caption, and of the whole run
    <way>_gpu_busy                      mean utilization of the GPU in steady state, 0 to 1 (not on a CPU)
    <way>_core_cores, <way>_cores       CPU cores that the engine core and all of the way's processes kept busy then
    <way>_captions                      number of captions
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
from alone import captions_in, moments, run_alone, steady
from captioning import READY
from gpu_ways import CAPTION_TOKENS, CHAT_IMAGES, MODEL, WAYS, recipe_for
from load import Load
from PIL import Image

from caprl_ray.models.resolve import resolve
from caprl_ray.recipe.load import parse

SCRIPT = "gpu_ways.py"
GPU_SIZES = ((640, 480), (1024, 768), (768, 1024), (1920, 1080), (2048, 1536), (4000, 3000))
CPU_SIZES = ((320, 240), (240, 320), (448, 448), (640, 480))
GPU_IMAGES, CPU_IMAGES, FEWEST_IMAGES = 1500, 300, 100
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


def measure(way: str, images: Path, out: Path, gpu: str | None, seconds: float | None) -> dict[str, float]:
    """Measure one way, in at most so many seconds. Returns its figures."""
    if gpu:
        _wait_for_memory()
    held = ["held"] if way == "caprl_ray" else []
    with Load(out) as load:
        began, finished, ended = run_alone(SCRIPT, way, images, out, *held, seconds=seconds)
    ready = moments(out / READY)
    if not ready or not finished or finished[-1] <= ready[0][0]:
        return {f"{way}_captions": len(finished), f"{way}_whole_s": ended - began}
    first = ready[0][0] if held else finished[0]
    captions = captions_in((out / "data").glob("*.parquet")) if ended - began < (seconds or math.inf) else {}
    tokens = mean(tokens for _, tokens in captions.values()) if captions else CAPTION_TOKENS
    figures = {way: steady(out, finished), "first_caption_s": first - began, "whole_s": ended - began}
    figures |= {"tokens_s": figures[way] * tokens, "captions": len(captions) or len(finished)}
    quarter = len(finished) // 4
    figures["middle"] = 2 * quarter / max(0.001, finished[3 * quarter] - finished[quarter])
    figures |= load.between(ready[0][0], finished[-1])
    return {name if name == way else f"{way}_{name}": value for name, value in figures.items()}


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


def table(figures: dict[str, Any], sizes: tuple[tuple[int, int], ...]) -> None:
    """Print what was measured, then the figures, one line per way."""
    machine = figures["gpu"] or f"no GPU, {len(os.sched_getaffinity(0))} CPU cores"
    packages = ", ".join(f"{name} {figures[name]}" for name in versions())
    (width, height), (most_width, most_height) = min(sizes, key=math.prod), max(sizes, key=math.prod)
    print(f"{machine}; {packages}")
    print(
        f"{figures['images']} JPEGs of {width} x {height} to {most_width} x {most_height}, "
        f"{figures['image_bytes'] / 1e3:.0f} kB and {figures['image_tokens']:.0f} image tokens each"
    )
    columns = {
        "captions": ("captions", "{:.0f}"),
        "": ("images/s", "{:.1f}"),
        "tokens_s": ("tokens/s", "{:.0f}"),
        "share": ("of the engine", "{:.0%}"),
        "middle": ("in the middle", "{:.1f}"),
        "first_caption_s": ("first caption", "{:.1f} s"),
        "whole_s": ("whole run", "{:.1f} s"),
        "gpu_busy": ("GPU busy", "{:.0%}"),
        "core_cores": ("cores: engine", "{:.1f}"),
        "cores": ("all", "{:.1f}"),
    }
    print(f"{'':<12}" + "".join(f"{title:>14}" for title, _ in columns.values()))
    for way in (way for way in WAYS if f"{way}_whole_s" in figures):
        values = [(figures.get(f"{way}_{name}" if name else way), form) for name, (_, form) in columns.items()]
        print(f"{way:<12}" + "".join(f"{'' if value is None else form.format(value):>14}" for value, form in values))


def main() -> None:
    """Measure all ways and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="end after so many minutes (no limit)")
    parser.add_argument(
        "--images", type=int, help=f"number of images, at least {FEWEST_IMAGES} ({GPU_IMAGES}; {CPU_IMAGES} on a CPU)"
    )
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help="measure only these ways"
    )
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes if args.minutes else math.inf
    gpu = gpu_name()
    args.images = args.images or (GPU_IMAGES if gpu else CPU_IMAGES)
    if args.images < FEWEST_IMAGES:
        parser.error(f"--images is at least {FEWEST_IMAGES}")
    if gpu is None:
        print("This machine has no GPU: the embedded model captions smaller images on its CPU.")
    sizes = GPU_SIZES if gpu else CPU_SIZES
    with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as temporary:
        figures = run(Path(temporary), args, gpu, sizes, until)
    table(figures, sizes)


def run(
    folder: Path, args: argparse.Namespace, gpu: str | None, sizes: tuple[tuple[int, int], ...], until: float
) -> dict[str, Any]:
    """Run all ways, while there is time. Returns the figures, and a description of what was measured."""
    images = folder / "images"
    keys = noisy_scenes.write(images, args.images, sizes).keys()
    if gpu:
        dummy_model.write(images.with_name(MODEL))
    size = mean(file.stat().st_size for file in images.iterdir())
    figures: dict[str, Any] = {"images": args.images, "image_bytes": size, "image_tokens": image_tokens(images)}
    figures |= {"gpu": gpu} | versions()
    for way in args.ways:
        left = until - time.monotonic()
        if left <= 0 or (way == "engine_fp8" and not gpu):
            continue
        try:
            measured = measure(way, images, folder / way, gpu, None if left == math.inf else left)
        except SystemExit as failure:  # the others may still start
            print(failure, file=sys.stderr, flush=True)
            continue
        expected = min(len(keys), CHAT_IMAGES) if way == "chat" else len(keys)
        if left == math.inf and measured[f"{way}_captions"] != expected:
            sys.exit(f"{way} captioned {measured[f'{way}_captions']:.0f} images of {expected}.")
        figures |= measured
        if "engine" in figures and way in figures:
            figures[f"{way}_share"] = figures[way] / figures["engine"]
        print(", ".join(f"{name} {value:.2f}" for name, value in measured.items()), file=sys.stderr, flush=True)
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


if __name__ == "__main__":
    main()
