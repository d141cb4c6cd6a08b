"""Files without their end: whole pictures are read, and pictures that only look whole are refused.

Decoders go by end markers. A JPEG whose last two bytes are missing is refused although all of its pixels are there, and
one with an end marker in its middle is decoded with grey for the rest.
"""

import re
import zlib
from typing import Final

from caprl_ray.errors import RowFailure
from caprl_ray.prepare.headers import is_progressive, png_chunks, scan_starts

# The decoder reads ahead of the last pixel. With so few zeros behind it, it makes up one block of pixels at most.
READ_AHEAD: Final = bytes(8)
PNG_END: Final = b"\0\0\0\0IEND\xaeB`\x82"
_EOI: Final = re.compile(rb"\xff\xd9")  # searched for in every JPEG: faster than bytes.find
# Coded data: each 0xff is stuffed, or begins a restart marker, a table or a further scan.
_CODED: Final = re.compile(rb"[^\xff]*+(?:\xff++[\0\xd0-\xd7\xc4\xda\xdd\xfe][^\xff]*+)++\xff\xd9\0*+", re.DOTALL)
# Bytes that PNG's pixels may inflate to while their end is looked for: those of the largest picture, in 16 bits.
MOST_INFLATED: Final = 8 * 178_956_970 + 2**20
CHUNK: Final = 2**20


def with_end(kind: str, image: bytes) -> bytes:
    """The file as a decoder can read it to its end. Raises RowFailure for a JPEG that ends inside of its pixels."""
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
    if end is None:  # of a progressive one it cannot be told whether all scans are there
        return image if is_progressive(image) else image.removesuffix(b"\xff") + READ_AHEAD
    if len(image) > end.end() + len(READ_AHEAD) and _CODED.fullmatch(image, end.end()):
        raise RowFailure("image_truncated", "JPEG with an end marker before its end")
    return image


def _png(image: bytes) -> bytes:
    """The PNG with an end, if its pixels have theirs."""
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
