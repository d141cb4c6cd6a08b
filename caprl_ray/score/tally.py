"""Count answers by benchmark: one line for each answer, in arrays, so that millions take little memory."""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from caprl_ray.score.metrics import LETTERS
from caprl_ray.score.questions import digest

CAPTION, BLIND, AGAIN = "caption", "blind", "again"  # how a question was asked: column `condition` of an answer
NO_PLACE = -1


@dataclass
class Asked:
    """The answers of one benchmark."""

    images: "array[int]" = field(default_factory=lambda: array("Q"))
    questions: "array[int]" = field(default_factory=lambda: array("Q"))
    blind: "array[int]" = field(default_factory=lambda: array("b"))
    correct: "array[float]" = field(default_factory=lambda: array("d"))  # NaN: not judged
    refused: "array[int]" = field(default_factory=lambda: array("b"))
    places: "array[int]" = field(default_factory=lambda: array("b"))  # where the right option stood
    codes: Counter[str] = field(default_factory=Counter)
    again: int = 0
    same: int = 0

    def add(self, image: int, question: int, answer: Mapping[str, Any]) -> None:
        """Count one answer, with the caption or blind."""
        correct, right = answer["correct"], answer["right"]
        self.images.append(image)
        self.questions.append(question)
        self.blind.append(answer["condition"] == BLIND)
        self.correct.append(float("nan") if correct is None else correct)
        self.refused.append(bool(answer["can_not_answer"]))
        lettered = answer["metric"] == "choice" and right in tuple(LETTERS)
        self.places.append(LETTERS.index(right) if lettered else NO_PLACE)
        if answer["code"] is not None and answer["condition"] == CAPTION:
            self.codes[answer["code"]] += 1


class Tally:
    """The answers of a whole output. `of` has them by benchmark."""

    def __init__(self) -> None:
        self.of: dict[str, Asked] = {}

    def add(self, image: str, answers: Sequence[Mapping[str, Any]]) -> None:
        """Count the answers of one caption. A question that is asked again follows the answer that it repeats."""
        key, before = digest(image), None
        for answer in answers:
            asked = self.of.setdefault(answer["benchmark"], Asked())
            if answer["condition"] == AGAIN:
                asked.again += 1
                asked.same += before is not None and before["parsed"] == answer["parsed"]
                continue
            before = answer if answer["condition"] == CAPTION else before
            asked.add(key, digest(f"{image}\0{answer['question_id']}"), answer)

    def lines(self) -> Iterator[tuple[str, "Lines"]]:
        """The answers as arrays, by benchmark."""
        for name in sorted(self.of):
            yield name, Lines.of(self.of[name])


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Answers as arrays of equal length."""

    images: np.ndarray
    questions: np.ndarray
    blind: np.ndarray
    correct: np.ndarray
    refused: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, asked: Asked) -> "Lines":
        return cls(
            images=np.array(asked.images, np.uint64),
            questions=np.array(asked.questions, np.uint64),
            blind=np.array(asked.blind, bool),
            correct=np.array(asked.correct, float),
            refused=np.array(asked.refused, bool),
            places=np.array(asked.places, np.int8),
        )

    def means(self, *, blind: bool) -> "Means":
        """The mean of each question's answers, over those that were judged."""
        judged = (self.blind == blind) & ~np.isnan(self.correct)
        questions, first, inverse = np.unique(self.questions[judged], return_index=True, return_inverse=True)
        sums = np.bincount(inverse, self.correct[judged], len(questions))
        counts = np.bincount(inverse, minlength=len(questions))
        return Means(questions=questions, images=self.images[judged][first], values=sums / np.maximum(counts, 1))


@dataclass(frozen=True, kw_only=True)
class Means:
    """The value of each question, and its image."""

    questions: np.ndarray
    images: np.ndarray
    values: np.ndarray

    def minus(self, other: "Means") -> "Means":
        """The differences on the questions that both have."""
        both, ours, theirs = np.intersect1d(self.questions, other.questions, return_indices=True)
        return Means(questions=both, images=self.images[ours], values=self.values[ours] - other.values[theirs])
