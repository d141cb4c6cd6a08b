"""Measure the images/s of `prepare` on one core, compared with plain Pillow and with `ray.data.read_images`.

    python benchmarks/prepare.py [--seconds 6] [--json FILE]

The three take turns in random order, one image each. A figure is the median CPU time of its calls; other jobs on the
machine affect CPU time less than wall-clock time. Pillow: open, convert, resize (bicubic) to the same size, get bytes.
`read_images`: what its datasource does with the bytes of one file, with `size` and `mode="RGB"`, up to its block. Its
resize is bilinear, which reads half as many pixels as a bicubic one. Not included: listing, opening and reading files,
and the estimate of a row's size, for which Ray would start a cluster.

The figures of large pictures vary by a third. It depends on whether the C library keeps freed memory or returns it to
the system, which then clears every page again.

Keys of the JSON, where <case> is for example `jpeg_1mp`:

    <case>, <case>_pillow, <case>_read_images    images/s of one core: prepare and the other two
    <case>_ratio, <case>_ratio_read_images       prepare, divided by each of the other two
"""

import argparse
import io
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
from PIL import Image
from ray.data._internal.datasource.image_datasource import ImageDatasource
from ray.data._internal.size_estimator import SizeEstimator

from caprl_ray.prepare.decode import Limits, prepare
from caprl_ray.prepare.sizes import SizeRule, size_rule

RULE = size_rule({"image_processor_type": "Qwen2VLImageProcessor"}, min_pixels=3136, max_pixels=1_003_520)
LIMITS = Limits(max_bytes=2**30, max_source_pixels=178_956_970)
SIZES = {"0.3mp": (640, 480), "1mp": (1152, 864), "3mp": (2048, 1536), "12mp": (4000, 3000)}
FORMATS = {"jpeg": {"quality": 90}, "png": {"compress_level": 4}, "webp": {"quality": 85}}


def picture(width: int, height: int) -> Image.Image:
    """A picture of smooth shapes with some noise. It compresses about as well as photographs."""
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8))


def with_pillow(content: bytes, rule: SizeRule) -> bytes:
    """The shortest way to the same pixels with Pillow alone."""
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB").resize(rule.target(*image.size), Image.Resampling.BICUBIC).tobytes()


def read_images(size: tuple[int, int]) -> Callable[[bytes], object]:
    """A function that does to a file's bytes what `ray.data.read_images(paths, size=size, mode="RGB")` does.

    `size` is (width, height). The datasource's constructor is skipped, because it lists files and needs a cluster. To
    read one file, only these two attributes are needed.
    """
    source = ImageDatasource.__new__(ImageDatasource)
    source.size, source.mode = (size[1], size[0]), "RGB"
    return lambda content: list(source._read_stream(pa.BufferReader(content), "image"))


def rates(actions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Run all actions in turns. Returns calls per second of CPU time, from the median of single calls."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    order = random.Random(1)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or any(len(calls) < 3 for calls in times.values()):
        for name in order.sample(
            list(actions), len(actions)
        ):  # an action profits from what the previous one left in caches
            began = time.process_time()
            actions[name]()
            times[name].append(time.process_time() - began)
    return {name: 1 / float(np.median(calls)) for name, calls in times.items()}


def measured(kind: str, image: Image.Image, seconds: float) -> dict[str, float]:
    """Images/s of each way, for `image` in one format."""
    buffer = io.BytesIO()
    image.save(buffer, kind.upper(), **FORMATS[kind])
    content, rays = buffer.getvalue(), read_images(RULE.target(*image.size))
    ways = {
        "prepare": lambda: prepare(content, RULE, LIMITS),
        "pillow": lambda: with_pillow(content, RULE),
        "read_images": lambda: rays(content),
    }
    with mock.patch.object(SizeEstimator, "add"):
        return rates(ways, seconds)


def main() -> None:
    """Measure all cases and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="measuring time of each case in seconds")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    print(f"{'case':<12}{'prepare':>12}{'Pillow':>12}{'ratio':>8}{'read_images':>14}{'ratio':>8}")
    for size, (width, height) in SIZES.items():
        image = picture(width, height)
        for kind in FORMATS:
            case, rate = f"{kind}_{size}", measured(kind, image, args.seconds)
            ours, plain, rays = rate["prepare"], rate["pillow"], rate["read_images"]
            figures |= {case: ours, f"{case}_pillow": plain, f"{case}_read_images": rays}
            figures |= {f"{case}_ratio": ours / plain, f"{case}_ratio_read_images": ours / rays}
            row = f"{case:<12}{ours:>10.1f}/s{plain:>10.1f}/s{ours / plain:>8.2f}{rays:>12.1f}/s{ours / rays:>8.2f}"
            print(row, flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
