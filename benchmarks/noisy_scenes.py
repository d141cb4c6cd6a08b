"""Scenes as JPEG files that cost about as much as photographs to store and decode."""

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from caprl_ray.embedded import scenes

QUALITY = 90
DEVIATION = 5  # of the noise, in grey levels; with it a scene compresses about as well as a photograph


def write(folder: Path, images: int, sizes: Sequence[tuple[int, int]]) -> dict[str, str]:
    """Write scenes in the given sizes (width, height) in turn. Every call writes the same ones.

    Returns the correct caption of each key, which is the file's name.
    """
    folder.mkdir()
    shape = max(height for _, height in sizes), max(width for width, _ in sizes), 3
    # The noise is a quarter larger than the largest picture. Each picture uses another part of it.
    rows, columns, _ = (5 * length // 4 for length in shape)
    noise = (np.random.default_rng(1).standard_normal((rows, columns, 3), np.float32) * DEVIATION).astype(np.int8)

    def one(number: int) -> tuple[str, str]:
        draw, (width, height) = random.Random(number), sizes[number % len(sizes)]
        scene = scenes.sample_scene(draw)
        top, left = draw.randrange(rows - height + 1), draw.randrange(columns - width + 1)
        pixels = np.asarray(scenes.render(scene, width, height, rng=draw, supersample=1), dtype=np.int16)
        pixels = np.clip(pixels + noise[top : top + height, left : left + width], 0, 255)
        key = f"scene-{number:05d}.jpg"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / key, "JPEG", quality=QUALITY)
        return key, scenes.caption(scene)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(pool.map(one, range(images)))
