"""Ask the questions about an image, with the image and without it.

CapRL's way (arXiv 2509.22647, section 3.2, and its code): a small model answers each question four times with the image
and four times without it, with the options in another order each time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from caprl_ray.curate.drafts import Draft
from caprl_ray.recipe.turns import Turns
from caprl_ray.score import judge
from caprl_ray.score.judge import BEGIN, BLIND, filled
from caprl_ray.score.metrics import LETTERS
from caprl_ray.score.question import Question

# The name of these prompts in results. A change of a text is a change of the name.
ANSWER_PROMPT = "image-answers-1"
SEEN = """Answer this multiple-choice question about the image.

Question: {question}"""
NONE = "None of the above"

# How questions are answered, as in CapRL's code, but for the number of tokens: one, which can only be a letter.
ANSWER_SAMPLING: Mapping[str, Any] = {
    "temperature": 0.1,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "max_tokens": 1,
    "repetition_detection": None,
}


def as_question(draft: Draft, image: str, number: int) -> Question:
    """A draft as the question of this number about an image."""
    return Question(
        id=f"{image}#{number}",
        image=image,
        text=draft.question,
        choices=draft.choices,
        right=draft.right,
        metric="choice",
        benchmark="",
    )


def orders(question: Question, times: int, seed: int) -> list[tuple[int, ...]]:
    """An order of the options for each time: every turn of them, over and over, from one that looks random."""
    turned = judge.rotations(question, seed)
    return [turned[number % len(turned)] for number in range(times)]


def with_image(question: Question, order: Sequence[int]) -> Turns:
    """The prompt about an image that is seen. Its last option is none of the question's."""
    return _turns(SEEN, question, order, (NONE,))


def without_image(question: Question, order: Sequence[int]) -> Turns:
    """The prompt about an image that is not seen: only the question's options can be answered."""
    return _turns(BLIND, question, order, ())


def _turns(template: str, question: Question, order: Sequence[int], more: tuple[str, ...]) -> Turns:
    texts = [*(question.choices[number] for number in order), *more]
    lines = (f"- {letter}) {text}" for letter, text in zip(LETTERS, texts, strict=False))
    user = filled(template, "", "\n".join([question.text, *lines]))
    return Turns(user=user, begin=BEGIN, choices=tuple(LETTERS[: len(texts)]))


def chosen(letter: str, order: Sequence[int]) -> int:
    """The number of the option that a letter names in this order; the number of options for none of them."""
    place = LETTERS.index(letter)
    return order[place] if place < len(order) else len(order)
