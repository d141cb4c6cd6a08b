"""Sanitize untrusted text (dataset values, captions) before it is stored, logged or sent."""

import json
import re

# C0 and C1 control characters (Unicode category Cc) except tab and newline, and surrogates (Cs), which JSON can spell
# and UTF-8 cannot. Everything else is text, including marks that change its direction.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off"})  # YAML 1.1 reads no text in them
_LINE_END = re.compile("\r\n?")


def plain(text: str) -> str:
    """The text without control characters. Every line ends in a single newline."""
    return _UNFIT.sub("", _LINE_END.sub("\n", text))


def quoted(name: str) -> str:
    """A name as it can stand in a flow of YAML between single quotes of a shell."""
    if _NAME.fullmatch(name) and name.lower() not in _WORDS:
        return name
    return json.dumps(name).replace("'", "\\u0027")
