"""Leaving out parts of an image's headers never changes its picture, and honest files with large headers are read."""

import random
import struct
import zlib

import pytest
from PIL import Image

from caprl_ray.prepare import headers
from caprl_ray.prepare.decode import Limits, Prepared, prepare
from caprl_ray.prepare.headers import check_scans, without_extras
from tests.hostile.case import RULE
from tests.hostile.images import PICTURE, chunk, cmyk, encode, png_with, segment

LIMITS = Limits(max_bytes=64 * 2**20, max_source_pixels=178_956_970)
TURNED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
RAW_PROFILE = b"\nexif\n%8d\n%s\n" % (len(TURNED), TURNED.hex().encode())


def prepared(image: bytes) -> Prepared:
    return prepare(image, RULE, LIMITS)


def profile() -> list[bytes]:
    return [segment(0xE2, b"ICC_PROFILE\0" + bytes([n + 1, 20]) + bytes(60_000)) for n in range(20)]


@pytest.mark.parametrize("image", [Image.fromarray(PICTURE), cmyk()], ids=["RGB", "CMYK"])
@pytest.mark.parametrize(
    "turned", [[], [segment(0xE1, TURNED)], [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)]]
)
def test_a_jpeg_loses_a_large_profile_and_nothing_else(image: Image.Image, turned: list[bytes]) -> None:
    jpeg = encode(image, "JPEG", quality=95)
    lean = jpeg[:2] + b"".join(turned) + jpeg[2:]
    rich = jpeg[:2] + b"".join([*profile(), *turned, segment(0xFE, b"words")]) + jpeg[2:]
    assert len(rich) > len(lean) + headers.SMALL_HEADER
    assert len(without_extras("JPEG", rich)) == len(lean)
    assert prepared(rich) == prepared(lean)
    assert (prepared(lean).width > prepared(lean).height) == (not turned)


def test_scans_behind_a_photograph_are_not_counted() -> None:
    """Some phones append a video to a photograph."""
    jpeg = encode(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    film = random.Random(1).randbytes(10_000).replace(b"\xff", b"") + b"\xff\xda" * 1000
    assert (jpeg + film).count(b"\xff\xda") * 16_000_000 > headers.MOST_SCANNED
    check_scans(jpeg + film, 4000, 4000)


def test_a_usual_file_is_not_copied() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        file = encode(PICTURE, kind)
        assert without_extras(kind, file) is file


@pytest.mark.parametrize(
    "before",
    [
        chunk(b"eXIf", TURNED[6:]),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_PROFILE)),
        chunk(b"tEXt", b"Raw profile type exif\0" + RAW_PROFILE),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    ],
    ids=["eXIf", "zTXt", "tEXt", "iTXt"],
)
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_a_png_is_turned_by_each_chunk_that_can_say_so(before: bytes, behind: bool) -> None:
    rest = chunk(b"tEXt", b"Comment\0words") + chunk(b"teSt", b"")
    file = png_with(rest)[:-12] + before + png_with()[-12:] if behind else png_with(rest, before)
    assert prepared(file).height > prepared(file).width
    assert rest not in without_extras("PNG", file)


def test_a_gif_with_a_long_comment_and_xmp_is_read() -> None:
    gif = encode(PICTURE, "GIF")
    comment = b"!\xfe" + b"".join(struct.pack("B", 255) + b"w" * 255 for _ in range(1000)) + b"\0"
    start = 13 + 768
    assert prepared(gif[:start] + comment + gif[start:]) == prepared(gif)
