"""Sanitize untrusted text (dataset values, captions) before it is stored, logged or sent."""

import json
import os
import re

# The escapes for bytes of a file's name that are not UTF-8, and for names that look like escapes.
_BYTE = re.compile(r"\\x([0-9a-f]{2})")
_ESCAPED = re.compile(r"[\udc80-\udcff]|\\(?=x[0-9a-f]{2})")
# C0 and C1 control characters (Unicode category Cc) except tab and newline, and surrogates (Cs), which JSON can spell
# and UTF-8 cannot. Everything else is text, including marks that change its direction.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off"})  # YAML 1.1 reads no text in them
_LINE_END = re.compile("\r\n?")


def readable(name: str) -> str:
    """A file's name as valid text. Bytes that are not UTF-8, which Python gives as surrogates, become `\\xe9`.

    A backslash that looks like an escape becomes `\\x5c`. `as_named` returns the name.
    """
    if name.isascii() and "\\" not in name:
        return name
    return _ESCAPED.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", name)


def as_named(text: str) -> str:
    """The name of a local file, from the text that stands for it in an output: the reverse of `readable`."""
    if "\\" not in text:
        return text
    return _BYTE.sub(lambda found: os.fsdecode(bytes([int(found[1], 16)])), text)


def plain(text: str) -> str:
    """The text without control characters. Every line ends in a single newline."""
    return _UNFIT.sub("", _LINE_END.sub("\n", text))


def quoted(name: str) -> str:
    """A name, quoted for a flow collection of YAML within single quotes of a shell."""
    if _NAME.fullmatch(name) and name.lower() not in _WORDS:
        return name
    return json.dumps(name).replace("'", "\\u0027")
