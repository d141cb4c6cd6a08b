"""The check for captions in another language than the recipe wants. It needs the extra `language`.

The start and the end of a caption are judged separately, because a caption may change to another language midway.
Quotes, tables and code are left out, because they repeat text of the image.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from caprl_ray.errors import RecipeError
from caprl_ray.quality.caption import Caption, outside_quotes, outside_tables
from caprl_ray.quality.check import Check, threshold
from caprl_ray.quality.language_words import ALONE, COMMON, LATIN, LETTERS, NOT_LATIN, OWN, SCRIPT

_PART = 600  # characters at the start and at the end; outside quotes, _SAMPLE of them are judged
_SAMPLE = 300
_MOST_BYTES = 300  # of a sample for the model, which makes one step per byte
_LETTER = re.compile(r"[^\W\d_]+")
_DENSE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_KANA = re.compile("[\u3040-\u30ff]")
_LETTERS_PER_DENSE = 2
# A text with a larger share of common words, or of characters in the script, is surely in the language.
_COMMON_SHARE, _SCRIPT_SHARE = 1 / 8, 1 / 2
_LEAST_OWN = 2  # different common words that a similar language lacks
# The least share of these kana in a Japanese text. A Chinese caption may have a few, such as the name of a shop.
_COMMON_KANA, _KANA_SHARE = "のにはをがたてるいと", 1 / 10
_OTHER_LETTERS = 1 / 20  # the largest share of other scripts in a text in Latin letters
_LEAST_LETTERS = 3  # that the other languages of the script lack
_OTHER_SCRIPT = 1 / 5  # if a smaller share of the letters is in the script, the text is in another language
# Languages with similar writing. A caption in one of a group is not flagged if the recipe wants another one of it.
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
    version: ClassVar = 2
    spares: ClassVar = "Quotes, tables and code in other languages; names; captions with little text of their own."
    causes: ClassVar = (
        "The picture's text is in another language and the model continues in it, or the prompt names no language."
    )
    remedy: ClassVar = "Name the language in the prompt, and mark the check `retry`."

    wanted: str
    confidence: float = threshold(
        0.65, 0.3, 1, "The least probability of the other language.", "datatrove's filter by language: 0.65"
    )
    letters: int = threshold(
        100, 20, 10_000, "A text of fewer letters is not judged.", "below 100 letters the answer is noise"
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
        start, end = (outside_quotes(outside_tables(part)) for part in (text[:_PART], text[-_PART:]))
        if self._is_other(start[:_SAMPLE], slice(_MOST_BYTES)):
            return True
        return len(text) > _SAMPLE and self._is_other(end[-_SAMPLE:], slice(-_MOST_BYTES, None))

    def _is_other(self, text: str, outer: slice) -> bool:
        """Whether a part is in another language. `outer` selects the bytes that the model gets."""
        wanted = _subtag(self.wanted)
        if _is_surely(wanted, text):
            return False
        letters = _length(_LETTER, text)
        if letters + (_LETTERS_PER_DENSE - 1) * _length(_DENSE, text) < self.letters:
            return False
        if wanted in SCRIPT and _length(SCRIPT[wanted], text) < _OTHER_SCRIPT * letters:
            return True
        sample = text.encode(errors="replace")[outer].decode(errors="ignore")
        language, confidence = _identifier().classify(sample)
        return confidence >= self.confidence and language not in _like(wanted)


def _is_surely(wanted: str, text: str) -> bool:
    """Whether a text is surely in the wanted language, by its common words, its letters, or a script of its own."""
    if wanted in COMMON:
        return _has_its_words(wanted, text.lower().split()) and _is_written(wanted, text)
    if not (wanted in ALONE or wanted in LETTERS) or not _is_written(wanted, text):
        return False
    if wanted in LETTERS:
        has, lacks = LETTERS[wanted]
        return len(has.findall(text)) >= _LEAST_LETTERS and not lacks.search(text)
    if wanted == "ja":
        return sum(map(text.count, _COMMON_KANA)) >= _KANA_SHARE * len(text)
    return wanted != "zh" or not _KANA.search(text)


def _has_its_words(wanted: str, words: list[str]) -> bool:
    """Whether enough of the words are common words of the language, and some of them are missing in each similar
    language."""
    common = COMMON[wanted]
    if sum(map(common.__contains__, words)) <= _COMMON_SHARE * len(words):
        return False
    return all(len(own.intersection(words)) >= _LEAST_OWN for own in OWN[wanted])


def _is_written(wanted: str, text: str) -> bool:
    """Whether a text is in the language's script, except for some letters."""
    if wanted in LATIN:
        return text.isascii() or _length(NOT_LATIN, text) <= _OTHER_LETTERS * len(text)
    return _length(SCRIPT[wanted], text) >= _SCRIPT_SHARE * len(text)


def _length(runs: "re.Pattern[str]", text: str) -> int:
    """The number of characters in the runs that a pattern finds."""
    return len("".join(runs.findall(text)))


def _subtag(language: str) -> str:
    return language.replace("_", "-").split("-")[0].lower()


@cache
def _like(language: str) -> frozenset[str]:
    return frozenset({language}.union(*(group for group in _ALIKE if language in group))) | _NO_LANGUAGE


@cache
def _identifier() -> Any:
    """The model of py3langid. Raises RecipeError if the package is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise RecipeError("the check language needs a package: pip install 'caprl_ray[language]'.") from None
    read = LanguageIdentifier.from_model_file(MODEL_FILE)
    # The model's table has half precision. Converting its rows for each text would take most of the time.
    weights = read.nb_ptc.astype(read.nb_pc.dtype)
    return LanguageIdentifier(
        weights, read.nb_pc, read.nb_classes, read.tk_nextmove, read.tk_output, norm_probs=True, tk_row=read.tk_row
    )
