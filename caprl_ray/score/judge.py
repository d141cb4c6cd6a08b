"""Prompts for multiple-choice questions about a caption, and parsing of the answers.

The instruction has the meaning of CapRL's, with the same two worked examples, in other words.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from caprl_ray.recipe.turns import Turns
from caprl_ray.score.metrics import LETTERS, option_letter
from caprl_ray.score.question import CAN_NOT_ANSWER, Question

# The name of this prompt in results. If the text changes, the name must change, because scores of two prompts are not
# comparable.
PROMPT = "caption-questions-1"
OWN_PROMPT = "own instruction"
CAPTION, QUESTION = "{caption}", "{question}"
INSTRUCTION = """Here is the caption of an image that you cannot see. Answer the multiple-choice question about the \
image **from the caption alone**, also where you believe that you know the answer or where the question suggests one.

Leave aside all other knowledge. Assume nothing that the caption neither says nor implies.

Example 1:
Caption: <Caption Start> A woman in a red coat walks a black dog through a snowy park. <Caption End>
Question: What is the color of the dog?
- A) Brown
- B) White
- C) Black
- D) Gray
- E) Can not answer based on the caption

The answer is C.

Example 2:
Caption: <Caption Start> At a parade, a child waves a British flag. <Caption End>
Question: What are the colors of the flag?
- A) Red
- B) Blue
- C) Red, white and blue
- D) White
- E) Can not answer based on the caption

The answer is E.

Now the caption and the question:

Caption: <Caption Start> {caption} <Caption End>
Question: {question}"""
# Measures guessing: neither a caption nor the option "can not answer".
BLIND = """Answer this multiple-choice question about an image that you cannot see. If you do not know, guess.

Question: {question}"""
BEGIN = "The answer is"

# For questions without options.
OPEN = """Here is the caption of an image that you cannot see. Answer the question about the image **from the caption \
alone**, with one word, one number or a short phrase. If the caption does not give the answer, say: Can not answer.

Caption: <Caption Start> {caption} <Caption End>
Question: {question}"""
OPEN_BLIND = """Answer this question about an image that you cannot see, with one word, one number or a short phrase. \
If you do not know, guess.

Question: {question}"""
REFUSAL = "can not answer"

_LAST = "I"  # of the letters that CapRL's server looks for


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A question as shown to a reader: its options in this order, and whether "can not answer" is an option."""

    question: Question
    order: tuple[int, ...]
    can_refuse: bool = True

    @property
    def options(self) -> tuple[str, ...]:
        """The texts of the options, in the order of their letters."""
        texts = tuple(self.question.choices[number] for number in self.order)
        return (*texts, CAN_NOT_ANSWER) if self.can_refuse else texts

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the options."""
        return tuple(LETTERS[: len(self.options)])

    @property
    def right(self) -> str:
        """The letter of the right option."""
        assert self.question.right is not None
        return LETTERS[self.order.index(self.question.right)]

    @property
    def text(self) -> str:
        """The question with its options."""
        lines = (f"- {letter}) {text}" for letter, text in zip(self.letters, self.options, strict=True))
        return "\n".join([self.question.text.strip(), *lines])

    def turns(
        self, caption: str | None, instruction: str | None = None, *, one_letter: bool, system: str | None = None
    ) -> Turns:
        """The prompt. Without a caption it asks for a guess. `one_letter`: nothing but a letter can be answered."""
        template = BLIND if caption is None else instruction or INSTRUCTION
        user = filled(template, caption or "", self.text)
        shared = len(filled(_before_question(template), caption or "", ""))
        choices = self.letters if one_letter else ()
        return Turns(user=user, system=system, begin=BEGIN, choices=choices, shared=shared)

    def correct(self, letter: str) -> float:
        """1 if a letter is the right one."""
        return float(letter == self.right)

    def refused(self, letter: str) -> bool:
        """Whether a letter says that the caption does not give the answer."""
        return self.can_refuse and letter == self.letters[-1]


def open_turns(question: Question, caption: str | None, system: str | None = None) -> Turns:
    """The prompt of a question without options."""
    user = filled(OPEN_BLIND if caption is None else OPEN, caption or "", question.text.strip())
    return Turns(user=user, system=system, begin=BEGIN)


def open_answer(text: str) -> str | None:
    """The first line of an answer, without the full stop behind it; None if there is none."""
    line = text.strip().partition("\n")[0].strip().lstrip(":").strip()
    return line.removesuffix(".").strip() or None


def filled(template: str, caption: str, question: str) -> str:
    """A template with both texts, which may contain braces."""
    parts = re.split(r"(\{caption\}|\{question\})", template)
    return "".join({CAPTION: caption, QUESTION: question}.get(part, part) for part in parts)


def _before_question(template: str) -> str:
    """The lines of a template before the question's; nothing if the caption follows the question."""
    before = template.partition(QUESTION)[0]
    return before[: before.rfind("\n") + 1]


def letter(text: str, shown: Shown, *, constrained: bool) -> str | None:
    """The letter that an answer chooses; None if it chooses none that is there.

    An answer of the sampled mode is the first letter that stands alone, from A to I or to the last option. CapRL's
    server takes the first letter from A to I anywhere, also the B of "Black", and never one from J on.
    """
    found: str | None
    if constrained:
        found = option_letter(text)
    else:
        alone = re.search(rf"(?<![A-Za-z])[A-{max(_LAST, shown.letters[-1])}](?![A-Za-z'])", text)
        found = alone[0] if alone else None
    return found if found in shown.letters else None


def rotations(question: Question, seed: int, most: int | None = None) -> list[tuple[int, ...]]:
    """Orders of a question's options, each a rotation of the last one: one per option, or `most`.

    So every option is in every position once. The first order depends only on seed, image and question.
    """
    count = len(question.choices)
    first = number_of(seed, question) % count
    turned = range(count if most is None else min(most, count))
    return [tuple((first + turn + place) % count for place in range(count)) for turn in turned]


def shuffled(question: Question, seed: int, *more: object) -> tuple[int, ...]:
    """A pseudorandom order of a question's options, determined by the arguments."""
    order = list(range(len(question.choices)))
    random.Random(number_of(seed, question, *more, "order")).shuffle(order)
    return tuple(order)


def number_of(seed: int, question: Question, *more: object) -> int:
    """A pseudorandom number, determined by the arguments."""
    text = repr((seed, question.image, question.id, *more)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=4).digest(), "little") & 0x7FFFFFFF


def chosen(seed: int, question: Question, what: str, share: float) -> bool:
    """Whether a question belongs to a pseudorandom share of questions."""
    return number_of(seed, question, what) < share * 2**31


def position_bias(answers: Sequence[tuple[int, bool]]) -> float | None:
    """Position bias: the accuracy at the best position of the right option minus that at the worst.

    `answers` are pairs of the right option's position and whether the answer was right. None with fewer than two
    positions.
    """
    places: dict[int, list[bool]] = {}
    for place, right in answers:
        places.setdefault(place, []).append(right)
    shares = [sum(right) / len(right) for right in places.values()]
    return max(shares) - min(shares) if len(shares) > 1 else None
