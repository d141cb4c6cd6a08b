"""Measure how close `vllm.LLM.chat` and this pipeline come to the engine's own rate on a GPU.

    python benchmarks/gpu.py [--minutes 9] [--images 1200] [--ways two_replicas fp8] [--json FILE] [--folder FOLDER]

With a GPU: the model has CapRL-3B's exact shape and random weights (dummy_model.py; nothing is downloaded). The images
are scenes with photographic noise, as JPEGs of 640 x 480 to 4000 x 3000. The model sees them at up to 1,003,520 pixels.
Captions have 500 tokens at temperature 1. Engine arguments are those that the pipeline chooses for this GPU. Without a
GPU: the embedded model captions fewer and smaller images greedily on the CPU.

The ways, each in its own process, one after another, the most telling first:

    two_replicas  as `caprl_ray`, with two replicas on the GPU, each with half of its memory
    caprl_ray     caprl_ray.pipeline.run on the folder, with one replica; images are held back until the engine is ready
                  and has had a first call (throughput.py explains why)
    large_steps   as `caprl_ray`, with twice as many tokens in a step of the engine
    fp8           as `caprl_ray`, with weights of 8 bits; its captions differ. Left out on a CPU
    engine        the engine alone (AsyncLLM) on pre-rendered requests: the ceiling. It holds all requests in memory:
                  6 MB for each of the largest images, or 24 MB if vLLM's processor makes them float32
    chat          vllm.LLM.chat on file:// URLs of the first 600 images: a first call with 32 images, then one call

The steady-state rate is the number of images over the seconds in which they were captioned, including the first and the
last ones, after a first call of 32 images. With few images the rate mostly shows how the GPU fills and empties.

First caption is in seconds from the start of the way's process, including imports and engine start. For `caprl_ray` it
is the end of the first call. If vLLM has not yet compiled this model on this machine, the first way does it, which
affects only its start. The GPU's memory must be free before each way: the benchmark waits for other processes, and
exits if they do not end.

After --minutes, the running way is ended and the others are left out. The rate of such a way covers its captions so
far. A way that fails is left out, and its log is printed. All figures are written to --json after each way. If that
file exists, its ways are not measured again: the same command continues. With --folder, images and model are kept for
it.

`caprl-ray tune` compares more settings in the same time: it keeps Ray and the pixels, fills each engine as in the
middle of a run, and needs no whole run. For the same images and model:

    python benchmarks/gpu.py --prepare --folder FOLDER && caprl-ray tune FOLDER/recipe.yaml --minutes 8

Keys of the JSON, where <way> is one of the ways:

    <way>                               images/s in steady state
    <way>_tokens_s                      caption tokens per second: images/s times the mean length
    <way>_share                         images/s, divided by those of `engine`, if it was measured
    <way>_gain                          images/s, divided by those of `caprl_ray`, if it was measured
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
import shutil
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
import yaml
from alone import captions_in, moments, run_alone, steady
from captioning import READY
from gpu_ways import CAPTION_TOKENS, CHAT_IMAGES, HELD, MODEL, WAYS, recipe_for
from load import Load
from PIL import Image

from caprl_ray.models.resolve import resolve
from caprl_ray.recipe.load import parse

SCRIPT = "gpu_ways.py"
GPU_SIZES = ((640, 480), (1024, 768), (768, 1024), (1920, 1080), (2048, 1536), (4000, 3000))
CPU_SIZES = ((320, 240), (240, 320), (448, 448), (640, 480))
GPU_IMAGES, CPU_IMAGES, FEWEST_IMAGES = 1200, 300, 100
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
    """Measure one way, in at most `seconds`. Returns its figures."""
    if gpu:
        _wait_for_memory()
    shutil.rmtree(out, ignore_errors=True)  # of a call that was ended
    replicas = HELD.get(way, 1)
    held = ["held"] if way in HELD else []
    with Load(out) as load:
        began, finished, ended = run_alone(SCRIPT, way, images, out, *held, seconds=seconds)
    ready = moments(out / READY)[replicas - 1 :]
    if not ready or not finished or finished[-1] <= ready[0][0]:
        return {f"{way}_captions": len(finished), f"{way}_whole_s": ended - began}
    first = ready[0][0] if held else finished[0]
    captions = captions_in((out / "data").glob("*.parquet")) if ended - began < (seconds or math.inf) else {}
    tokens = mean(tokens for _, tokens in captions.values()) if captions else CAPTION_TOKENS
    figures = {way: steady(out, finished, replicas), "first_caption_s": first - began, "whole_s": ended - began}
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
        "gain": ("of caprl_ray", "{:.0%}"),
        "middle": ("in the middle", "{:.1f}"),
        "first_caption_s": ("first caption", "{:.1f} s"),
        "whole_s": ("whole run", "{:.1f} s"),
        "gpu_busy": ("GPU busy", "{:.0%}"),
        "core_cores": ("cores: engine", "{:.1f}"),
        "cores": ("all", "{:.1f}"),
    }
    print(f"{'':<13}" + "".join(f"{title:>14}" for title, _ in columns.values()))
    for way in (way for way in WAYS if f"{way}_whole_s" in figures):
        values = [(figures.get(f"{way}_{name}" if name else way), form) for name, (_, form) in columns.items()]
        print(f"{way:<13}" + "".join(f"{'' if value is None else form.format(value):>14}" for value, form in values))


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
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object, and go on from them")
    parser.add_argument("--folder", type=Path, help="where images and model are kept (none are kept)")
    parser.add_argument("--prepare", action="store_true", help="only write them, and recipe.yaml, into --folder")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes if args.minutes else math.inf
    gpu = gpu_name()
    args.images = args.images or (GPU_IMAGES if gpu else CPU_IMAGES)
    if args.images < FEWEST_IMAGES:
        parser.error(f"--images is at least {FEWEST_IMAGES}")
    if args.prepare and not args.folder:
        parser.error("--prepare needs --folder")
    if gpu is None:
        print("This machine has no GPU: the embedded model captions smaller images on its CPU.")
    sizes = GPU_SIZES if gpu else CPU_SIZES
    if args.prepare:
        images = write_inputs(args.folder.absolute(), args.images, sizes, gpu)
        recipe = recipe_for(images, images.with_name("captions"))
        (args.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return
    with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as temporary:
        figures = run((args.folder or Path(temporary)).absolute(), args, gpu, sizes, until)
    table(figures, sizes)


def write_inputs(folder: Path, number: int, sizes: tuple[tuple[int, int], ...], gpu: str | None) -> Path:
    """Write the images, and with a GPU the model beside them, unless they exist. Returns the images' folder."""
    images, unfinished = folder / f"images-{number}", folder / "unfinished"
    folder.mkdir(parents=True, exist_ok=True)
    if not images.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        noisy_scenes.write(unfinished, number, sizes)
        unfinished.rename(images)
    if gpu and not images.with_name(MODEL).exists():
        dummy_model.write(images.with_name(MODEL))
    return images


def run(
    folder: Path, args: argparse.Namespace, gpu: str | None, sizes: tuple[tuple[int, int], ...], until: float
) -> dict[str, Any]:
    """Run all ways, while there is time. Returns the figures, and a description of what was measured."""
    figures: dict[str, Any] = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    images = write_inputs(folder, args.images, sizes, gpu)
    size = mean(file.stat().st_size for file in images.iterdir())
    described = {"images": args.images, "image_bytes": size, "image_tokens": image_tokens(images), "gpu": gpu}
    described |= versions()
    differ = [name for name in ("images", "gpu", *versions()) if figures and figures.get(name) != described[name]]
    if differ:
        sys.exit(f"{args.json} was measured with another {differ[0]}; give another file.")
    figures |= described
    for way in args.ways:
        left, expected = until - time.monotonic(), min(args.images, CHAT_IMAGES) if way == "chat" else args.images
        if left <= 0 or figures.get(f"{way}_captions") == expected or (way == "fp8" and not gpu):
            continue
        try:
            measured = measure(way, images, folder / way, gpu, None if left == math.inf else left)
        except SystemExit as failure:  # the others may still start
            print(failure, file=sys.stderr, flush=True)
            continue
        if left == math.inf and measured[f"{way}_captions"] != expected:
            sys.exit(f"{way} captioned {measured[f'{way}_captions']:.0f} images of {expected}.")
        figures |= measured
        for base, name in (("engine", "share"), ("caprl_ray", "gain")):
            others = [one for one in WAYS if base in figures and one in figures]
            figures |= {f"{one}_{name}": figures[one] / figures[base] for one in others}
        print(", ".join(f"{name} {value:.2f}" for name, value in measured.items()), file=sys.stderr, flush=True)
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


if __name__ == "__main__":
    main()
