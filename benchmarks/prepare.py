"""Images/s of `prepare` on one core, beside plain Pillow (open, convert, bicubic resize to the same size).

    python benchmarks/prepare.py [--seconds 2] [--json FILE]

Keys of the JSON: for each case such as `jpeg_1mp`, `<case>` and `<case>_pillow` in images/s, and `<case>_ratio`.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from caprl_ray.prepare import Limits, prepare
from caprl_ray.sizes import SizeRule, size_rule

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


def rate(action: Callable[[], object], seconds: float) -> float:
    """Calls a second, from the median of single calls."""
    times = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 3:
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return 1 / float(np.median(times))


def main() -> None:
    """Measure every case, ours and Pillow's in turn, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time of each figure")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    print(f"{'case':<12}{'prepare':>12}{'Pillow':>12}{'ratio':>8}")
    for size, (width, height) in SIZES.items():
        image = picture(width, height)
        for kind, options in FORMATS.items():
            buffer = io.BytesIO()
            image.save(buffer, kind.upper(), **options)
            content, case = buffer.getvalue(), f"{kind}_{size}"
            ours = rate(lambda content=content: prepare(content, RULE, LIMITS), args.seconds)
            plain = rate(lambda content=content: with_pillow(content, RULE), args.seconds)
            figures |= {case: ours, f"{case}_pillow": plain, f"{case}_ratio": ours / plain}
            print(f"{case:<12}{ours:>10.1f}/s{plain:>10.1f}/s{ours / plain:>8.2f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
