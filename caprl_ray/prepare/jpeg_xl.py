"""Read JPEG XL (ISO/IEC 18181), which needs the extra `formats`. The header is checked here before decoding.

Only the codestream reaches the decoder. The boxes around it (metadata, data to restore an original JPEG) are dropped.
The codestream holds the orientation, and the decoder applies it.
"""

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Final

from PIL import Image

from caprl_ray.errors import RowFailure
from caprl_ray.prepare.extras import missing

CODESTREAM: Final = b"\xff\x0a"
MOST_BOXES: Final = 1000
MOST_EXTRA_CHANNELS: Final = 4  # alpha, depth and the like; each costs as much memory as a colour

_BOX: Final = struct.Struct(">I4s")
# The four ways to store a number, as (bits, offset): the number is the value of the bits plus the offset.
_SIZES: Final = ((9, 1), (13, 1), (18, 1), (30, 1))
_DEPTHS: Final = ((0, 8), (0, 10), (0, 12), (6, 1))
_FLOAT_DEPTHS: Final = ((0, 32), (0, 16), (0, 24), (6, 1))
_CHANNELS: Final = ((0, 0), (0, 1), (4, 2), (12, 1))
_RATIOS: Final = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def codestream(image: bytes) -> bytes:
    """The coded picture without the boxes around it. Raises RowFailure if the file has none."""
    if image.startswith(CODESTREAM):
        return image
    found = b"".join(_parts(image))
    if not found.startswith(CODESTREAM):
        raise RowFailure("image_corrupt", "JPEG XL without a codestream")
    return found


def size(image: bytes) -> tuple[int, int]:
    """Width and height as stored, from a codestream's header. Raises RowFailure unless it is a single still picture."""
    try:
        bits = _Bits(image[2:66])
        width, height = _size(bits)
        _check_metadata(bits)
    except IndexError:
        raise RowFailure("image_truncated", "JPEG XL") from None
    return width, height


def decoded(file: BytesIO) -> Image.Image:
    """Decode a codestream, upright. Raises RowFailure without the extra `formats`, RuntimeError for a damaged one."""
    try:
        from pillow_jxl import Decoder
    except ImportError:
        raise missing("JPEG XL") from None
    _, info, pixels, *_ = Decoder(num_threads=1)(file.getvalue())
    return Image.frombytes(info.mode, (info.width, info.height), pixels)


def _parts(image: bytes) -> Iterator[bytes]:
    """The contents of the boxes that hold the codestream."""
    at = 0
    for _ in range(MOST_BOXES):
        if at + _BOX.size > len(image):
            return
        length, name = _BOX.unpack_from(image, at)
        start = at + _BOX.size
        if length == 1:
            length, start = int.from_bytes(image[start : start + 8], "big"), start + 8
        end = at + length if length else len(image)
        if end < start:
            return
        if name == b"jxlc":
            yield image[start:end]
        elif name == b"jxlp":
            yield image[start + 4 : end]  # after the part's number
        at = end


class _Bits:
    """Reads bits, the lowest of each byte first. Raises IndexError at the end."""

    def __init__(self, content: bytes) -> None:
        self._value = int.from_bytes(content, "little")
        self._left = 8 * len(content)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError
        value = self._value & (1 << count) - 1
        self._value >>= count
        return value

    def number(self, ways: tuple[tuple[int, int], ...]) -> int:
        """Read a number. Two bits select how it is stored: one of four pairs (bits, offset)."""
        count, added = ways[self.take(2)]
        return self.take(count) + added


def _size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)
    height = 8 * (1 + bits.take(5)) if small else bits.number(_SIZES)
    ratio = bits.take(3)
    if ratio:
        across, down = _RATIOS[ratio - 1]
        return height * across // down, height
    return (8 * (1 + bits.take(5)) if small else bits.number(_SIZES)), height


def _check_metadata(bits: _Bits) -> None:
    if bits.take(1):  # all fields have their defaults
        return
    if bits.take(1):
        bits.take(3)  # orientation
        if bits.take(1):
            _size(bits)  # intrinsic size: the size to show it at
        if bits.take(1) or bits.take(1):
            raise RowFailure("image_format", "JPEG XL with a preview or an animation")
    if bits.take(1):
        bits.number(_FLOAT_DEPTHS)
        bits.take(4)
    else:
        bits.number(_DEPTHS)
    bits.take(1)
    if bits.number(_CHANNELS) > MOST_EXTRA_CHANNELS:
        raise RowFailure("image_mode", f"JPEG XL of more than {MOST_EXTRA_CHANNELS} extra channels")
