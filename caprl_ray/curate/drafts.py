"""Parse the questions that a model wrote about an image. Each unusable question has a reason; the others are kept."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from caprl_ray.curate.alike import alike
from caprl_ray.score.metrics import LETTERS, folded
from caprl_ray.score.question import options

FEWEST_OPTIONS = 3  # with two, guessing is right half of the time, and few answers cannot tell it from knowing
LONGEST = 1000  # characters of a question, and of an option; longer ones are descriptions

# The reasons of unusable drafts, in the order of the checks.
CUT_SHORT = "cut_short"
NO_FIELDS = "no_fields"
FEW_OPTIONS = "few_options"
SAME_OPTIONS = "same_options"
ANSWER_OUTSIDE = "answer_outside"
COMBINED_OPTION = "combined_option"
TOO_LONG = "too_long"
TELLS_ANSWER = "tells_answer"
NEAR_DUPLICATE = "near_duplicate"
UNUSABLE = {
    CUT_SHORT: "The text ends within the question.",
    NO_FIELDS: "It is not a JSON object with the texts `question` and `answer` and the list of texts `options`.",
    FEW_OPTIONS: f"It has fewer than {FEWEST_OPTIONS} options, or more options than there are letters.",
    SAME_OPTIONS: "Two of its options are the same, or have the same letter.",
    ANSWER_OUTSIDE: "Its answer is none of its options, or names two of them.",
    COMBINED_OPTION: 'An option is about the others, such as "all of the above", so that their order matters.',
    TOO_LONG: f"The question or an option has more than {LONGEST:,} characters.",
    TELLS_ANSWER: "The question contains the right option, and no other one.",
    NEAR_DUPLICATE: "It asks nearly the same as an earlier question about the image.",
}

_COMBINED = re.compile(
    r"\b(?:all|none|any|both|neither|either|some|two)\s+of\s+(?:the\s+)?(?:above|these|those|them|options?|choices)\b"
    r"|\b(?:both|neither|either)\s+\(?[A-H]\)?\s+(?:and|n?or)\s+\(?[A-H]\)?(?!\w)"
    r"|以上(?:都|皆|全|均)",
    re.IGNORECASE,
)
# The beginning of an object that holds a list of objects, as {"questions": [{
_HOLDS_LIST = re.compile(r'\{(?:(?!"question")[^{}\[\]])*\[\s*(?=\{)')
_SIGNS = re.compile(r"[^\w\s]")


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A usable question about an image. `right` is the index of the right choice; choices have no letters."""

    question: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """The parsed text: questions, and the reasons of unusable ones, each in order."""

    questions: tuple[Draft, ...] = ()
    unusable: tuple[str, ...] = ()


def drafts(text: str, most: int) -> Drafts:
    """Parse at most `most` questions from a text with JSON objects, in a list or one after another.

    Other text around the objects is ignored.
    """
    questions: list[Draft] = []
    unusable: list[str] = []
    for value in _objects(text):
        if len(questions) + len(unusable) == most:
            break
        try:
            draft = _draft(value)
            _refuse(any(_alike(draft, other) for other in questions), NEAR_DUPLICATE)
            questions.append(draft)
        except _Unusable as reason:
            unusable.append(str(reason))
    return Drafts(questions=tuple(questions), unusable=tuple(unusable))


class _Unusable(Exception):
    """A draft is unusable; the text is the reason."""


def _objects(text: str) -> Iterator[dict[str, Any] | str]:
    """The JSON objects in a text, also those in a list within an object; for a broken one, the reason."""
    decoder, place = json.JSONDecoder(), text.find("{")
    while place >= 0:
        if held := _HOLDS_LIST.match(text, place):
            place = held.end()
        try:
            value, end = decoder.raw_decode(text, place)
            yield value
        except (ValueError, RecursionError):
            yield NO_FIELDS if "}" in text[place:] else CUT_SHORT
            end = place + 1 + max(0, text[place + 1 :].find("}"))
        place = text.find("{", end)


def _draft(value: dict[str, Any] | str) -> Draft:
    if isinstance(value, str):
        raise _Unusable(value)
    question: Any = value.get("question")
    answer: Any = value.get("answer")
    choices: Any = value.get("options")
    if isinstance(choices, dict):  # {"A": "red", "B": "blue"}
        choices = [f"{letter}) {text}" for letter, text in choices.items() if isinstance(text, str)]
    if not (_is_text(question) and _is_text(answer) and isinstance(choices, list) and all(map(_is_text, choices))):
        raise _Unusable(NO_FIELDS)
    _refuse(max(map(len, [question, *choices])) > LONGEST, TOO_LONG)
    _refuse(not FEWEST_OPTIONS <= len(choices) < len(LETTERS), FEW_OPTIONS)
    try:
        texts, right = options(choices, answer)
    except ValueError as error:
        raise _Unusable(SAME_OPTIONS if "two of its options" in str(error) else ANSWER_OUTSIDE) from None
    _refuse(len(texts) < FEWEST_OPTIONS, FEW_OPTIONS)
    _refuse(any(map(_COMBINED.search, texts)), COMBINED_OPTION)
    _refuse(_told(question, texts) == [right], TELLS_ANSWER)
    return Draft(question=" ".join(question.split()), choices=texts, right=right)


def _alike(draft: Draft, other: Draft) -> bool:
    return alike(draft.question, draft.choices[draft.right], other.question, other.choices[other.right])


def _told(question: str, choices: Sequence[str]) -> list[int]:
    """The indices of the options whose words occur in the question, in the same order."""
    asked = _spaced(question)
    return [number for number, text in enumerate(choices) if _spaced(text) in asked]


def _spaced(text: str) -> str:
    """The words of a text, with a space on either side of each."""
    return f" {folded(_SIGNS.sub(' ', text))} "


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _refuse(fault: bool, reason: str) -> None:
    if fault:
        raise _Unusable(reason)
