"""Images as text in a table: base64, or a `data:` URI (RFC 2397) of base64."""

import binascii
import re
from urllib.parse import unquote

from caprl_ray.errors import RowFailure

# The beginning of an image in base64: JPEG, PNG, GIF, WebP (RIFF), TIFF of either byte order. That of JPEG may also be
# a path, so the whole text must be base64.
_BEGINS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK")
_LEAST = 32  # characters; the smallest possible images take more
_LINE_ENDS = re.compile(r"[\r\n]+")
_DATA_URI = re.compile(r"data:([^,]{0,256}),", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_URL_SAFE = str.maketrans("-_", "+/")


def inline(text: str) -> str | None:
    """A data: URI as it is, or base64 of an image in the standard alphabet, padded and without line ends; None for a
    path."""
    if is_data_uri(text):
        return text
    return _base64(text) if text.startswith(_BEGINS) and len(text) >= _LEAST else None


def is_data_uri(text: str) -> bool:
    """Whether a text begins as a data: URI does."""
    return text[:5].lower() == "data:"


def decode_inline(text: str, max_bytes: int, *, known: bool = False) -> bytes:
    """The bytes of a data: URI or of base64. Raises RowFailure if it is neither, or has more than `max_bytes`.

    `known`: the text comes from `inline`, so its base64, which may have megabytes, is not checked again.
    """
    if is_data_uri(text):
        known = False
        head = _DATA_URI.match(text)
        if head is None or not head[1].lower().endswith(";base64"):
            raise RowFailure("source_refused", "a data: URI without base64")
        text = text[head.end() :].strip()
        text = unquote(text) if "%" in text else text
    if len(text) // 4 * 3 > max_bytes + max_bytes // 16:  # plus line ends: at most one per 64 characters
        raise RowFailure("image_too_large", f"{len(text)} characters of base64")
    plain = text if known else _base64(text)
    if plain is None:
        raise RowFailure("image_corrupt", "not valid base64")
    content = binascii.a2b_base64(plain)
    if len(content) > max_bytes:
        raise RowFailure("image_too_large", f"{len(content)} bytes")
    return content


def _base64(text: str) -> str | None:
    """The text in the standard alphabet, padded and without line ends, or None if it is not base64."""
    plain = _LINE_ENDS.sub("", text).translate(_URL_SAFE)
    if not plain.endswith("=") and len(plain) % 4 in (2, 3):  # RFC 4648, 3.2: padding may be left out
        plain += "=" * (4 - len(plain) % 4)
    return plain if len(plain) % 4 == 0 and _BASE64.fullmatch(plain) else None
