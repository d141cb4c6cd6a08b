"""The check for captions in another language than the recipe wants. It needs the extra `language`.

The sentences at the start and at the end are judged, each alone: a caption that slips into another language does so on
its way. Quotes, tables and code are left out, because they repeat what the image shows.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from caprl_ray.errors import RecipeError
from caprl_ray.quality.caption import TABLE_ROW, Caption, outside_quotes
from caprl_ray.quality.check import Check, threshold

_PART = 600  # characters at the start and at the end, of which _SAMPLE outside quotes are judged
_SAMPLE = 300
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[^\W\d_]+")
_DENSE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_LETTERS_PER_DENSE = 2
# Words that nearly every sentence has and the other languages of this table lack. Where they are a seventh of all
# words, the language is known without the model: 5 microseconds, not 90.
_COMMON = {
    "en": frozenset(("the", "of", "and", "is", "with", "to", "in", "are", "on", "at", "its", "which", "by", "from")),
    "de": frozenset(("der", "die", "und", "das", "ist", "mit", "ein", "eine", "auf", "im", "den", "einem", "sind")),
    "fr": frozenset(("le", "les", "et", "des", "une", "est", "dans", "avec", "sur", "du", "au", "sont", "qui")),
    "es": frozenset(("el", "los", "las", "y", "en", "con", "una", "del", "por", "un", "se", "su", "que")),
    "pt": frozenset(("o", "os", "as", "e", "em", "com", "uma", "do", "da", "na", "no", "um", "ao", "dos")),
    "it": frozenset(("il", "di", "della", "che", "è", "una", "sono", "nel", "gli", "del", "alla", "un", "sullo")),
    "nl": frozenset(("het", "een", "van", "zijn", "met", "op", "en", "de", "te", "naar", "aan", "wordt")),
}
_COMMON_SHARE = 1 / 7
# Languages that are written alike: a caption in one is not flagged where another of its group is wanted.
_ALIKE = (
    *({"zh", "wuu", "yue"}, {"no", "nn", "da"}, {"hr", "bs", "sr"}, {"id", "ms"}, {"en", "pcm"}, {"cs", "sk"}),
    *({"ar", "ary", "arz"}, {"es", "gl", "ext", "an"}, {"pt", "gl"}, {"it", "vec", "lij"}, {"de", "lb"}, {"nl", "af"}),
)
_NO_LANGUAGE = frozenset(("zxx", "und"))


@dataclass(frozen=True, kw_only=True)
class Language(Check):
    """The caption, or its end, is in another language than the recipe wants."""

    name: ClassVar = "language"
    severe: ClassVar = True
    standard: ClassVar = False
    spares: ClassVar = "Quotes, tables and code in other languages; names; captions with little text of their own."
    causes: ClassVar = (
        "The picture's text is in another language and the model goes on in it, or the prompt names none."
    )
    remedy: ClassVar = "Name the language in the prompt, and mark the check `retry`."

    wanted: str
    confidence: float = threshold(
        0.65, 0.3, 1, "How sure the other language must be.", "datatrove's filter by language: 0.65"
    )
    letters: int = threshold(
        100, 20, 10_000, "The fewest letters that are judged.", "below 100 letters the answer is noise"
    )

    def __post_init__(self) -> None:
        known = _identifier().labels
        if _subtag(self.wanted) not in known:
            raise RecipeError(
                f"language: {self.wanted!r} is not known; give a code such as en, zh or de, one of {', '.join(known)}."
            )

    def found(self, caption: Caption) -> bool:
        text = caption.text
        if len(text) < self.letters // _LETTERS_PER_DENSE:
            return False
        if self._is_other(_prose(text[:_PART])[:_SAMPLE]):
            return True
        return len(text) > _SAMPLE and self._is_other(_prose(text[-_PART:])[-_SAMPLE:])

    def _is_other(self, text: str) -> bool:
        wanted = _subtag(self.wanted)
        common = _COMMON.get(wanted)
        if common and _is_plain(text):
            words = text.lower().split()
            if sum(map(common.__contains__, words)) > _COMMON_SHARE * len(words):
                return False
        if len(_LETTER.findall(text)) + (_LETTERS_PER_DENSE - 1) * len(_DENSE.findall(text)) < self.letters:
            return False
        language, confidence = _identifier().classify(text)
        return confidence >= self.confidence and language not in _like(wanted)


def _prose(text: str) -> str:
    if "|" in text or "\t" in text:
        text = TABLE_ROW.sub(" ", text)
    return outside_quotes(text)


def _is_plain(text: str) -> bool:
    """Whether a text has Latin letters only."""
    return text.isascii() or max(text) < "\u0370" or not re.search("[\u0370-\u1fff\u2c00-\ud7ff\uf900-\uffef]", text)


def _subtag(language: str) -> str:
    return language.replace("_", "-").split("-")[0].lower()


@cache
def _like(language: str) -> frozenset[str]:
    return frozenset({language}.union(*(group for group in _ALIKE if language in group))) | _NO_LANGUAGE


@cache
def _identifier() -> Any:
    """The model, which is part of py3langid. Raises RecipeError without the package."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise RecipeError("the check language needs a package: pip install 'caprl_ray[language]'.") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
