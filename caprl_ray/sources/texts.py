"""Text beside an image: decode its bytes, with a flag if that fails.

A text that cannot be used leaves its column empty, but never fails the picture. The row's `flags` then say why.
"""

import codecs
import json
import re

# Flags about the member whose extension follows, as in metadata_undecoded:txt, or about a table's column.
UNDECODED = "metadata_undecoded"  # it is not UTF-8, and no byte order mark tells its encoding
RECODED = "metadata_recoded"  # a byte order mark told its encoding; the mark is left out
INVALID = "metadata_invalid"  # it is not JSON, or not a 64-bit integer; in parquet, it does not fit its column's type
TOO_LARGE = "metadata_too_large"  # the sample's texts are larger than input.max_metadata_bytes

MAX_SHOWN = 80  # characters of an extension in a flag or a detail

# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_INTEGER = re.compile(r"\s*[+-]?[0-9]{1,19}\s*")


def decoded(content: bytes) -> tuple[str | None, str | None]:
    """The decoded text (None if its encoding is unknown) and a flag (None if there is none). Nothing is guessed."""
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    try:
        if encoding is None and 4 * content.count(0) >= len(content) > 0:
            return None, UNDECODED  # UTF-16 without a mark is valid UTF-8, with a zero beside each letter
        return content.decode(encoding or "utf-8"), RECODED if encoding else None
    except UnicodeDecodeError:
        return None, UNDECODED


def is_json(text: str) -> bool:
    """Whether a text is JSON."""
    try:
        json.loads(text, parse_int=str)  # int refuses numbers of more than 4,300 digits
    except (ValueError, RecursionError):
        return False
    return True


def integer(text: str) -> int | None:
    """Parse a text as a 64-bit integer; None if it is not one."""
    value = int(text) if _INTEGER.fullmatch(text) and text.isascii() else None
    return value if value is not None and -(2**63) <= value < 2**63 else None


def shown(extension: str) -> str:
    """An extension for a message: shortened, and escaped to ASCII."""
    return extension[:MAX_SHOWN].encode("unicode_escape").decode("ascii")
