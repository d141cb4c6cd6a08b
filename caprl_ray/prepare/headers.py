"""Limit the headers of an image file, and remove most of them, before a decoder reads it.

Pillow reads headers one marker, chunk or block at a time and keeps them all. A file of a few megabytes can hold
millions of them. This module removes parts that do not influence the pixels (profiles, texts, comments, animation).
Then neither their size nor damage in them fails the picture. It limits the number of the other parts.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Final

import numpy as np

from caprl_ray.errors import RowFailure

# A JPEG's header of up to this size is not changed. Pillow needs at most a fifth of a second for it.
SMALL_HEADER: Final = 256 * 2**10
# Most segments of a JPEG before its first scan. Real files have up to 255 of a profile, or a depth map of 60 MB in XMP.
MOST_SEGMENTS: Final = 10_000
# A scan of a progressive JPEG can be a few bytes long and still pass over all pixels. Twelve scans are many.
MOST_SCANNED: Final = 2 * 2**30  # pixels times scans
COUNTED_AT_ONCE: Final = 2**20  # bytes
# In files of up to this size, first only the second byte of the scan marker is counted. That takes a third of the time
# of counting both bytes in numpy: 1.5 % of the cost of a picture of 640 x 480. By chance every 256th byte has this
# value, which seldom exceeds the limit in so small a file.
SMALL_FILE: Final = 256 * 2**10
# Most chunks of a PNG that are walked: CHUNKS_OF_ANY_PNG, and one more per BYTES_OF_A_CHUNK bytes of the file. Encoders
# write at least 4 KiB of pixels into each chunk but the last.
CHUNKS_OF_ANY_PNG, BYTES_OF_A_CHUNK = 1000, 1024
# Most blocks of a GIF before its first picture. A block has 255 bytes, or about 60 where XMP is stored as raw text.
MOST_GIF_BLOCKS: Final = 10_000
# Most tags of a TIFF, and most numbers in one tag, which Pillow keeps as a tuple. A TIFF that stores each row of pixels
# by itself has one number a row.
MOST_TAGS, MOST_NUMBERS = 4096, 2**20
# Most bytes of a run-length BMP. Pillow decodes it in Python at a few megabytes a second. Real ones are small.
MOST_BMP_RUNS: Final = 4 * 2**20

_MARKER: Final = re.compile(rb"[^\xff]*\xff+([^\xff])", re.DOTALL)  # Pillow skips the bytes before a marker
_NEXT_SCAN: Final = re.compile(rb"\xff[^\0\xd0-\xd7\xff]", re.DOTALL)  # a marker in coded data, but no restart marker
_SOS, _EOI, _PROGRESSIVE = 0xDA, 0xD9, (0xC2, 0xCA)
_WITHOUT_LENGTH: Final = frozenset([0x01, *range(0xD0, 0xDA)])
_USELESS: Final = frozenset([0, *range(0xE2, 0xEE), 0xEF, 0xFE])  # APPn except JFIF's, EXIF's and Adobe's; comments

_GIF_NEXT, _GIF_EXTENSION = re.compile(rb"[!,;]"), ord("!")

_BMP_RUNS: Final = (b"\1", b"\2")  # biCompression: BI_RLE8, BI_RLE4
_TIFF_BYTES: Final = frozenset({1, 2, 7})  # types that stay bytes: BYTE, ASCII, UNDEFINED

_PNG_CHUNK, _PNG_END = struct.Struct(">I4s"), b"\0\0\0\0IEND\xaeB`\x82"
_PNG_PIXELS: Final = frozenset({b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"eXIf"})
_PNG_TEXTS: Final = frozenset({b"tEXt", b"zTXt", b"iTXt"})
# Texts in which Pillow finds an orientation.
_PNG_ORIENTATION: Final = re.compile(rb"(Raw profile type exif|XML:com\.adobe\.xmp)\0", re.DOTALL)


def without_extras(kind: str, image: bytes) -> bytes:
    """The file, without parts that do not influence its first picture. Raises RowFailure if headers exceed a limit."""
    if kind == "JPEG":
        return _jpeg(image)
    if kind == "PNG":
        return _png(image)
    if kind == "GIF":
        _check_gif(image)
    if kind == "TIFF":
        _check_tiff(image)
    if kind == "BMP" and image[30:31] in _BMP_RUNS and len(image) > MOST_BMP_RUNS:
        raise RowFailure("image_too_large", f"run-length BMP of {len(image)} bytes, at most {MOST_BMP_RUNS}")
    return image


def check_scans(image: bytes, width: int, height: int) -> None:
    """Raise RowFailure for a JPEG whose scans together pass over more pixels than MOST_SCANNED."""
    if len(image) <= SMALL_FILE and image.count(_SOS) * width * height <= MOST_SCANNED:
        return
    if _scan_marks(image) * width * height <= MOST_SCANNED:  # counts those of thumbnails and of appended data too
        return
    for scans, _ in enumerate(scan_starts(image), 1):
        if scans * width * height > MOST_SCANNED:
            raise RowFailure("image_too_many_pixels", f"JPEG of {width} x {height} pixels in {scans} scans or more")


def _scan_marks(image: bytes) -> int:
    """An upper bound of the number of scans. `bytes.count` is five times slower: 3 % of the cost of a small picture."""
    data = np.frombuffer(image, np.uint8)
    first, second = data[:-1], data[1:]
    return sum(
        int(np.count_nonzero((first[at : at + COUNTED_AT_ONCE] == 0xFF) & (second[at : at + COUNTED_AT_ONCE] == 0xDA)))
        for at in range(0, len(first), COUNTED_AT_ONCE)
    )


def _jpeg(image: bytes) -> bytes:
    """The JPEG. A large header loses its useless segments and the bytes outside of segments."""
    if len(image) <= SMALL_HEADER:
        return image
    kept, orientation = [image[:2]], {b"Exif", b"http"}
    for code, start, end in _segments(image):
        if code == _SOS:
            if start <= SMALL_HEADER:
                return image
            return b"".join([*kept, memoryview(image)[start:]])
        segment = image[start:end]
        if code == 0xE1:
            if segment[4:8] in orientation:
                orientation.remove(segment[4:8])
                kept.append(segment)
        elif code not in _USELESS:
            kept.append(segment)
    return b"".join(kept)


def _segments(image: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the code, start and end of each segment, up to the first scan if there is one."""
    at = 2
    for _ in range(MOST_SEGMENTS):
        marker = _MARKER.match(image, at)
        if marker is None:
            return
        code, start, at = marker[1][0], marker.start(1) - 1, marker.end()
        if code != 0 and code not in _WITHOUT_LENGTH:
            length = int.from_bytes(image[at : at + 2], "big")
            if length < 2 and at + 2 <= len(image):
                raise RowFailure("image_corrupt", "JPEG")
            at += length
        yield code, start, at
        if code == _SOS:
            return
    raise RowFailure("image_corrupt", f"JPEG of more than {MOST_SEGMENTS} segments")


def is_progressive(image: bytes) -> bool:
    """Whether a JPEG stores each pixel in several scans."""
    return any(code in _PROGRESSIVE for code, _, _ in _segments(image))


def scan_starts(image: bytes) -> Iterator[int]:
    """Yield the start of the coded data of each scan of the first picture."""
    at = next((end for code, _, end in _segments(image) if code == _SOS), None)
    while at is not None:
        yield at
        code = None
        while code != _SOS:
            marker = _NEXT_SCAN.search(image, at)
            if marker is None or (code := image[marker.start() + 1]) == _EOI:
                return
            at = marker.end()
            if code not in _WITHOUT_LENGTH:
                at += int.from_bytes(image[at : at + 2], "big")


def _png(image: bytes) -> bytes:
    """The PNG with only those chunks that influence the pixels of its default picture."""
    most = CHUNKS_OF_ANY_PNG + len(image) // BYTES_OF_A_CHUNK
    view, at, copied, has_pixels = memoryview(image), 8, 8, False
    kept = [view[:8]]
    for name, end in islice(png_chunks(image), most):
        if name in _PNG_PIXELS or (name in _PNG_TEXTS and _is_orientation(image, at, end)):
            kept.append(view[at:end])
            copied += end - at
            has_pixels = has_pixels or name == b"IDAT"
        at = end
        most -= 1
    if most == 0 and not has_pixels:
        raise RowFailure("image_corrupt", "PNG of too many chunks before its pixels")
    rest = view[at:] if most else _PNG_END  # an animation may have any number of chunks after its first picture
    return image if copied == at and most else b"".join([*kept, rest])


def png_chunks(image: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the name and end of each complete chunk before the IEND chunk."""
    at = 8
    while at + 12 <= len(image):
        size, name = _PNG_CHUNK.unpack_from(image, at)
        at += 12 + size
        if name == b"IEND" or at > len(image):
            return
        yield name, at


def _is_orientation(image: bytes, start: int, end: int) -> bool:
    """Whether a text chunk may hold an orientation and has the right checksum. Pillow fails at a damaged chunk."""
    sound = zlib.crc32(memoryview(image)[start + 4 : end - 4]) == int.from_bytes(image[end - 4 : end], "big")
    return sound and _PNG_ORIENTATION.match(image, start + 8, end) is not None


def _check_gif(image: bytes) -> None:
    """Limit the blocks before the first picture. A byte outside of blocks counts as one: Pillow skips them singly."""
    palette = 3 << (image[10] & 7) + 1 if len(image) > 10 and image[10] > 127 else 0
    at, blocks = 13 + palette, 0
    while blocks <= MOST_GIF_BLOCKS:
        start = _GIF_NEXT.search(image, at)
        if start is None or image[start.start()] != _GIF_EXTENSION:
            blocks += (len(image) if start is None else start.start()) - at
            break
        blocks, at = blocks + start.start() - at, start.start() + 2
        while at < len(image) and image[at] and blocks <= MOST_GIF_BLOCKS:
            at, blocks = at + 1 + image[at], blocks + 1
        at, blocks = at + 1, blocks + 1
    if blocks > MOST_GIF_BLOCKS:
        raise RowFailure("image_corrupt", f"GIF of more than {MOST_GIF_BLOCKS} blocks before its picture")


def _check_tiff(image: bytes) -> None:
    """Limit the tags of the first picture. The plugin refuses a file that ends early."""
    order, big = "<" if image.startswith(b"I") else ">", b"+" in image[:4]
    offset, number, entry, size = ("Q", "Q", "HHQ", 20) if big else ("I", "H", "HHI", 12)
    try:
        (start,) = struct.unpack_from(order + offset, image, 8 if big else 4)
        (tags,) = struct.unpack_from(order + number, image, start)
        first = start + struct.calcsize(order + number)
        counts = [struct.unpack_from(order + entry, image, first + size * n) for n in range(min(tags, MOST_TAGS))]
    except (struct.error, OverflowError):  # OverflowError for an offset of more than 63 bits
        return
    if tags > MOST_TAGS or any(count > MOST_NUMBERS and kind not in _TIFF_BYTES for _, kind, count in counts):
        raise RowFailure("image_corrupt", f"TIFF of more than {MOST_TAGS} tags, or {MOST_NUMBERS} numbers in one")
