"""Checks of a caption's length, and of how its decoding ended."""

import re
from dataclasses import dataclass
from typing import ClassVar

from caprl_ray.quality.caption import Caption
from caprl_ray.quality.check import Check, threshold

# Scripts that put no spaces between words: Han, kana, Thai, Lao, Khmer, Burmese.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_UNSPACED_PER_WORD = 2
_LETTER = re.compile(r"[^\W_]")
_LONGEST_WORD = 12  # characters; a text of few but very long words is garbage, not short
# Up to this length a text of marks only is empty: a full stop, an ellipsis, a dash, a pair of quotes, an empty fence.
_FEW = 12


def word_count(caption: Caption) -> int:
    """The number of words. Two characters of a script without spaces count as a word."""
    unspaced = 0 if caption.text.isascii() else len(_UNSPACED.findall(caption.text))
    return len(caption.words) + unspaced // _UNSPACED_PER_WORD


@dataclass(frozen=True, kw_only=True)
class Truncated(Check):
    """Decoding reached `sampling.max_tokens`, so the caption is cut off."""

    name: ClassVar = "truncated"
    severe: ClassVar = True
    spares: ClassVar = "Captions that end without a full stop, as tables, lists and code do."
    causes: ClassVar = "`sampling.max_tokens` is too small for dense pictures, or the caption loops."
    remedy: ClassVar = (
        "Raise `sampling.max_tokens` if few of them also have the flag `loop`; `quality.at_end: trim` cuts the rest."
    )

    def found(self, caption: Caption) -> bool:
        return caption.finish_reason == "length"


@dataclass(frozen=True, kw_only=True)
class Empty(Check):
    """There is no text: nothing, white space, or a few marks without a letter or a digit."""

    name: ClassVar = "empty"
    severe: ClassVar = True
    spares: ClassVar = "A single word or number (the check `too_short` flags those)."
    causes: ClassVar = "The model ends at once: a wrong chat template, or a picture that shows nothing."
    remedy: ClassVar = "Check the prompt with `preflight`; look at the pictures."

    def found(self, caption: Caption) -> bool:
        text = caption.text.strip()
        return len(text) <= _FEW and not _LETTER.search(text)


@dataclass(frozen=True, kw_only=True)
class TooShort(Check):
    """The caption has fewer words than a description needs."""

    name: ClassVar = "too_short"
    spares: ClassVar = (
        "Text in scripts without spaces, where two characters count as a word; captions that are `empty`."
    )
    causes: ClassVar = "The prompt asks for little, or the picture shows little."
    remedy: ClassVar = "Ask for detail in the prompt, or set `too_short.words` to what you want."

    words: int = threshold(
        4, 1, 2000, "A caption with fewer words is flagged.", "cosmos-curator flags captions of fewer than 4 words"
    )

    def found(self, caption: Caption) -> bool:
        if len(caption.words) >= self.words or len(caption.text) >= self.words * _LONGEST_WORD:
            return False
        return word_count(caption) < self.words and bool(_LETTER.search(caption.text))


@dataclass(frozen=True, kw_only=True)
class TooLong(Check):
    """The caption is longer than the longest one that CapRL rewards."""

    name: ClassVar = "too_long"
    spares: ClassVar = "Captions that read out long markdown or tables: they are usually much shorter."
    causes: ClassVar = "The caption reads out a page of text or a large table, or a loop was not detected."
    remedy: ClassVar = "Read some. If such captions are not wanted, lower `sampling.max_tokens`."

    tokens: int = threshold(
        3072,
        16,
        1_000_000,
        "A caption with more tokens is flagged.",
        "CapRL++'s reward for length is 1 up to 2,048 tokens and 0 at 3,072",
    )

    def found(self, caption: Caption) -> bool:
        if caption.caption_tokens is not None:
            return caption.caption_tokens > self.tokens
        # Four bytes per token: English has 4 to 5, Chinese 4 (three bytes per character).
        return len(caption.text) > self.tokens and len(caption.text.encode(errors="replace")) > 4 * self.tokens
