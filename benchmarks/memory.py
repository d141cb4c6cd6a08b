"""Measure how the memory of a run's processes (driver, Ray's workers, replica, engine) grows with the images.

    python benchmarks/memory.py [--images 10000] [--json FILE]

The embedded model captions rendered scenes (JPEG, 640 x 480; the same 500 under several names) through the whole
pipeline. Once a second, the process's own memory (USS) is sampled from outside, for the largest process of each kind.
Unbounded growth shows as a slope: MiB per 1,000 images, by least squares over the second half of the run. By then every
process has repeated its work many times.

Keys of the JSON: `images`, and per part `<part>_peak_mib` and `<part>_slope_mib`. Parts: `driver`, and the keys of
sampled.PARTS.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from alone import moments, run_alone
from captioning import FINISHED
from noisy_scenes import write
from sampled import DRIVER, PARTS, sampled

DIFFERENT, SIZE = 500, (640, 480)
SAMPLED_S, MIB = 1.0, 2**20
SHOWN = (DRIVER, "read", "prepare", "replica", "engine", "raylet", "gcs")

Figures = dict[str, float]


class Largest:
    """Samples of the memory of the largest process of each part, with the number of images captioned so far."""

    def __init__(self, finished: Path) -> None:
        self._finished, self._captioned, self._read = finished, 0, 0.0
        self.samples: dict[str, list[tuple[int, float]]] = {}

    def __call__(self, part: str, process: psutil.Process) -> None:
        if part not in SHOWN:
            return
        size, images = process.memory_full_info().uss / MIB, self._now()
        samples = self.samples.setdefault(part, [])
        if samples and samples[-1][0] == images:
            size = max(size, samples.pop()[1])
        samples.append((images, size))

    def _now(self) -> int:
        """Images captioned so far. The file is read at most once per sampling interval."""
        if time.monotonic() - self._read > SAMPLED_S / 2 and self._finished.exists():
            self._captioned = sum(rows for _, rows in moments(self._finished))
            self._read = time.monotonic()
        return self._captioned


def figures_of(samples: dict[str, list[tuple[int, float]]], images: int) -> Figures:
    """The peak and the slope of each part."""
    figures: Figures = {"images": images}
    for part, seen in samples.items():
        figures[f"{part}_peak_mib"] = max(size for _, size in seen)
        half = [(n, size) for n, size in seen if n > images / 2]
        if len(half) > 2:
            figures[f"{part}_slope_mib"] = 1000 * float(np.polyfit(*zip(*half, strict=True), 1)[0])
    return figures


def table(figures: Figures) -> None:
    """Print peaks and slopes, one line per part."""
    print(f"{'':<12}{'peak':>12}{'per 1,000 images':>20}")
    for part in (part for part in (DRIVER, *PARTS) if f"{part}_peak_mib" in figures):
        slope = figures.get(f"{part}_slope_mib")
        print(f"{part:<12}{figures[f'{part}_peak_mib']:>8.0f} MiB" + ("" if slope is None else f"{slope:>16.2f} MiB"))


def main() -> None:
    """Run once and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="number of images, at least 2000")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    if args.images < 2000:
        parser.error("--images is at least 2000")
    with tempfile.TemporaryDirectory(prefix="memory-") as temporary:
        folder, out = Path(temporary), Path(temporary, "out")
        write(folder / "images", DIFFERENT, [SIZE])
        scenes = sorted((folder / "images").iterdir())
        for number in range(DIFFERENT, args.images):
            os.link(scenes[number % DIFFERENT], folder / "images" / f"again-{number:06d}.jpg")
        largest = Largest(out / FINISHED)
        with sampled(largest, SAMPLED_S):
            run_alone("throughput_ways.py", "caprl_ray", folder / "images", out)
    figures = figures_of(largest.samples, args.images)
    table(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
