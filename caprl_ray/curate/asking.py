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

# The name of these prompts in results. If a text changes, the name must change.
ANSWER_PROMPT = "image-answers-1"
SEEN = """Answer this multiple-choice question about the image.

Question: {question}"""
NONE = "None of the above"

# Sampling of answers, as in CapRL's code, except that an answer is one token, which can only be a letter.
ANSWER_SAMPLING: Mapping[str, Any] = {
    "temperature": 0.1,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "max_tokens": 1,
    "repetition_detection": None,
}


def as_question(draft: Draft, image: str, number: int) -> Question:
    """A draft as a question. `number` is its position among those of the image."""
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
    """The order of the options in each round: all rotations in turn, starting from a pseudorandom order."""
    turned = judge.rotations(question, seed)
    return [turned[number % len(turned)] for number in range(times)]


def with_image(question: Question, order: Sequence[int]) -> Turns:
    """The prompt with the image. Its last option is "none of the others"."""
    return _turns(SEEN, question, order, (NONE,))


def without_image(question: Question, order: Sequence[int]) -> Turns:
    """The prompt without the image. It has only the question's options."""
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
