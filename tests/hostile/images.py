"""Hostile images, all made here: the repository stores none."""

import io
import struct
import zipfile
import zlib
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import Image

from tests.hostile.case import OK, PICKLED, Case

WIDTH, HEIGHT = 84, 56
PNG_START = b"\x89PNG\r\n\x1a\n"
MIB = 2**20


def smooth_noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Many colours, no symmetry, channels unlike each other, and smooth enough for JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


PICTURE = smooth_noise(WIDTH, HEIGHT)


def encode(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


@cache
def plain(kind: str, **options: Any) -> bytes:
    """The harmless picture."""
    return encode(PICTURE, kind, **options)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *before: bytes) -> bytes:
    """A PNG by hand: `rows` with their filter bytes, `before` the chunks that stand before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return PNG_START + header + b"".join(before) + end


def png_rows(samples: np.ndarray) -> bytes:
    """PNG scanlines without filter, from bytes or big-endian 16 bit samples."""
    return b"".join(b"\0" + row.tobytes() for row in samples)


def png_with(*before: bytes) -> bytes:
    """The harmless picture behind other chunks."""
    return png(WIDTH, HEIGHT, 8, 2, png_rows(PICTURE), *before)


def deflated(size: int) -> bytes:
    """As many zeros as are asked for, in a thousandth of the bytes, without holding them."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join([*parts, packer.flush()])


def text_bombs() -> bytes:
    """Texts and a profile that inflate to gigabytes, in every kind of chunk that can."""
    bomb = deflated(256 * MIB)
    profile = chunk(b"iCCP", b"profile\0\0" + bomb)
    texts = [chunk(b"zTXt", b"Comment\0\0" + bomb), chunk(b"iTXt", b"Title\0\1\0\0\0" + bomb)]
    many = [chunk(b"zTXt", b"k%d\0\0" % n + deflated(MIB)) for n in range(200)]
    return png_with(profile, *texts, *many)


def damaged_texts() -> bytes:
    """A wrong checksum, unknown compression, a text without end, bytes that are no UTF-8, and a damaged profile."""
    wrong = bytearray(chunk(b"tEXt", b"Comment\0words"))
    wrong[-1] ^= 1
    return png_with(
        bytes(wrong),
        chunk(b"zTXt", b"Comment\0\7words"),
        chunk(b"zTXt", b"\xff\xfe"),
        chunk(b"iTXt", b"Title\0\1\0\0\0\xff\xff\xff"),
        chunk(b"iCCP", b"profile without end"),
        chunk(b"gAMA", b""),
        chunk(b"pHYs", b"\0"),
        chunk(b"eXIf", b"no EXIF at all"),
    )


def apng(frames: int) -> bytes:
    """The picture, then further frames of one pixel."""
    control = ">IIIIIHHBB"
    first = chunk(b"fcTL", struct.pack(control, 0, WIDTH, HEIGHT, 0, 0, 1, 30, 0, 0))
    whole = png_with(chunk(b"acTL", struct.pack(">II", frames, 0)), first)
    pixel = zlib.compress(b"\0\0\0\0")
    rest = []
    for number in range(1, 2 * frames - 1, 2):
        rest.append(chunk(b"fcTL", struct.pack(control, number, 1, 1, 0, 0, 1, 30, 0, 0)))
        rest.append(chunk(b"fdAT", struct.pack(">I", number + 1) + pixel))
    return whole[:-12] + b"".join(rest) + whole[-12:]


def gif(frames: int) -> bytes:
    """The picture, then further frames of one pixel."""
    whole = plain("GIF")
    pixel = b"!\xf9\4\0\1\0\0\0" + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return whole[:-1] + pixel * (frames - 1) + b";"


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def frame(marker: int, width: int, height: int, components: int = 1) -> bytes:
    parts = b"".join(bytes([number + 1, 0x11, 0]) for number in range(components))
    return segment(marker, struct.pack(">BHHB", 8, height, width, components) + parts)


SCAN = b"\x01\x01\0"  # of one component, whose tables have the number 0


def lossless_jpeg() -> bytes:
    """SOF3: every sample is its left neighbour plus a difference of category 0, which takes one bit, a zero."""
    table = segment(0xC4, b"\0" + bytes([1, *[0] * 15]) + b"\0")
    scan = segment(0xDA, SCAN + b"\1\0\0") + bytes(WIDTH * HEIGHT // 8)
    return b"\xff\xd8" + frame(0xC3, WIDTH, HEIGHT) + table + scan + b"\xff\xd9"


def arithmetic_jpeg() -> bytes:
    """SOF9: the arithmetic decoder makes some picture of any bytes."""
    tables = segment(0xDB, b"\0" + bytes([16] * 64))
    scan = segment(0xDA, SCAN + b"\0\x3f\0") + bytes(100)
    return b"\xff\xd8" + tables + frame(0xC9, WIDTH, HEIGHT) + scan + b"\xff\xd9"


def jpeg_with(*segments: bytes) -> bytes:
    """The harmless picture behind other segments."""
    whole = plain("JPEG")
    return whole[:2] + b"".join(segments) + whole[2:]


def jpeg_profile(size: int) -> bytes:
    """An ICC profile in as many segments as it takes, which is 255 at most."""
    step = 65_519
    parts = [bytes(min(step, size - at)) for at in range(0, size, step)]
    return jpeg_with(*(segment(0xE2, b"ICC_PROFILE\0" + bytes([n + 1, len(parts)]) + p) for n, p in enumerate(parts)))


def many_scans() -> bytes:
    """A progressive JPEG of 16 million pixels and hundreds of scans, each of which passes over all of them."""
    whole = encode(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * 500 + whole[-2:]


def exif_bomb() -> bytes:
    """Thousands of EXIF entries that all claim the same bytes."""
    entries = b"".join(struct.pack("<HHII", 0x9000 + n % 4096, 7, 60_000, 8) for n in range(5000))
    return jpeg_with(segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 5000) + entries + bytes(4)))


def exif_of(orientations: int) -> bytes:
    """EXIF data in which the orientation is so many numbers."""
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, orientations, 26) + bytes(4 + 2 * orientations)


def tiff_tag_bomb() -> bytes:
    """Bits per sample, of fifteen million samples."""
    whole = tiff_of({273: 8, 279: WIDTH * HEIGHT}, bytes(30_000_000))
    bits = struct.pack("<HHII", 258, 4, 1, 8)
    assert whole.count(bits) == 1
    return whole.replace(bits, struct.pack("<HHII", 258, 3, 15_000_000, 8))


def bmp_runs() -> bytes:
    """Five million runs of a pixel each."""
    header = struct.pack("<IiiHHIIiiII", 40, 2500, 2000, 1, 8, 1, 10_000_000, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 10_001_078, 0, 0, 1078) + header + bytes(1024) + b"\1\0" * 5_000_000


def tiff_of(tags: dict[int, int], data: bytes) -> bytes:
    """A TIFF by hand: `data` at byte 8, and the least tags that there must be."""
    least = {256: WIDTH, 257: HEIGHT, 258: 8, 259: 1, 262: 1, 277: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted((least | tags).items()))
    return (
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(least | tags)) + entries + bytes(4)
    )


def tiff_tile_bomb() -> bytes:
    """A small picture in one tile of 12,000 x 12,000."""
    tile = deflated(144_000_000)
    return tiff_of({259: 8, 322: 12_000, 323: 12_000, 324: 8, 325: len(tile)}, tile)


def tiff_pages(pages: int) -> bytes:
    """The picture, and then the same page again and again."""
    first = bytearray(plain("TIFF"))
    size = len(first)
    parts = [bytes(first)]
    (directory,) = struct.unpack_from("<I", first, 4)
    (count,) = struct.unpack_from("<H", first, directory)
    entries = bytes(first[directory : directory + 2 + 12 * count])
    first[directory + 2 + 12 * count :][:4] = b""
    struct.pack_into("<I", first, directory + 2 + 12 * count, size)
    parts = [bytes(first)]
    for page in range(1, pages):
        following = size + page * (len(entries) + 4) if page < pages - 1 else 0
        parts.append(entries + struct.pack("<I", following))
    return b"".join(parts)


def cmyk() -> Image.Image:
    ink = Image.fromarray(255 - PICTURE).split()
    return Image.merge("CMYK", (*ink, Image.new("L", ink[0].size, 0)))


def sixteen() -> np.ndarray:
    return (np.arange(WIDTH * HEIGHT, dtype=np.uint32) * 65535 // (WIDTH * HEIGHT - 1)).reshape(HEIGHT, WIDTH)


def zip_behind_jpeg() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../payload.py", "open('harm-was-done', 'w')")
        archive.writestr("data.pkl", PICKLED)
    return plain("JPEG") + file.getvalue()


def cut(whole: bytes) -> bytes:
    return whole[: len(whole) * 2 // 3]


def webp_canvas() -> bytes:
    """The largest canvas that a header can state, with a tiny picture in it."""
    picture = plain("WEBP", lossless=True)[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xff\xff\xff" * 2
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(picture)) + b"WEBP" + canvas + picture


OTHER_FORMATS = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 84 56\n(harm-was-done) (w) file\n",
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "psd": b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 56, 84, 8, 3) + bytes(100),
    "heic": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100),
    "heif": b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1heic" + bytes(100),
    "ppm": b"P6\n2 2\n255\n" + bytes(12),
    "wav": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(24),
    "ico": b"\0\0\1\0\1\0" + bytes(50),
    "zip": b"PK\3\4" + bytes(100),
    "pickle": PICKLED,
    "zeros": bytes(1000),
    "byte": b"\xff",
}


DAMAGED = ("heic", "heif")  # formats that are read, with the extra `formats`


def cases() -> list[Case]:
    """Every hostile image."""
    jpeg, rgb = partial(plain, "JPEG"), partial(plain, "PNG")
    return [
        *_sizes(),
        *_damage(),
        *(
            _case(f"{name}_named_jpg", lambda c=c: c, "image_corrupt" if name in DAMAGED else "image_format")
            for name, c in OTHER_FORMATS.items()
        ),
        _case("jpeg_zip_polyglot", zip_behind_jpeg, OK, like=jpeg),
        # what surrounds the pixels
        _case("png_text_bomb", text_bombs, OK, like=rgb),
        _case("png_damaged_texts", damaged_texts, OK, like=rgb),
        _case("png_profile_4mb", lambda: png_with(chunk(b"iCCP", b"p\0\0" + deflated(4 * MIB))), OK, like=rgb),
        _case("png_million_chunks", lambda: png_with(chunk(b"teSt", b"") * 1_000_000), "image_corrupt"),
        _case("png_million_pieces", many_pieces, "image_truncated"),
        _case("jpeg_profile_16mb", partial(jpeg_profile, 255 * 65_519), OK, like=jpeg),
        _case("jpeg_damaged_exif", lambda: jpeg_with(segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f")), OK, like=jpeg),
        _case("jpeg_exif_bomb", exif_bomb, OK, like=jpeg),
        _case("jpeg_million_segments", lambda: jpeg_with(b"\xff\xfe\0\2" * 1_000_000), "image_corrupt"),
        _case("jpeg_padding_10mb", lambda: jpeg_with(b"\xff" * 10_000_000), OK, like=jpeg),
        _case("jpeg_photoshop_20mb", lambda: jpeg_with(photoshop() * 300), OK, like=jpeg),
        _case("gif_million_blocks", lambda: plain("GIF")[:13] + b"!\xfe" + b"\1a" * 1_000_000, "image_corrupt"),
        _case("png_exif_of_30mb", lambda: png_with(chunk(b"eXIf", exif_of(15_000_000))), OK, like=rgb),
        _case("tiff_tag_of_30mb", tiff_tag_bomb, "image_corrupt"),
        _case("tiff_65535_tags", lambda: b"II*\0\x08\0\0\0\xff\xff" + bytes(12) * 65_535, "image_corrupt"),
        _case("bmp_10mb_of_runs", bmp_runs, "image_too_large"),
        # further pictures
        _case("apng_10000_frames", partial(apng, 10_000), OK, like=rgb),
        _case("gif_10000_frames", partial(gif, 10_000), OK, like=partial(plain, "GIF")),
        _case("tiff_10000_pages", partial(tiff_pages, 10_000), OK, like=partial(plain, "TIFF")),
        # kinds of pixels
        _case("jpeg_adobe_cmyk", lambda: encode(cmyk(), "JPEG", quality=95), OK),
        _case("png_16_bit", lambda: png(WIDTH, HEIGHT, 16, 0, png_rows(sixteen().astype(">u2"))), OK),
        _case("tiff_1_bit", lambda: encode(Image.fromarray(PICTURE[:, :, 0] > 120), "TIFF"), OK),
        # libjpeg-turbo 3, which Pillow brings along, decodes both
        _case("jpeg_lossless", lossless_jpeg, OK),
        _case("jpeg_arithmetic", arithmetic_jpeg, OK),
        # decoders that fail as those in C do: tests/poison.py
        _case("decoder_hangs", lambda: jpeg() + b"<sleep with the lock>", "decode_timeout", guarded=True),
        _case("decoder_segfaults", lambda: jpeg() + b"<segfault>", "decode_crash", guarded=True),
    ]


def many_pieces() -> bytes:
    """Pixels in chunks of no byte, before those that have some."""
    return png_with(chunk(b"IDAT", b"") * 1_000_000)


def photoshop() -> bytes:
    """A segment of the most image resources that fit in, all empty."""
    return segment(0xED, b"Photoshop 3.0\0" + (b"8BIM" + bytes(8)) * 5400)


def _sizes() -> list[Case]:
    return [
        _case("png_60000_squared", lambda: png(60_000, 60_000, 8, 2, bytes(3_000_000)), "image_too_many_pixels"),
        _case("jpeg_65500_squared", lambda: b"\xff\xd8" + frame(0xC0, 65_500, 65_500), "image_too_many_pixels"),
        _case("jpeg_500_scans", many_scans, "image_too_many_pixels"),
        _case("gif_65535_squared", lambda: b"GIF89a\xff\xff\xff\xff" + plain("GIF")[10:], "image_too_many_pixels"),
        _case("webp_canvas", webp_canvas, "image_too_many_pixels"),
        _case("bmp_46000_squared", lambda: b"BM" + bmp_header(46_000, 46_000), "image_too_many_pixels"),
        _case(
            "tiff_60000_squared",
            lambda: tiff_of({256: 60_000, 257: 60_000, 273: 8, 279: 9}, b"." * 9),
            "image_too_many_pixels",
        ),
        _case("tiff_tile_12000_squared", tiff_tile_bomb, "image_too_many_pixels"),
        _case("png_1x1", lambda: encode(smooth_noise(1, 1), "PNG"), OK),
        _case("png_1x10000", lambda: encode(smooth_noise(1, 10_000), "PNG"), "image_aspect"),
        _case("png_20000x20", lambda: encode(smooth_noise(20_000, 20), "PNG"), "image_aspect"),
        _case("bytes_65mib", lambda: plain("JPEG") + bytes(65 * MIB), "image_too_large"),
        _case("bytes_none", lambda: b"", "image_empty"),
    ]


def bmp_header(width: int, height: int) -> bytes:
    return struct.pack("<IHHI", 1000, 0, 0, 54) + struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0
    )


def _damage() -> list[Case]:
    return [
        _case("jpeg_truncated", lambda: cut(plain("JPEG")), "image_truncated"),
        _case("png_truncated", lambda: cut(plain("PNG")), "image_truncated"),
        _case("webp_truncated", lambda: cut(plain("WEBP")), "image_truncated"),
    ]


def _case(name: str, content: Any, expected: str, **more: Any) -> Case:
    return Case(name=name, file="image.jpg", content=content, expected=expected, **more)
