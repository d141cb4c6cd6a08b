"""Checks for captions that repeat their input: the instruction, or the alt text."""

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from caprl_ray.quality.caption import Caption
from caprl_ray.quality.check import Check, threshold

_SENTENCE_END = re.compile(r"(?<=[.!?。！？:：])\s*|\n+")
_WORD = re.compile(r"\w+")
# A sentence of at least this many characters is not repeated by chance. Chinese needs half as many.
_LEAST, _LEAST_DENSE = 15, 8
_DENSE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


@dataclass(frozen=True, kw_only=True)
class PromptEcho(Check):
    """The caption repeats a sentence of its instruction."""

    name: ClassVar = "prompt_echo"
    severe: ClassVar = True
    spares: ClassVar = "Words that the instruction and the caption share; sentences that are also in the alt text."
    causes: ClassVar = "The chat format does not fit the model, or the model is small and the prompt long."
    remedy: ClassVar = "Check the prompt and the model's chat template; mark the check `retry`."

    def found(self, caption: Caption) -> bool:
        if not caption.prompt:
            return False
        written = caption.text.casefold()
        return any(
            sentence in written and sentence not in _folded(caption.alt_text) for sentence in _sentences(caption.prompt)
        )


@dataclass(frozen=True, kw_only=True)
class CopiesAltText(Check):
    """The caption is the alt text and little more."""

    name: ClassVar = "copies_alt_text"
    spares: ClassVar = "Captions that contain the alt text and then describe the image."
    causes: ClassVar = "The prompt holds the alt text, and the model copies it instead of describing the image."
    remedy: ClassVar = "Say in the prompt that the text may be wrong, or leave it out."

    share: float = threshold(
        0.8, 0.3, 1, "The share of the caption's words that are in an alt text of similar length.", "set by hand"
    )
    words: int = threshold(
        4, 1, 1000, "A caption with fewer words is not flagged.", "names such as IMG_2041 are no text"
    )

    def found(self, caption: Caption) -> bool:
        # A caption that is much longer than the alt text also has a text of its own.
        if not caption.alt_text or len(caption.text) * self.share > 1.25 * len(caption.alt_text) + 20:
            return False
        given, written = _folded(caption.alt_text), _folded(caption.text)
        words = _WORD.findall(written)
        if len(words) < self.words and len(_DENSE.findall(written)) < _LEAST_DENSE:
            return False
        if written.rstrip(".") in given:
            return True
        common = Counter(words) & Counter(_WORD.findall(given))
        return len(given) <= 2 * len(written) and common.total() >= self.share * len(words)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


@lru_cache(maxsize=256)
def _sentences(prompt: str) -> tuple[str, ...]:
    """The sentences of an instruction that are long enough to be recognized in a caption."""
    sentences = (_folded(sentence).rstrip(".!?:。！？：") for sentence in _SENTENCE_END.split(prompt))
    return tuple(s for s in sentences if len(s) >= (_LEAST_DENSE if _DENSE.search(s) else _LEAST))
