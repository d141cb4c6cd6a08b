"""Blank pictures are told from others at the size that the model sees."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from caprl_ray.prepare.blank import blank

SIZE = (644, 476)


def seen(picture: Image.Image, quality: int | None = None) -> bool:
    if quality:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        picture = Image.open(buffer)
    return blank(picture.convert("RGB").tobytes(), picture.width)


def noisy(deviation: float) -> Image.Image:
    pixels = np.random.default_rng(0).normal(20, deviation, (*SIZE[::-1], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("colour", ["white", "black", (131, 97, 201)])
@pytest.mark.parametrize("quality", [None, 20, 95])
def test_one_colour_is_blank_also_as_jpeg(colour: str, quality: int | None) -> None:
    assert seen(Image.new("RGB", SIZE, colour), quality)
    assert seen(Image.new("RGB", (28, 28), colour), quality)
    assert seen(Image.new("RGB", (1400, 28), colour), quality)


def test_darkness_with_noise_is_blank_and_coarse_noise_is_not() -> None:
    assert seen(noisy(3), 75)
    assert not seen(noisy(12))


def test_photographs_text_and_drawings_are_not_blank() -> None:
    for path in sorted((Path(__file__).parent / "photographs").glob("*.jpg")):
        with Image.open(path) as photograph:
            assert not seen(photograph.resize(SIZE))
    text, drawing, half = (Image.new("RGB", SIZE, "white") for _ in range(3))
    ImageDraw.Draw(text).text((200, 200), "image not available", fill="#999", font_size=24)
    ImageDraw.Draw(drawing).ellipse((250, 150, 400, 300), outline="black", width=1)
    half.paste((240, 240, 240), (0, 0, 322, 476))
    assert not seen(text) and not seen(drawing) and not seen(half)


def test_every_channel_counts() -> None:
    pixels = np.full((*SIZE[::-1], 3), 128, np.uint8)
    for channel in range(3):
        one = pixels.copy()
        one[:, ::2, channel] += 10
        assert not blank(one.tobytes(), SIZE[0])
    assert blank(pixels.tobytes(), SIZE[0])


def test_stripes_are_seen_whatever_their_width() -> None:
    for width in (2, 4, 7, 28, 322):
        pixels = np.full((*SIZE[::-1], 3), 100, np.uint8)
        pixels[:, np.arange(SIZE[0]) // width % 2 == 0] = 140
        assert not blank(pixels.tobytes(), SIZE[0])
