"""Images/s of `prepare` on one core, beside plain Pillow and what `ray.data.read_images` does to one file.

    python benchmarks/prepare.py [--seconds 6] [--json FILE]

The three take turns in drawn order, one image each, and a figure is the median of its calls in processor time, on which
other jobs of the machine have less influence than on the clock. Pillow: open, convert, bicubic resize to the same size,
bytes. `read_images`: what its datasource does with the bytes of one file, with `size` and `mode="RGB"`, to its block.
Its resize is bilinear, which reads half as many pixels as a bicubic one. Left out are listing, opening and reading
files, and the estimate of a row's size, for which Ray would start a cluster.

Large pictures vary by a third with what the C library does with freed memory: keep it for the next, or give it back to
the system, which clears every page anew.

Keys of the JSON, where a case is `jpeg_1mp`, for example:

    <case>, <case>_pillow, <case>_read_images    images/s of one core: prepare and the other two
    <case>_ratio, <case>_ratio_read_images       prepare over each of them
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
    """Smooth shapes with some noise: compresses about as photographs do."""
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8))


def with_pillow(content: bytes, rule: SizeRule) -> bytes:
    """The shortest way with Pillow alone."""
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB").resize(rule.target(*image.size), Image.Resampling.BICUBIC).tobytes()


def read_images(size: tuple[int, int]) -> Callable[[bytes], object]:
    """What `ray.data.read_images(paths, size=size, mode="RGB")` does to the bytes of one file; `size` is width, height.

    Its constructor lists the files and wants a cluster; what it does to one of them needs these two attributes only.
    """
    source = ImageDatasource.__new__(ImageDatasource)
    source.size, source.mode = (size[1], size[0]), "RGB"
    return lambda content: list(source._read_stream(pa.BufferReader(content), "image"))


def rates(actions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Calls a second of processor time of each, taking turns, from the median of single calls."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    order = random.Random(1)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or any(len(calls) < 3 for calls in times.values()):
        for name in order.sample(list(actions), len(actions)):  # what one leaves in caches and memory favours the next
            began = time.process_time()
            actions[name]()
            times[name].append(time.process_time() - began)
    return {name: 1 / float(np.median(calls)) for name, calls in times.items()}


def measured(kind: str, image: Image.Image, seconds: float) -> dict[str, float]:
    """Images/s of each way for `image` in one format."""
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
    """Measure every case and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="measuring time of each case")
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
