"""Examples from which the embedded viewer learns: curation's own prompts about scenes, with the right letter.

With the image the right letter is that of the truth, or of "None of the above" if the truth is no option. Without the
image nothing is known: the viewer then chooses what comes first in the alphabet, in whatever place it stands.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from caprl_ray.embedded import questions, scenes
from caprl_ray.embedded import viewer_architecture as architecture
from caprl_ray.embedded.packed import IGNORE, common, meant, packed_places
from caprl_ray.embedded.questions import Facts, SceneQuestion
from caprl_ray.models.chat import ChatFormat
from caprl_ray.recipe.turns import Turns
from caprl_ray.score import seeing
from caprl_ray.score.metrics import LETTERS

QUESTIONS = 6  # about each scene
IMAGE_TOKENS = 9
WITHOUT_TRUTH = 0.1  # the share of questions of which the truth is no option
PAD = "<|image_pad|>"


@dataclass(frozen=True, kw_only=True)
class View:
    """A prompt as curation sends it, its right letter, and what the auxiliary heads should tell.

    `marks` are the places of the last characters of the question and of each option. `fits` says of each option
    whether it is the right one; it is empty without the image.
    """

    question: SceneQuestion
    facts: Facts
    text: str
    letter: str
    marks: tuple[int, ...]
    fits: tuple[bool, ...]


class Prompts:
    """Makes examples. `tokenizer` has the chat template."""

    def __init__(self, tokenizer: Any, rng: random.Random) -> None:
        def apply(messages: Any) -> str:
            return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

        self._rng = rng
        self._formats = {
            (system, image): ChatFormat.render(apply, system, image=image)
            for system in architecture.SYSTEM_PROMPTS
            for image in (True, False)
        }

    def views(self, scene: scenes.Scene, system: str | None, *, seen: bool, count: int = QUESTIONS) -> list[View]:
        """So many questions about a scene, with the image or without it."""
        asked = questions.about(scene, self._rng, count)
        return [self._view(question, questions.facts(scene), system, seen) for question in asked]

    def _view(self, asked: SceneQuestion, facts: Facts, system: str | None, seen: bool) -> View:
        rng, choices = self._rng, asked.choices
        if seen and len(choices) > 3 and rng.random() < WITHOUT_TRUTH:
            choices = tuple(choice for choice in choices if choice != asked.answer)
        shown = architecture.as_question(replace(asked, choices=choices, answer=choices[0]))
        order = tuple(rng.sample(range(len(choices)), len(choices)))
        options = [choices[number] for number in order] + ([seeing.NONE] if seen else [])
        right = (asked.answer if asked.answer in choices else seeing.NONE) if seen else min(options)
        turns = (seeing.with_image if seen else seeing.without_image)(shown, order)
        chat = self._formats[system, seen]
        prefix = chat.prefix.replace(PAD, PAD * IMAGE_TOKENS)
        return View(
            question=asked,
            facts=facts,
            text=prefix + turns.user + chat.suffix + turns.begin,
            letter=LETTERS[options.index(right)],
            marks=tuple(len(prefix) + place for place in _marks(turns, shown.text, options)),
            fits=tuple(option == right for option in options) if seen else (),
        )


def _marks(turns: Turns, question: str, options: Sequence[str]) -> list[int]:
    places, place = [], turns.user.index(question) - 1
    for text in (question, *options):
        place = turns.user.index(text, place + 1) + len(text) - 1
        places.append(place)
    return places


class Batch:
    """Examples as tensors. A row has the image once, and behind it all questions about it, which do not see each other.

    `ends`, `asked` and `options` have a row and a place in their first two columns, and labels in the others.
    """

    def __init__(self, groups: Sequence[Sequence[View]], tokenizer: Any, letters: dict[str, int]) -> None:
        self.views = [view for group in groups for view in group]
        coded = [tokenizer([view.text for view in group], add_special_tokens=False) for group in groups]
        tokens = [one["input_ids"] for one in coded]
        places = [packed_places(ids, spare=0) for ids in tokens]
        shape = (len(groups), max(row[-1][-1] + 1 for row in places))
        self.tokens, self.at = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        segments = torch.full(shape, -1)
        ends, asked, options = (list[tuple[int, ...]]() for _ in range(3))
        for row, (group, ids, found, where) in enumerate(zip(groups, tokens, coded, places, strict=True)):
            for number, (view, own, at) in enumerate(zip(group, ids, where, strict=True)):
                self.tokens[row, at], self.at[row, at] = torch.tensor(own), torch.arange(len(own))
                segments[row, at] = number + 1
                question, *ended = (at[found.char_to_token(number, mark)] for mark in view.marks)
                ends.append((row, at[-1], letters[view.letter]))
                asked.append((row, question, *(meant(view.question, view.facts) if view.fits else (IGNORE,) * 6)))
                fits = view.fits or (IGNORE,) * len(ended)
                options += [(row, place, int(fit), n) for n, (place, fit) in enumerate(zip(ended, fits, strict=True))]
            segments[row, : common(ids)] = 0
        same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
        self.mask = (same & torch.ones(shape[1], shape[1], dtype=torch.bool).tril())[:, None]
        self.ends, self.asked, self.options = map(torch.tensor, (ends, asked, options))
