"""Decode compressed image bytes to RGB pixels at exactly the size that the model sees.

Pure functions on untrusted bytes. Before they decode, they check the number of bytes, the first bytes against the list
of formats, the extent of the headers and the size that the header states. Only the first picture of a file is read.
Colour profiles are not applied; the model's own processor does not apply them to an opened image either.

Pillow's process-wide settings are not changed. Plugins are called directly instead of through `Image.open`, which
checks MAX_IMAGE_PIXELS before our own limit and cannot tell a damaged PNG from a text file. Pillow itself still
refuses WebP and TIFF above twice MAX_IMAGE_PIXELS (178,956,970 pixels), whatever our limit.
"""

import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from caprl_ray.errors import RowFailure
from caprl_ray.prepare import extras, jpeg_xl, kinds
from caprl_ray.prepare.ends import with_end
from caprl_ray.prepare.headers import check_scans, without_extras
from caprl_ray.prepare.sizes import SizeRule

# Exceptions that Pillow's plugins raise on damaged files, found by reading the plugins and by mutating files. Most
# raise OSError. Opening raises SyntaxError; the base class converts IndexError, KeyError, TypeError, EOFError and
# struct.error to it. AVIF raises RuntimeError. The others come from plugins that trust a field. MemoryError is missing
# on purpose: it is a fault of the machine, not of the row.
DECODE_ERRORS: Final = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)
_ENDS_EARLY: Final = (EOFError, IndexError, struct.error)

# The EXIF item in an AVIF's item table (ISO/IEC 14496-12, 8.11.6). It is hidden from the plugin, which refuses the
# picture if this item is damaged. Nothing here needs it: an AVIF's container holds the orientation (irot, imir).
_AVIF_EXIF: Final = re.compile(rb"(infe[\2\3].{7}(?:..)?)Exif", re.DOTALL)


def _avif(file: BytesIO) -> ImageFile.ImageFile:
    return AvifImagePlugin.AvifImageFile(BytesIO(_AVIF_EXIF.sub(rb"\1skip", file.getvalue())))


# The allow-list: name, first bytes, and the plugin that reads the format. A file of several JPEGs (MPO) starts with the
# main picture and is read as JPEG. AVIF and HEIC differ by the brands in the first box.
_FORMATS: Final[tuple[tuple[str, re.Pattern[bytes], Callable[[BytesIO], Image.Image]], ...]] = (
    ("JPEG", re.compile(rb"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    ("WebP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    (
        "AVIF",
        re.compile(rb".{4}ftyp(?:avi[fs]|m[is]f1.{4}(?:.{4}){0,8}?avi[fs])", re.DOTALL),
        _avif,
    ),
    (
        "HEIC",
        re.compile(rb".{4}ftyp(?:hei[cmsx]|m[is]f1.{4}(?:.{4}){0,8}?hei[cmsx])", re.DOTALL),
        extras.heic,
    ),
    ("JPEG XL", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), jpeg_xl.decoded),
    ("GIF", re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImagePlugin.TiffImageFile),
    ("BMP", re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
)

_OPAQUE_MODES: Final = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"})
_ALPHA_MODES: Final = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_GREY16_MODES: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})

# EXIF orientation to the transformation that makes the picture upright (EXIF 2.32, tag 0x0112), as in
# PIL.ImageOps.exif_transpose.
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE: Final = frozenset({5, 6, 7, 8})

Extent = tuple[float, float, float, float]  # left, upper, right, lower

# A JPEG can be decoded to fewer pixels (DCT scaling) for a fraction of the cost. The bicubic resize must still reduce
# each side by at least this factor. For a picture of 12 megapixels that the model sees as one, it reduces by 1.74.
# Compared with a resize of all pixels, photographs differ by less than 1.3 grey levels of 255 in the mean and 25
# anywhere, pages of small text by 3.2 and 45 (checked by tests/prepare/test_decode.py). With a factor of 2 or more the
# difference would be smaller, but 12 megapixels would be decoded in full.
DECODED_OVER_SEEN: Final = 1.7
# Pictures of more than MOST_AT_ONCE pixels are converted to RGB in bands, because a decoded pixel takes up to four
# bytes, and each copy as many again.
MOST_AT_ONCE, BAND_PIXELS = 16 * 2**20, 2**20
# Larger EXIF data is ignored. A JPEG's segment has at most 64 KiB.
MOST_EXIF: Final = 2**20
# A tile of a TIFF is decoded whole, however little of it the picture needs. Usual sides are 128 to 1024 pixels.
MOST_TILE: Final = 4096 * 4096


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one source image: `max_bytes` compressed, `max_source_pixels` (width * height) decoded."""

    max_bytes: int
    max_source_pixels: int


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An image as the model sees it.

    `pixels`: RGB, uint8, C order, pixel_height x pixel_width x 3. `width`, `height`: of the source as displayed, after
    its EXIF orientation.
    """

    pixels: bytes
    pixel_width: int
    pixel_height: int
    width: int
    height: int


def prepare(image: bytes, rule: SizeRule, limits: Limits) -> Prepared:
    """Decode the first picture in `image` to upright RGB and resize it, bicubically, to `rule.settled` of its size.

    A picture that already has this size keeps its pixels bit for bit. Raises RowFailure with one of the image_ codes of
    `rows.codes.FAILURE_CODES`.
    """
    with warnings.catch_warnings(action="ignore"):  # Pillow warns about each damaged tag, which would fill the log
        return _prepare(image, rule, limits)


def _prepare(image: bytes, rule: SizeRule, limits: Limits) -> Prepared:
    _check_bytes(image, limits)
    kind, plugin = _format(image)
    image = with_end(kind, image)
    ends_early = _ends_early(kind, image)
    image = without_extras(kind, image)
    if kind == "JPEG XL":  # its plugin decodes at opening, so the size is checked before
        image = jpeg_xl.codestream(image)
        _check_pixels(kind, *jpeg_xl.size(image), limits)
    with _decoding(kind, ends_early):
        picture = plugin(BytesIO(image))
    _check_header(kind, picture, rule, limits)
    if kind == "JPEG":
        check_scans(image, *picture.size)
    if ends_early:
        raise RowFailure("image_truncated", kind)
    stored_size = picture.size
    extent = _decode_smaller(picture, rule) if isinstance(picture, JpegImagePlugin.JpegImageFile) else None
    _decode(kind, picture)
    orientation = _orientation(picture)
    width, height = _turned(orientation, stored_size if extent else picture.size)
    size = rule.settled(width, height)
    with _decoding(kind):  # converting fails too if decoded data is incomplete, for instance without its palette
        pixels = _seen(picture, extent, orientation, size).tobytes()
    return Prepared(pixels=pixels, pixel_width=size[0], pixel_height=size[1], width=width, height=height)


def _decode_smaller(picture: JpegImagePlugin.JpegImageFile, rule: SizeRule) -> Extent | None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8 of its size, if that leaves DECODED_OVER_SEEN times the size to see.

    Returns the part of the decoded picture that the file's pixels cover: it may exclude some of the last column or row.
    """
    width, height = rule.settled(*picture.size)
    drafted = picture.draft(None, (math.ceil(DECODED_OVER_SEEN * width), math.ceil(DECODED_OVER_SEEN * height)))
    return drafted[1] if drafted else None


def _turned(orientation: int, size: tuple[int, int]) -> tuple[int, int]:
    """Convert the size of a stored picture to its upright size, or back: swaps the sides for a quarter turn."""
    width, height = size
    return (height, width) if orientation in _ON_ITS_SIDE else (width, height)


def _check_bytes(image: bytes, limits: Limits) -> None:
    if not image:
        raise RowFailure("image_empty")
    if len(image) > limits.max_bytes:
        raise RowFailure("image_too_large", f"{len(image)} bytes, at most {limits.max_bytes}")


def _format(image: bytes) -> tuple[str, Callable[[BytesIO], Image.Image]]:
    for kind, start, plugin in _FORMATS:
        if start.match(image):
            return kind, plugin
    raise RowFailure("image_format", f"the bytes are {kinds.kind(image)}")


def _ends_early(kind: str, image: bytes) -> bool:
    """Whether a PNG or WebP lacks its end. For other formats the plugin reports it.

    Pillow accepts a PNG without its last chunk, and reports every fault of a WebP alike.
    """
    if kind == "PNG":
        return image.rfind(b"IEND\xaeB`\x82") < 0  # from the end: searching from the start takes 3 % of the total time
    return kind == "WebP" and len(image) < 8 + int.from_bytes(image[4:8], "little")


@contextmanager
def _decoding(kind: str, ends_early: bool = False) -> Iterator[None]:
    """Convert a plugin's exceptions on damaged files to RowFailure. Wrap nothing but calls of Pillow in it."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise RowFailure("image_too_many_pixels", f"{kind}, more than Pillow decodes") from error
    except DECODE_ERRORS as error:
        early = ends_early or "truncated" in str(error).lower()
        early = early or isinstance(error, _ENDS_EARLY) or isinstance(error.__cause__, _ENDS_EARLY)
        raise RowFailure("image_truncated" if early else "image_corrupt", kind) from error


def _check_pixels(kind: str, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_source_pixels:
        detail = f"{kind} of {width} x {height} pixels, at most {limits.max_source_pixels}"
        raise RowFailure("image_too_many_pixels", detail)


def _check_header(kind: str, picture: Image.Image, rule: SizeRule, limits: Limits) -> None:
    """Refuse a picture by its size and mode before it is decoded. Pillow has already refused sides below 1."""
    width, height = picture.size
    _check_pixels(kind, width, height, limits)
    if _tile_pixels(picture) > max(width * height, MOST_TILE):
        raise RowFailure("image_too_many_pixels", f"{kind} of {width} x {height} pixels in tiles that are far larger")
    if picture.mode not in _OPAQUE_MODES | _ALPHA_MODES | _GREY16_MODES:
        raise RowFailure("image_mode", f"{kind} of mode {picture.mode}")
    rule.settled(width, height)


def _tile_pixels(picture: Image.Image) -> int:
    """Pixels of one tile of a TIFF; 0 without tiles."""
    tags = getattr(picture, "tag_v2", {})
    width, height = tags.get(TiffImagePlugin.TILEWIDTH), tags.get(TiffImagePlugin.TILELENGTH)
    return width * height if isinstance(width, int) and isinstance(height, int) else 0


def _decode(kind: str, picture: Image.Image) -> None:
    """Decode the pixels of an opened picture."""
    if isinstance(picture, PngImagePlugin.PngImageFile):
        _match_transparency(picture)
    with _decoding(kind):
        picture.load()


def _seen(picture: Image.Image, extent: Extent | None, orientation: int, size: tuple[int, int]) -> Image.Image:
    """Resize a decoded picture to upright RGB of `size`. It is rotated last, when it has the fewest pixels."""
    stored_size = _turned(orientation, size)
    if picture.width * picture.height > MOST_AT_ONCE:
        rgb = _resized_by_bands(picture, extent, stored_size)
    else:
        rgb = _rgb(picture, _tags(picture)).resize(stored_size, Image.Resampling.BICUBIC, extent)
    turn = _UPRIGHT.get(orientation)
    return rgb if turn is None else rgb.transpose(turn)


def _resized_by_bands(picture: Image.Image, extent: Extent | None, size: tuple[int, int]) -> Image.Image:
    """Resize to RGB of `size` with only one band of rows as RGB at a time: first the width, then the height.

    Pillow resizes in the same two steps, so the pixels are the same.
    """
    _, _, right, bottom = extent or (0, 0, *picture.size)
    narrow = Image.new("RGB", (size[0], picture.height))
    rows = max(1, BAND_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        band = _rgb(picture.crop((0, top, picture.width, min(picture.height, top + rows))), _tags(picture))
        across = band.resize((size[0], band.height), Image.Resampling.BICUBIC, (0, 0, right, band.height))
        narrow.paste(across, (0, top))
    return narrow.resize(size, Image.Resampling.BICUBIC, (0, 0, size[0], bottom))


def _tags(picture: Image.Image) -> Mapping[int, object]:
    """The tags of a TIFF; none for other formats."""
    tags: Mapping[int, object] = getattr(picture, "tag_v2", {})
    return tags


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation still to be applied to a loaded picture; 1 if there is none or the EXIF data is damaged.

    Pillow rotates a TIFF when it loads it, and removes the tag. It reports the rotation in an AVIF's container as EXIF.
    """
    if len(picture.info.get("exif") or b"") > MOST_EXIF:
        return 1
    try:
        value = picture.getexif().get(ExifTags.Base.Orientation)
    except DECODE_ERRORS:
        return 1
    return value if isinstance(value, int) else 1


def _match_transparency(picture: ImageFile.ImageFile) -> None:
    """Scale a PNG's transparent colour (tRNS) to 8 bits a sample, as Pillow scales the pixels. Call it before load.

    Pillow scales 2 and 4 bit greys up and cuts 16 bit colours to their high byte, but leaves the transparent colour at
    the file's depth (PNG specification 11.3.1.1).
    """
    key = picture.info.get("transparency")
    depth = picture.tile[0].args if picture.tile else None
    if isinstance(key, tuple):
        shift = 8 if depth == "RGB;16B" else 0
        picture.info["transparency"] = tuple(value >> shift & 255 for value in key)
    elif isinstance(key, int) and picture.mode == "L":
        highest = {"L;2": 3, "L;4": 15}.get(str(depth), 255)
        picture.info["transparency"] = (key & highest) * (255 // highest)


def _rgb(picture: Image.Image, tags: Mapping[int, object]) -> Image.Image:
    """Convert a loaded picture of an accepted mode to RGB, transparent parts to white. `tags`: those of a TIFF."""
    if picture.mode in _GREY16_MODES:
        return _grey16(picture, tags)
    if picture.has_transparency_data:
        grey = picture.convert("LA") if picture.mode == "La" else picture
        rgba = grey if grey.mode == "RGBA" else grey.convert("RGBA")
        white = Image.new("RGB", picture.size, (255, 255, 255))
        white.paste(rgba, mask=rgba)
        return white
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _grey16(picture: Image.Image, tags: Mapping[int, object]) -> Image.Image:
    """Convert 16 bit grey to RGB by its high byte. Pillow does the same with 16 bit colour, so both kinds agree.

    Black becomes 0 and full white 255. A TIFF of 12 bits a sample uses only 12 of the 16 bits. A TIFF with WhiteIsZero
    is inverted here, because Pillow inverts only 8 bits.
    """
    values = np.asarray(picture)
    grey = (values >> (4 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 8)).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        grey = 255 - grey
    if (key := picture.info.get("transparency")) is not None:
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")
