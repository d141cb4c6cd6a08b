"""Prepared pixels are compared with pictures whose pixels are known. Each way to refuse a file is tried."""

import base64
import gzip
import io
import random
import re
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageDraw, ImageFile, ImageFont

from caprl_ray.errors import RowFailure
from caprl_ray.prepare import jpeg_xl
from caprl_ray.prepare.decode import Limits, Prepared, prepare
from caprl_ray.prepare.sizes import SizeRule
from caprl_ray.rows.codes import FAILURE_CODES
from tests.hostile.images import HEIGHT, PICTURE, WIDTH, chunk, encode, png, png_rows, smooth_noise

RULE = SizeRule(factor=28, min_pixels=784, max_pixels=1003520, max_aspect=200)
LIMITS = Limits(max_bytes=2_000_000, max_source_pixels=10_000_000)

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged EXIF and TIFF tags


ALPHA = np.tile(np.linspace(0, 255, WIDTH).round().astype(np.uint8), (HEIGHT, 1))
COLUMNS = np.tile(np.arange(WIDTH), (HEIGHT, 1))


def pixels(prepared: Prepared) -> np.ndarray:
    return np.frombuffer(prepared.pixels, np.uint8).reshape(prepared.pixel_height, prepared.pixel_width, 3)


def prepared_pixels(image: bytes) -> np.ndarray:
    return pixels(prepare(image, RULE, LIMITS))


def outcome(image: bytes) -> Prepared | RowFailure:
    try:
        return prepare(image, RULE, LIMITS)
    except RowFailure as failure:
        return failure


def refusal(image: bytes, rule: SizeRule = RULE, limits: Limits = LIMITS) -> RowFailure:
    with pytest.raises(RowFailure) as caught:
        prepare(image, rule, limits)
    assert caught.value.code in FAILURE_CODES
    return caught.value


def tiff(order: Literal["<", ">"], values: np.ndarray, tags: dict[int, int], strip: bytes | None = None) -> bytes:
    """An uncompressed TIFF of one strip, written by hand: the required tags, and `tags`."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes() if strip is None else strip
    height, width = values.shape
    entries = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)} | tags
    table = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8 + len(data))
    return start + data + struct.pack(order + "H", len(entries)) + table + bytes(4)


# Pixels as they are in the file


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_lossless_files_of_the_models_size_keep_every_bit(kind: str, options: dict[str, Any]) -> None:
    prepared = prepare(encode(PICTURE, kind, **options), RULE, LIMITS)
    assert np.array_equal(pixels(prepared), PICTURE)
    assert (prepared.width, prepared.height) == (prepared.pixel_width, prepared.pixel_height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 95}),
        ("TIFF", {"compression": "jpeg", "quality": 95}),
    ],
)
def test_lossy_files_are_close(kind: str, options: dict[str, Any]) -> None:
    difference = prepared_pixels(encode(PICTURE, kind, **options)).astype(int) - PICTURE
    assert np.abs(difference).mean() < 6


def test_decoding_equals_pillow_where_the_format_is_lossy() -> None:
    jpeg = encode(PICTURE, "JPEG")
    assert np.array_equal(prepared_pixels(jpeg), np.asarray(Image.open(io.BytesIO(jpeg))))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "BMP", "TIFF"])
def test_palettes_give_their_colours(kind: str) -> None:
    few = Image.fromarray(PICTURE).quantize(50)
    assert np.array_equal(prepared_pixels(encode(few, kind)), np.asarray(few.convert("RGB")))


def grey_to_rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "GIF"])
def test_greyscale(kind: str) -> None:
    grey = np.ascontiguousarray(PICTURE[:, :, 0])
    got = prepared_pixels(encode(grey, kind))
    assert np.array_equal(got[:, :, 0], got[:, :, 1])
    assert np.array_equal(got[:, :, 1], got[:, :, 2])
    assert np.abs(got[:, :, 0].astype(int) - grey).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "group4"}), ("BMP", {})]
)
def test_one_bit_pictures_are_black_and_white(kind: str, options: dict[str, Any]) -> None:
    bits = PICTURE[:, :, 0] > 120
    got = prepared_pixels(encode(Image.fromarray(bits), kind, **options))
    assert np.array_equal(got, grey_to_rgb(bits * 255))


SIXTEEN = (np.arange(WIDTH * HEIGHT, dtype=np.uint32) * 65535 // (WIDTH * HEIGHT - 1)).reshape(HEIGHT, WIDTH)


def test_sixteen_bit_png_keeps_black_white_and_the_ramp() -> None:
    got = prepared_pixels(png(WIDTH, HEIGHT, 16, 0, png_rows(SIXTEEN.astype(">u2"))))
    assert np.array_equal(got, grey_to_rgb(SIXTEEN >> 8))
    assert (got[0, 0].tolist(), got[-1, -1].tolist()) == ([0, 0, 0], [255, 255, 255])


def test_sixteen_bit_grey_and_colour_agree() -> None:
    colour = np.repeat(SIXTEEN.astype(">u2")[:, :, None], 3, axis=2)
    assert np.array_equal(
        prepared_pixels(png(WIDTH, HEIGHT, 16, 2, png_rows(colour))),
        prepared_pixels(png(WIDTH, HEIGHT, 16, 0, png_rows(SIXTEEN.astype(">u2")))),
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiff_of_either_byte_order(order: Literal["<", ">"]) -> None:
    got = prepared_pixels(tiff(order, SIXTEEN.astype(np.uint16), {}))
    assert np.array_equal(got, grey_to_rgb(SIXTEEN >> 8))


def test_sixteen_bit_tiff_where_white_is_zero() -> None:
    got = prepared_pixels(tiff("<", SIXTEEN.astype(np.uint16), {262: 0}))
    assert np.array_equal(got, grey_to_rgb(255 - (SIXTEEN >> 8)))


def test_twelve_bit_tiff_uses_its_whole_range() -> None:
    twelve = SIXTEEN >> 4
    first, second = twelve[:, 0::2], twelve[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8)
    got = prepared_pixels(tiff("<", twelve.astype(np.uint16), {258: 12}, packed.tobytes()))
    assert np.array_equal(got, grey_to_rgb(twelve >> 4))


def test_cmyk_becomes_rgb() -> None:
    ink = Image.fromarray(255 - PICTURE).split()
    cmyk = Image.merge("CMYK", (*ink, Image.new("L", ink[0].size, 0)))
    assert np.array_equal(prepared_pixels(encode(cmyk, "TIFF")), PICTURE)
    jpeg = prepared_pixels(encode(cmyk, "JPEG", quality=95))  # Adobe's inverted kind
    assert np.abs(jpeg.astype(int) - PICTURE).mean() < 6


def test_ycbcr_becomes_rgb() -> None:
    got = prepared_pixels(encode(Image.fromarray(PICTURE).convert("YCbCr"), "TIFF"))
    assert np.abs(got.astype(int) - PICTURE).mean() < 6


# Alpha, on white


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[:, :, None] / 255
    return colour * share + 255 * (1 - share)


def with_alpha(mode: str) -> Image.Image:
    image = Image.fromarray(PICTURE).convert("LA" if mode in ("LA", "La") else "RGBA")
    image.putalpha(Image.fromarray(ALPHA))
    return image.convert(mode) if image.mode != mode else image


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGBA", "PNG", {}),
        ("RGBA", "TIFF", {}),
        ("RGBA", "WEBP", {"lossless": True, "exact": True}),
        ("LA", "PNG", {}),
        ("LA", "TIFF", {}),
    ],
)
def test_alpha_is_flattened_on_white(mode: str, kind: str, options: dict[str, Any]) -> None:
    got = prepared_pixels(encode(with_alpha(mode), kind, **options))
    grey = np.asarray(Image.fromarray(PICTURE).convert("L"))
    expected = on_white(grey_to_rgb(grey) if mode == "LA" else PICTURE, ALPHA)
    assert np.abs(got - expected).max() <= 1
    assert (got[:, 0] == 255).all()
    assert np.array_equal(got[:, -1], (grey_to_rgb(grey) if mode == "LA" else PICTURE)[:, -1])


@pytest.mark.parametrize(("mode", "samples"), [("RGBa", 4), ("La", 2)])
def test_premultiplied_alpha_of_a_tiff(mode: str, samples: int) -> None:
    """ExtraSamples 1, associated alpha, which Pillow reads and writes as a mode of its own."""
    values = np.asarray(with_alpha("RGBA"))[:, :, :samples].astype(int)
    values[:, :, -1] = ALPHA
    colour = values[:, :, :-1] * ALPHA[:, :, None] // 255
    strip = np.concatenate([colour, ALPHA[:, :, None]], axis=2).astype(np.uint8).tobytes()
    bits = {258: 8, 277: samples, 262: 2 if samples == 4 else 1, 338: 1}
    got = prepared_pixels(tiff_of_bytes(strip, bits))
    expected = on_white(np.broadcast_to(values[:, :, :-1], (HEIGHT, WIDTH, 3)), ALPHA)
    assert np.abs(got - expected).max() <= 2


def tiff_of_bytes(strip: bytes, tags: dict[int, int]) -> bytes:
    return tiff("<", np.zeros((HEIGHT, WIDTH), np.uint8), tags, strip)


def test_palette_with_an_alpha_for_each_entry() -> None:
    few = Image.fromarray(PICTURE).quantize(16)
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    got = prepared_pixels(encode(few, "PNG", transparency=levels.tobytes()))
    assert np.abs(got - on_white(np.asarray(few.convert("RGB")), levels[np.asarray(few)])).max() <= 1


def test_palette_with_alpha_beside_it() -> None:
    few = Image.fromarray(PICTURE).quantize(16)
    palette = np.asarray((few.getpalette() or []) + [0] * 768, dtype=np.uint16)[:768].reshape(256, 3).T.ravel() * 257
    strip = np.stack([np.asarray(few), ALPHA], axis=2).tobytes()
    plain = tiff_of_bytes(strip + palette.astype("<u2").tobytes(), {258: 8, 277: 2, 262: 3, 338: 2, 279: len(strip)})
    tag = struct.pack("<HHII", 320, 3, 768, 8 + len(strip))
    start = struct.unpack("<I", plain[4:8])[0]
    (count,) = struct.unpack("<H", plain[start : start + 2])
    entries: list[bytes] = [plain[start + 2 + 12 * n :][:12] for n in range(count)] + [tag]
    entries.sort(key=lambda entry: int.from_bytes(entry[:2], "little"))
    file = plain[:start] + struct.pack("<H", count + 1) + b"".join(entries) + bytes(4)
    assert Image.open(io.BytesIO(file)).mode == "PA"
    assert np.abs(prepared_pixels(file) - on_white(np.asarray(few.convert("RGB")), ALPHA)).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_palette_with_one_transparent_entry(kind: str) -> None:
    few = Image.fromarray(PICTURE).quantize(16)
    clear = int(np.asarray(few)[0, 0])
    got = prepared_pixels(encode(few, kind, transparency=clear))
    hidden = np.asarray(few) == clear
    assert (got[hidden] == 255).all()
    assert np.array_equal(got[~hidden], np.asarray(few.convert("RGB"))[~hidden])
    assert 0 < hidden.mean() < 1


def test_one_transparent_colour() -> None:
    clear = PICTURE[3, 5]
    got = prepared_pixels(
        png(WIDTH, HEIGHT, 8, 2, png_rows(PICTURE), chunk(b"tRNS", struct.pack(">3H", *clear.tolist())))
    )
    hidden = (clear == PICTURE).all(axis=2)
    assert np.array_equal(got, np.where(hidden[:, :, None], 255, PICTURE))
    assert hidden.any()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_one_transparent_grey_at_every_depth(depth: int) -> None:
    """The transparent grey is black's neighbour (black itself at 1 bit), so that white means transparent only."""
    highest, clear = 2**depth - 1, min(1, 2**depth - 2)
    values = (COLUMNS % (highest + 1) if depth < 8 else COLUMNS) % max(highest, 2)
    if depth == 16:
        rows = png_rows(values.astype(">u2"))
    else:
        bits = np.unpackbits(values.astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - depth :]
        rows = png_rows(np.packbits(bits.reshape(HEIGHT, -1), axis=1))
    got = prepared_pixels(png(WIDTH, HEIGHT, depth, 0, rows, chunk(b"tRNS", struct.pack(">H", clear))))
    expected = values >> 8 if depth == 16 else values * 255 // highest
    assert np.array_equal(got, grey_to_rgb(np.where(values == clear, 255, expected)))


def test_a_transparent_sixteen_bit_colour() -> None:
    deep = (PICTURE.astype(np.uint16) << 8 | 37).astype(">u2")
    clear = chunk(b"tRNS", struct.pack(">3H", *deep[3, 5].tolist()))
    got = prepared_pixels(png(WIDTH, HEIGHT, 16, 2, png_rows(deep), clear))
    hidden = (PICTURE[3, 5] == PICTURE).all(axis=2)
    assert np.array_equal(got, np.where(hidden[:, :, None], 255, PICTURE))


# Orientation: from stored to upright pixels, by EXIF's words for row 0 and column 0 (EXIF 2.32, 4.6.5 A)

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    data[0x010F] = "a maker"
    return data


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "TIFF lzw", "JPEG", "AVIF"])
def test_all_orientations(kind: str, orientation: int) -> None:
    options: dict[str, dict[str, Any]] = {
        "WEBP": {"lossless": True},
        "TIFF lzw": {"compression": "tiff_lzw"},
        "JPEG": {"quality": 95, "subsampling": 0},
        "AVIF": {"quality": 95},
    }
    file = encode(PICTURE, kind.split(maxsplit=1)[0], exif=exif(orientation), **options.get(kind, {}))
    prepared = prepare(file, RULE, LIMITS)
    expected = UPRIGHT[orientation](PICTURE)
    assert (prepared.height, prepared.width) == expected.shape[:2] == (prepared.pixel_height, prepared.pixel_width)
    difference = np.abs(pixels(prepared).astype(int) - expected)
    assert difference.mean() < 6 if kind in ("JPEG", "AVIF") else difference.max() == 0


def test_the_eight_orientations_are_told_apart() -> None:
    """So the test above proves something: any two differ far more than a lossy format changes a picture."""
    pictures = [turn(PICTURE) for turn in UPRIGHT.values()]
    for number, one in enumerate(pictures):
        for other in pictures[:number]:
            assert one.shape != other.shape or np.abs(one.astype(int) - other).mean() > 30
    for channels in ([2, 1, 0], [1, 0, 2], [0, 2, 1]):
        assert np.abs(PICTURE[:, :, channels].astype(int) - PICTURE).mean() > 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "damaged", [b"Exif\0\0nothing here", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_damaged_exif_is_ignored(kind: str, damaged: bytes) -> None:
    plain, broken = encode(PICTURE, kind), encode(PICTURE, kind, exif=damaged)
    assert broken != plain
    assert np.array_equal(prepared_pixels(broken), prepared_pixels(plain))


def test_damaged_exif_of_an_avif_is_ignored_and_its_rotation_kept() -> None:
    whole = encode(PICTURE, "AVIF", exif=exif(6))
    broken = whole.replace(b"MM\0*", b"????").replace(b"II*\0", b"????")
    assert broken != whole
    assert np.array_equal(prepared_pixels(broken), prepared_pixels(whole))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    assert np.array_equal(prepared_pixels(encode(PICTURE, "PNG", exif=exif(orientation))), PICTURE)


# The first picture


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF", "MPO", "AVIF"])
def test_only_the_first_picture_counts(kind: str) -> None:
    first, *others = (Image.fromarray(smooth_noise(WIDTH, HEIGHT, seed)) for seed in range(3))
    options: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "MPO": {"quality": 95}, "AVIF": {"quality": 95}}
    several = encode(first, kind, save_all=True, append_images=others, **options.get(kind, {}))
    assert getattr(Image.open(io.BytesIO(several)), "n_frames", 1) == 3
    if kind == "GIF":
        assert np.array_equal(prepared_pixels(several), np.asarray(Image.open(io.BytesIO(several)).convert("RGB")))
    difference = np.abs(prepared_pixels(several).astype(int) - PICTURE)
    assert difference.mean() < 8 if kind in ("GIF", "MPO", "AVIF") else difference.max() == 0


def test_a_damaged_index_of_further_pictures_costs_nothing() -> None:
    several = encode(PICTURE, "MPO", save_all=True, append_images=[Image.fromarray(PICTURE[::-1])])
    count = several.index(b"MPF\0") + several[several.index(b"MPF\0") :].index(b"\x01\xb0")
    damaged = several[:count] + b"\x03\xb0" + several[count + 2 :]
    assert np.array_equal(prepared_pixels(damaged), prepared_pixels(several))


# Size


@pytest.mark.parametrize("size", [(200, 133), (31, 40), (640, 480), (1, 1), (3, 500), (1500, 1100)])
def test_resize_is_bicubic_to_the_models_size(size: tuple[int, int]) -> None:
    source = Image.fromarray(smooth_noise(*size))
    prepared = prepare(encode(source, "PNG"), RULE, LIMITS)
    target = RULE.target(*size)
    assert (prepared.width, prepared.height) == size
    assert (prepared.pixel_width, prepared.pixel_height) == target
    assert prepared.pixels == source.resize(target, Image.Resampling.BICUBIC).tobytes()


def test_a_turned_picture_is_resized_as_displayed() -> None:
    source = smooth_noise(300, 90)
    prepared = prepare(encode(source, "PNG", exif=exif(6)), RULE, LIMITS)
    upright = Image.fromarray(np.ascontiguousarray(UPRIGHT[6](source)))
    assert (prepared.width, prepared.height) == (90, 300)
    assert prepared.pixels == upright.resize(RULE.target(90, 300), Image.Resampling.BICUBIC).tobytes()


# Refusals


def test_too_many_bytes_by_one() -> None:
    file = encode(PICTURE, "PNG")
    prepare(file, RULE, Limits(max_bytes=len(file), max_source_pixels=10**6))
    failure = refusal(file, limits=Limits(max_bytes=len(file) - 1, max_source_pixels=10**6))
    assert failure.code == "image_too_large"
    assert str(len(file)) in failure.detail


def test_too_many_pixels_by_one() -> None:
    file = encode(PICTURE, "PNG")
    prepare(file, RULE, Limits(max_bytes=10**6, max_source_pixels=WIDTH * HEIGHT))
    failure = refusal(file, limits=Limits(max_bytes=10**6, max_source_pixels=WIDTH * HEIGHT - 1))
    assert failure.code == "image_too_many_pixels"
    assert f"{WIDTH} x {HEIGHT}" in failure.detail


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "BMP", "JPEG", "AVIF"])
def test_header_size_is_checked_in_every_format(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    file = encode(PICTURE, kind)
    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    failure = refusal(file, limits=Limits(max_bytes=10**6, max_source_pixels=WIDTH * HEIGHT - 1))
    assert failure.code == "image_too_many_pixels"


def test_our_limit_decides_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for kind in ("PNG", "JPEG", "AVIF", "GIF", "BMP"):
        assert prepared_pixels(encode(PICTURE, kind)).shape == (HEIGHT, WIDTH, 3)
    for kind in ("WEBP", "TIFF"):  # stopped by Pillow at twice its limit: refused with the same code
        assert refusal(encode(PICTURE, kind)).code == "image_too_many_pixels"


def test_a_gif_frame_larger_than_its_screen_counts_in_full() -> None:
    gif = bytearray(encode(PICTURE, "GIF"))
    gif[6:10] = struct.pack("<HH", 1, 1)
    failure = refusal(bytes(gif), limits=Limits(max_bytes=10**6, max_source_pixels=1000))
    assert failure.code == "image_too_many_pixels"


@pytest.mark.parametrize("size", [(2010, 10), (10, 2010)])
def test_extreme_aspect(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    file = encode(smooth_noise(*size), "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    assert refusal(file).code == "image_aspect"


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(PICTURE[:, :, 0].astype(np.float32)),
        Image.fromarray(PICTURE[:, :, 0].astype(np.int32)),
        Image.fromarray(PICTURE).convert("LAB"),
    ],
    ids=["float", "32 bit", "LAB"],
)
def test_pixels_without_a_defined_conversion(image: Image.Image) -> None:
    failure = refusal(encode(image, "TIFF"))
    assert failure.code == "image_mode"
    assert image.mode in failure.detail


WHOLE = {
    "JPEG": encode(PICTURE, "JPEG"),
    "JPEG progressive": encode(PICTURE, "JPEG", progressive=True, exif=exif(6)),
    "PNG": encode(PICTURE, "PNG", exif=exif(6)),
    "WEBP": encode(PICTURE, "WEBP", exif=exif(6)),
    "WEBP lossless": encode(with_alpha("RGBA"), "WEBP", lossless=True),
    "AVIF": encode(PICTURE, "AVIF"),
    "BMP": encode(PICTURE, "BMP"),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_cut_file_never_gives_another_picture(kind: str) -> None:
    whole, end = WHOLE[kind], {"JPEG": 2, "PNG": 12}.get(kind, 0)
    expected = prepared_pixels(whole)
    cuts = {1, 2, 3, *range(4, len(whole), max(1, len(whole) // 60)), *range(len(whole) - 16, len(whole))}
    codes = {}
    for cut in sorted(cuts):
        try:
            difference = (prepared_pixels(whole[:cut]) != expected).any(axis=2)
        except RowFailure as failure:
            codes[cut] = failure.code
            assert cut < len(whole) - end  # a picture that lacks only its end marker is complete
        else:
            blocks = [np.ptp(where) for where in difference.nonzero() if len(where)]
            assert not blocks or (kind == "JPEG" and max(blocks) < 24 and cut >= len(whole) - end - 8)
    assert set(codes.values()) <= {"image_truncated", "image_corrupt", "image_format"}
    if kind != "AVIF":  # libavif calls some cuts a parsing error
        assert all(code == "image_truncated" for cut, code in codes.items() if cut > len(whole) // 2)


def test_data_after_the_end_is_allowed() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        file = encode(PICTURE, kind)
        assert np.array_equal(prepared_pixels(file + b"tail" * 9), prepared_pixels(file))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_a_jpeg_that_ends_in_its_middle_is_refused_and_what_follows_a_whole_one_is_not(options: dict[str, Any]) -> None:
    file = encode(PICTURE, "JPEG", quality=95, **options)
    middle = len(file) * 2 // 3
    broken = file[:middle].rstrip(b"\xff") + b"\xff\xd9" + file[middle + 2 :]
    for padding in (b"", bytes(4000)):
        assert refusal(broken + padding).code == "image_truncated"
    noise = np.random.default_rng(1).bytes(5000)
    for after in (file, noise, noise + b"\xff\xd9", b"\0\0\0\x18ftypmp42" + noise, bytes(5000)):
        assert np.array_equal(prepared_pixels(file + after), prepared_pixels(file))


def test_zeros_in_place_of_a_png_s_end_cost_no_picture() -> None:
    whole = WHOLE["PNG"]
    assert np.array_equal(prepared_pixels(whole[:-12] + bytes(512)), prepared_pixels(whole))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"\n <!DOCTYPE html><html>", "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'{"error": "not found"}', "JSON"),
        (base64.b64encode(encode(PICTURE, "PNG")), "base64 text"),
        (gzip.compress(encode(PICTURE, "PNG")), "gzip"),
        (b"PK\3\4" + bytes(50), "zip"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\0\0\0\x18ftypisom" + bytes(50), r"a video \(MP4 or QuickTime\)"),
        ("Käse".encode(), "plain text"),
        (bytes(2000), "zeros"),
        (bytes(range(128, 255)), "of an unknown kind"),
    ],
)
def test_bytes_that_are_no_image_are_told_by_their_kind(content: bytes, says: str) -> None:
    failure = refusal(content)
    assert failure.code == "image_format" and re.fullmatch(f"the bytes are {says}", failure.detail)


@pytest.fixture(scope="module")
def extra() -> dict[str, bytes]:
    """The picture in the formats that the extra `formats` reads."""
    import pillow_heif
    import pillow_jxl  # noqa: F401  (registers itself)

    pillow_heif.register_heif_opener()
    image, boxed, jpeg, turned = Image.fromarray(PICTURE), io.BytesIO(), io.BytesIO(), io.BytesIO()
    image.save(jpeg, "JPEG", quality=95)
    Image.open(jpeg).save(boxed, "JXL", lossless_jpeg=True)
    stream = encode(PICTURE, "JXL", lossless=True)
    image.getexif()[ExifTags.Base.Orientation] = 6
    image.save(turned, "HEIF", quality=95)
    return {
        "HEIC": encode(PICTURE, "HEIF", quality=95),
        "HEIC turned": turned.getvalue(),
        "JXL": stream,
        "JXL in boxes": jxl_boxes(stream),
        "JXL of a JPEG": boxed.getvalue(),
    }


def jxl_boxes(stream: bytes) -> bytes:
    """A codestream in a container, split in two parts with a comment between them."""
    parts = [(b"JXL ", b"\r\n\x87\n"), (b"ftyp", b"jxl \0\0\0\0jxl "), (b"jxlp", bytes(4) + stream[:50])]
    parts += [(b"xml ", b"<x/>"), (b"jxlp", b"\x80\0\0\1" + stream[50:])]
    return b"".join(struct.pack(">I", 8 + len(content)) + name + content for name, content in parts)


@pytest.mark.parametrize("kind", ["HEIC", "HEIC turned", "JXL", "JXL in boxes", "JXL of a JPEG"])
def test_heic_and_jpeg_xl_are_read(extra: dict[str, bytes], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prepared_pixels(extra[kind])
    expected = prepared_pixels(encode(PICTURE, "PNG", **({"exif": exif(6)} if kind == "HEIC turned" else {})))
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() == 0 if kind in ("JXL", "JXL in boxes") else difference.mean() < 8
    few = replace(LIMITS, max_source_pixels=100)
    with pytest.raises(RowFailure) as refused:
        prepare(extra[kind], RULE, few)
    assert refused.value.code == "image_too_many_pixels"
    for cut in range(1, len(extra[kind]) // 2, 97):
        assert refusal(extra[kind][:cut]).code in ("image_truncated", "image_corrupt", "image_format")
    for name in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, name, None)
    failure = refusal(extra[kind])
    assert failure.code == "image_format" and "pip install 'caprl_ray[formats]'" in failure.detail


def test_a_damaged_heic_or_jpeg_xl_is_a_failed_row_or_a_picture(extra: dict[str, bytes]) -> None:
    noise = random.Random(1)
    for kind, whole in extra.items():
        for _ in range(60):
            content = bytearray(whole)
            for _ in range(3):
                content[noise.randrange(len(content))] = noise.randrange(256)
            with suppress(RowFailure):
                prepare(bytes(content), RULE, LIMITS)
        assert kind


@pytest.mark.parametrize(
    ("bits", "size"),
    [
        ("1 00000 001", (8, 8)),  # in eights, square
        ("1 11111 000 00111", (64, 256)),
        ("0 00 000000111 000 01 0000000000001", (2, 8)),
        ("0 11 111111111111111111111111111111 111", (2**31, 2**30)),
        ("0 10 000000001001100000 101", (1082, 609)),
    ],
)
def test_the_size_of_a_jpeg_xl_is_read_from_its_header(bits: str, size: tuple[int, int]) -> None:
    fields = [field[::-1] for field in bits.split()] + ["1"]  # each from its lowest bit; then: all defaults
    stream = "".join(fields)
    content = int(stream[::-1], 2).to_bytes(16, "little")
    assert jpeg_xl.size(b"\xff\x0a" + content) == size


def test_damage_is_not_called_truncation() -> None:
    file = WHOLE["PNG"]
    start = file.index(b"IDAT") + 4
    assert refusal(file[:start] + b"\xff" * 40 + file[start + 40 :]).code == "image_corrupt"


def test_zero_sides() -> None:
    assert refusal(png(0, 5, 8, 2, b"")).code == "image_corrupt"
    gif = bytearray(encode(PICTURE, "GIF"))
    gif[6:10] = bytes(4)
    frame = gif.index(b",\0\0\0\0" + struct.pack("<HH", WIDTH, HEIGHT))
    gif[frame + 5 : frame + 9] = bytes(4)
    assert refusal(bytes(gif)).code == "image_corrupt"


def test_memory_and_our_own_errors_are_not_the_rows_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", no_memory)
    with pytest.raises(MemoryError):
        prepare(WHOLE["PNG"], RULE, LIMITS)


def test_failures_repeat_nothing_of_the_file() -> None:
    secret = b"AKIASECRET"
    results = [outcome(file[:at] + secret + file[at + 10 :]) for file in WHOLE.values() for at in range(20, 320, 10)]
    details = [result.detail for result in results if isinstance(result, RowFailure)]
    assert len(details) > 50
    assert all("SECRET" not in detail and len(detail) < 80 for detail in details)


def test_process_wide_settings_stay() -> None:
    for file in WHOLE.values():
        prepare(file, RULE, LIMITS)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3


SMALL = smooth_noise(40, 25)
SEEDS = [
    encode(SMALL, "JPEG", exif=exif(6)),
    encode(SMALL, "PNG", exif=exif(5)),
    encode(Image.fromarray(SMALL).quantize(8), "PNG", transparency=b"\0\x80"),
    encode(SMALL, "PNG", save_all=True, append_images=[Image.fromarray(SMALL[::-1])]),
    encode(SMALL, "WEBP"),
    encode(SMALL, "AVIF"),
    encode(SMALL, "GIF", save_all=True, append_images=[Image.fromarray(SMALL[::-1])]),
    encode(SMALL, "TIFF", exif=exif(7)),
    encode(SMALL, "TIFF", compression="tiff_lzw"),
    encode(SMALL, "BMP"),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    file = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(len(file), 300) if draw(st.booleans()) else len(file)))
        new = draw(st.binary(max_size=6))
        file[at : at + draw(st.sampled_from([len(new), len(new), 0, 9]))] = new
    return bytes(file[: draw(st.integers(0, len(file)))] if draw(st.integers(0, 9)) == 0 else file)


@settings(max_examples=600, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(damaged())
def test_damaged_bytes_fail_as_rows_or_give_pictures_of_the_right_size(file: bytes) -> None:
    result = outcome(file)
    if isinstance(result, RowFailure):
        assert result.code in FAILURE_CODES
        assert result.code.startswith("image_")
    else:
        size = result.pixel_width, result.pixel_height
        assert size == RULE.settled(result.width, result.height)
        assert len(result.pixels) == size[0] * size[1] * 3


@cache
def page_of_text(ink: str, paper: str, subsampling: int) -> bytes:
    """1600 x 1200 pixels of letters 10 to 32 pixels high. Scaling damages these most."""
    page = Image.new("RGB", (1600, 1200), paper)
    draw, top = ImageDraw.Draw(page), 6
    for height, lines in ((10, 8), (12, 8), (14, 8), (18, 8), (24, 4), (32, 4)):
        for _ in range(lines):
            words = "The quick brown fox jumps over the lazy dog 0123456789 (Sphinx of black quartz) " * 3
            draw.text((10, top), words, fill=ink, font=ImageFont.load_default(height))
            top += height * 4 // 3
    return encode(page, "JPEG", quality=90, subsampling=subsampling)


PHOTOGRAPHS = {path.stem: path.read_bytes() for path in (Path(__file__).parent / "photographs").glob("*.jpg")}
PAGES = {
    "black on white, 4:2:0": partial(page_of_text, "black", "white", 2),
    "black on white, 4:4:4": partial(page_of_text, "black", "white", 0),
    "light on dark, 4:2:0": partial(page_of_text, "#ffd890", "#101840", 2),
    "light on dark, 4:4:4": partial(page_of_text, "#ffd890", "#101840", 0),
}


def seen_as(width: int, height: int, reduction: float) -> SizeRule:
    return SizeRule(factor=None, min_pixels=0, max_pixels=int(width * height / reduction**2), max_aspect=200)


@pytest.mark.parametrize(
    "reduction", [3.41, 3.47, 5, 6.81, 13.61]
)  # the least for a half, a quarter and an eighth, too
@pytest.mark.parametrize(
    ("make", "mean", "most"),
    [
        *(pytest.param(partial(bytes, jpeg), 1.3, 25, id=name) for name, jpeg in PHOTOGRAPHS.items()),
        *(pytest.param(draw, 3.2, 45, id=name) for name, draw in PAGES.items()),
    ],
)
def test_a_jpeg_decoded_at_a_fraction_is_close_to_a_resize_of_all_pixels(
    make: Callable[[], bytes], mean: float, most: int, reduction: float
) -> None:
    jpeg = make()
    whole = Image.open(io.BytesIO(jpeg))
    prepared = prepare(jpeg, seen_as(*whole.size, reduction), LIMITS)
    expected = whole.resize((prepared.pixel_width, prepared.pixel_height), Image.Resampling.BICUBIC)
    difference = np.abs(pixels(prepared).astype(int) - np.asarray(expected))
    assert (prepared.width, prepared.height) == whole.size
    assert 0 < difference.mean() < mean and difference.max() <= most


def test_a_jpeg_of_which_less_would_be_left_is_decoded_whole() -> None:
    for jpeg in PHOTOGRAPHS.values():
        whole = Image.open(io.BytesIO(jpeg))
        prepared = prepare(jpeg, seen_as(*whole.size, 3.3), LIMITS)
        expected = whole.resize((prepared.pixel_width, prepared.pixel_height), Image.Resampling.BICUBIC)
        assert prepared.pixels == expected.tobytes()


ODD = Image.open(io.BytesIO(PHOTOGRAPHS["rocket"])).crop((0, 0, 639, 427))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_jpeg_decoded_at_a_fraction_is_turned_and_keeps_its_place(
    orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an odd size ends half a pixel beyond the picture. After a turn, that may be at another side."""
    jpeg = encode(ODD, "JPEG", quality=90, exif=exif(orientation))
    rule = seen_as(*ODD.size, 3.5)
    fast = prepare(jpeg, rule, LIMITS)
    monkeypatch.setattr("caprl_ray.prepare.decode.DECODED_OVER_SEEN", 1000)
    whole = prepare(jpeg, rule, LIMITS)
    assert (fast.width, fast.height) == (whole.width, whole.height)
    assert (fast.width, fast.height) == (ODD.size if orientation < 5 else ODD.size[::-1])
    difference = np.abs(pixels(fast).astype(int) - pixels(whole))
    assert 0 < difference.mean() < 1.3 and difference.max() <= 25


def test_a_jpeg_decoded_at_a_fraction_has_the_same_pixels_by_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = encode(ODD, "JPEG", exif=exif(6))
    rule = seen_as(*ODD.size, 3.5)
    whole = prepare(jpeg, rule, LIMITS)
    monkeypatch.setattr("caprl_ray.prepare.decode.MOST_AT_ONCE", 0)
    monkeypatch.setattr("caprl_ray.prepare.decode.BAND_PIXELS", 3000)
    assert prepare(jpeg, rule, LIMITS) == whole


@pytest.mark.parametrize(
    "file",
    [
        encode(smooth_noise(333, 222), "PNG"),
        encode(smooth_noise(333, 222)[:, :, 0], "TIFF"),
        encode(Image.fromarray(smooth_noise(333, 222)).quantize(9), "PNG", transparency=3),
        encode(Image.fromarray(smooth_noise(333, 222)).convert("RGBA").rotate(45), "WEBP", lossless=True),
        encode(Image.fromarray(smooth_noise(333, 222)[:, :, 0] > 99), "TIFF"),
        encode(Image.fromarray(smooth_noise(333, 222)).convert("CMYK"), "TIFF"),
        png(84, 56, 16, 0, png_rows(SIXTEEN.astype(">u2")), chunk(b"tRNS", b"\x40\0")),
        tiff("<", SIXTEEN.astype(np.uint16), {262: 0}),
        encode(smooth_noise(84, 56), "PNG"),
    ],
    ids=["RGB", "L", "P", "RGBA", "1", "CMYK", "16 bit", "16 bit TIFF", "of the model's size"],
)
def test_a_large_picture_by_bands_has_the_same_pixels(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(file, RULE, LIMITS)
    monkeypatch.setattr("caprl_ray.prepare.decode.MOST_AT_ONCE", 0)
    monkeypatch.setattr("caprl_ray.prepare.decode.BAND_PIXELS", 3000)
    assert prepare(file, RULE, LIMITS) == whole


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_large_picture_by_bands_is_turned(orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    file = encode(smooth_noise(333, 222), "PNG", exif=exif(orientation))
    whole = prepare(file, RULE, LIMITS)
    monkeypatch.setattr("caprl_ray.prepare.decode.MOST_AT_ONCE", 0)
    monkeypatch.setattr("caprl_ray.prepare.decode.BAND_PIXELS", 3000)
    bands = prepare(file, RULE, LIMITS)
    assert (bands.width, bands.height) == (whole.width, whole.height)
    assert np.abs(pixels(bands).astype(int) - pixels(whole)).max() <= 2  # it is resized in the other order
