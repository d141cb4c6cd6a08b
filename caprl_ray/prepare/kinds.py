"""Tell the kind of a file from its first bytes, for the detail of a row whose bytes are not an accepted image.

The signatures are those of the formats' own specifications. Their order matters: some files match several.
"""

import re
from typing import Final

LOOKED_AT: Final = 1024  # bytes

_SIGNATURES: Final[tuple[tuple[str, re.Pattern[bytes]], ...]] = tuple(
    (kind, re.compile(pattern, re.DOTALL | re.IGNORECASE if kind in ("an HTML page", "XML") else re.DOTALL))
    for kind, pattern in (
        ("a JPEG", rb"\xff\xd8\xff"),
        ("a PNG", rb"\x89PNG\r\n\x1a\n"),
        ("a GIF", rb"GIF8[79]a"),
        ("WebP", rb"RIFF.{4}WEBP"),
        ("a TIFF", rb"II[*+]\0|MM\0[*+]"),
        ("a BMP", rb"BM.{4}\0\0\0\0"),
        ("AVIF", rb".{4}ftyp(?:avi[fs]|m[is]f1.{4}(?:.{4}){0,8}?avi[fs])"),
        ("HEIC", rb".{4}ftyp(?:he[iv][cmsx]|m[is]f1)"),
        ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
        ("JPEG 2000", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
        ("a Photoshop file", rb"8BPS\0[\1\2]"),
        ("a Netpbm image", rb"P[1-7][ \t\r\n]"),
        ("an icon (ICO)", rb"\0\0[\1\2]\0[\1-\x20]\0"),
        ("OpenEXR", rb"\x76\x2f\x31\x01"),
        ("DDS", rb"DDS \x7c\0\0\0"),
        ("DICOM", rb".{128}DICM"),
        ("a video (MP4 or QuickTime)", rb".{4}(?:ftyp|moov|mdat|wide|free|skip)"),
        ("a video (Matroska or WebM)", rb"\x1a\x45\xdf\xa3"),
        ("a video (AVI)", rb"RIFF.{4}AVI "),
        ("a Git LFS pointer", rb"version https://git-lfs\.github\.com/spec/"),
        ("gzip", rb"\x1f\x8b"),
        ("bzip2", rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
        ("xz", rb"\xfd7zXZ\0"),
        ("zstd", rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
        ("lz4", rb"\x04\x22\x4d\x18"),
        ("zip", rb"PK[\3\5\7][\4\6\x08]"),
        ("7z", rb"7z\xbc\xaf\x27\x1c"),
        ("RAR", rb"Rar!\x1a\x07"),
        ("a tar archive", rb".{257}ustar"),
        ("parquet", rb"PAR1"),
        ("Arrow", rb"ARROW1"),
        ("HDF5", rb"\x89HDF\r\n\x1a\n"),
        ("a numpy array", rb"\x93NUMPY"),
        ("a pickle", rb"\x80[\2-\5]"),
        ("a PDF", rb"%PDF-"),
        ("an HTML page", rb"(?:\xef\xbb\xbf)?\s*(?:<!--.{0,400}-->\s*)?<(?:!doctype html|html|head|body|script)"),
        ("SVG", rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.{0,400}-->\s*)?(?:<!DOCTYPE svg[^>]*>\s*)?<svg"),
        ("XML", rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|error|[a-z][\w:.-]*[\s>])"),
        ("JSON", rb"(?:\xef\xbb\xbf)?\s*(?:\{\s*[\"}]|\[\s*[\[{\"\d\]])"),
        ("a data URI", rb"data:[a-z]+/[\w.+-]+[;,]"),
    )
)
_BASE64: Final = re.compile(rb"(?:[A-Za-z0-9+/]{4}|[\r\n])*[A-Za-z0-9+/_=-]{0,4}")


def kind(content: bytes) -> str:
    """The kind of the bytes in words that fit after "the bytes are", such as "an HTML page"."""
    front = content[:LOOKED_AT]
    if not front:
        return "none at all"
    if not front.strip(b"\0"):
        return "zeros"
    for name, signature in _SIGNATURES:
        if signature.match(front):
            return name
    if len(front) >= 40 and _BASE64.fullmatch(front):
        return "base64 text"
    return "plain text" if _is_text(front) else "of an unknown kind"


def _is_text(front: bytes) -> bool:
    """Whether the bytes are UTF-8 without control characters. The last character may be cut."""
    try:
        text = front.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(front) - 3:
            return False
        text = front[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)
