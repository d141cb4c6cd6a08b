"""Complete files that lack only their end marker, and refuse JPEGs that have one in the middle of their pixels.

Decoders rely on end markers. They refuse a JPEG whose last two bytes are missing, although all of its pixels are there.
If the end marker is in the middle, they fill the rest of the picture with grey.
"""

import re
import zlib
from typing import Final

from caprl_ray.errors import RowFailure
from caprl_ray.prepare.headers import is_progressive, png_chunks, scan_starts

# Appended to a JPEG without an end, because the decoder reads a few bytes past the last pixel. From so few zeros it
# makes up one block of pixels at most.
READ_AHEAD: Final = bytes(8)
PNG_END: Final = b"\0\0\0\0IEND\xaeB`\x82"
_EOI: Final = re.compile(rb"\xff\xd9")  # searched for in every JPEG: faster than bytes.find
# Coded data up to an end marker. Each 0xff in it is stuffed, or begins a restart marker, a table or another scan.
_CODED: Final = re.compile(rb"[^\xff]*+(?:\xff++[\0\xd0-\xd7\xc4\xda\xdd\xfe][^\xff]*+)++\xff\xd9\0*+", re.DOTALL)
# Most bytes of a PNG's pixels that are inflated to find their end: those of the largest picture, with 16 bits a sample.
MOST_INFLATED: Final = 8 * 178_956_970 + 2**20
CHUNK: Final = 2**20


def with_end(kind: str, image: bytes) -> bytes:
    """The file, completed if only its end is missing. Raises RowFailure for a JPEG with an end inside its pixels."""
    if kind == "JPEG":
        return _jpeg(image)
    if kind == "PNG" and image.rfind(PNG_END[4:]) < 0:
        return _png(image)
    return image


def _jpeg(image: bytes) -> bytes:
    start = next(scan_starts(image), None)
    if start is None:
        return image
    end = _EOI.search(image, start)
    if end is None:  # a progressive JPEG stays incomplete, because some of its scans may be missing
        return image if is_progressive(image) else image.removesuffix(b"\xff") + READ_AHEAD
    if len(image) > end.end() + len(READ_AHEAD) and _CODED.fullmatch(image, end.end()):
        raise RowFailure("image_truncated", "JPEG with an end marker in the middle of its pixels")
    return image


def _png(image: bytes) -> bytes:
    """The PNG with an IEND chunk, if its pixel data is complete."""
    inflated, total, end = zlib.decompressobj(), 0, 8
    at = 8
    for name, end in png_chunks(image):
        if name == b"IDAT" and not inflated.eof:
            data = image[at + 8 : end - 4]
            while data and total <= MOST_INFLATED:
                try:
                    total += len(inflated.decompress(data, CHUNK))
                except zlib.error:
                    return image
                data = inflated.unconsumed_tail
        if inflated.eof:
            return image[:end] + PNG_END
        at = end
    return image
