"""The check for text whose bytes were read in the wrong encoding."""

import re
from dataclasses import dataclass
from typing import ClassVar

from caprl_ray.quality.caption import Caption
from caprl_ray.quality.check import Check, threshold

# The second byte of a UTF-8 character, read as Windows-1252 or as Latin-1.
_NEXT = (
    "[\u0080-\u00bf\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d\u2018\u2019\u201c\u201d"
    "\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178]"
)
# UTF-8 read as Windows-1252, by first byte: Latin letters; punctuation such as quotes and dashes; Cyrillic (two pairs,
# because a single one could be a word); emoji; a byte order mark; the replacement character.
_MOJIBAKE = re.compile(
    rf"Ã{_NEXT}|Â[\u00a0-\u00bf]|â(?:€|\u0080)|â{_NEXT}{_NEXT}|(?:[ÐÑ]{_NEXT}){{2}}|ð(?:Ÿ|\u009f){_NEXT}|ï»¿|ï¿½"
    rf"|(?:[ãäåæçèé]{_NEXT}{_NEXT}){{2}}|(?:[ØÙ]{_NEXT}){{2}}|à[¸¹¤¥]{_NEXT}"
)

# The first two characters of all of these. Searching for them first is five times as fast.
_MAY_BE = re.compile(f"[ÃÂâÐÑðïØÙàãäåæçèé]{_NEXT}|â€")


@dataclass(frozen=True, kw_only=True)
class Mojibake(Check):
    """Characters are garbled as in "cafÃ©": UTF-8 that was read in another encoding."""

    name: ClassVar = "mojibake"
    spares: ClassVar = "Accents, other scripts, quotation marks of every language, capitals such as in SÃO PAULO."
    causes: ClassVar = "The model learned from garbled text, or the picture shows garbled text."
    remedy: ClassVar = "Read some. If most come from pictures of garbled text, the captions are right."

    places: int = threshold(1, 1, 1000, "The number of garbled places that are a fault.", "good captions have none")

    def found(self, caption: Caption) -> bool:
        text = caption.text
        if text.isascii() or not _MAY_BE.search(text):
            return False
        return len(_MOJIBAKE.findall(text)) >= self.places
