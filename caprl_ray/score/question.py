"""One question about an image, and the letters of its options."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from caprl_ray.score import metrics
from caprl_ray.score.metrics import LETTERS, folded

# The option that question files may have already. Judging adds its own (judge.py).
CAN_NOT_ANSWER = "Can not answer based on the caption"
MOST_OPTIONS = len(LETTERS) - 1  # one letter is left for CAN_NOT_ANSWER
_LABELLED = re.compile(r"\s*(?:-\s*)?[(\[]?([A-Z])[)\].:]\s*(.+)", re.DOTALL)
_ARTICLE = re.compile(r"\s*A\s+\w")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question, and the right answers.

    `image` is the value by which a caption finds it. `choices` are the options without letters, of which `right` is the
    number of the right one; a question without options has no choices, and `right` is None. `answers` are what `metric`
    compares an answer with. `text` is the question; with `own_prompt` (prism.py) it is the user's turn without image,
    and `system` and `begin` are the other turns. `kind` is the questioner's name for its kind; hashes of questions
    leave it out.
    """

    id: str
    image: str
    text: str
    metric: str
    benchmark: str
    choices: tuple[str, ...] = ()
    right: int | None = None
    answers: tuple[str, ...] = ()
    own_prompt: bool = False
    system: str | None = None
    begin: str = ""
    kind: str = field(default="", repr=False)


def options(choices: Sequence[str], answer: str) -> tuple[tuple[str, ...], int]:
    """The texts of options without their letters, and the number of the right one.

    `answer` is its letter or its text. Options may have letters, such as "A) red", all or none of them. Raises
    ValueError in words that follow the question's place.
    """
    labelled = [_LABELLED.fullmatch(choice) for choice in choices]
    if all(labelled):
        letters = [found[1] for found in labelled if found]
        texts = [found[2].strip() for found in labelled if found]
        if len(set(letters)) < len(letters):
            raise ValueError(f"two of its options have the letter {_first_twin(letters)}")
    else:
        texts, letters = [choice.strip() for choice in choices], list(LETTERS[: len(choices)])
    kept = [(letter, text) for letter, text in zip(letters, texts, strict=False) if folded(text) != _NO_OPTION]
    right = _right(kept, answer)
    texts = [text for _, text in kept]
    if not 2 <= len(texts) <= MOST_OPTIONS:
        raise ValueError(f"it has {len(texts)} options; it should have 2 to {MOST_OPTIONS}")
    if len({folded(text) for text in texts}) < len(texts):
        raise ValueError(f"two of its options are {_first_twin([folded(text) for text in texts])!r}")
    return tuple(texts), right


_NO_OPTION = folded(CAN_NOT_ANSWER)


def _right(kept: Sequence[tuple[str, str]], answer: str) -> int:
    """The number of the option that the answer names, by its letter or by its text.

    The text wins: in "A cat" the A is an article. So it is where no option has this text.
    """
    letter = None if _ARTICLE.match(answer) else metrics.option_letter(answer)
    by_letter = [number for number, (own, _) in enumerate(kept) if own == letter]
    by_text = [number for number, (_, text) in enumerate(kept) if _same(text, answer)]
    if not by_letter and not by_text:
        there = ", ".join(f"{own}) {text[:40]}" for own, text in kept)
        raise ValueError(f"its answer {answer[:80]!r} is none of its options, {there}")
    if by_letter and by_text and by_letter != by_text and metrics.is_letter(answer):
        raise ValueError(f"its answer {answer[:80]!r} is the letter of one option and the text of another")
    return (by_text or by_letter)[0]


def _same(text: str, answer: str) -> bool:
    """Whether both are the same, but for case, white space and a full stop."""
    return folded(text).removesuffix(".") == folded(answer).removesuffix(".")


def _first_twin(values: Sequence[str]) -> str:
    return next(value for value in values if values.count(value) > 1)
