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
from caprl_ray.embedded.packed import IGNORE, common, packed_places
from caprl_ray.embedded.questions import SceneQuestion
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

    `marks` are the places of the last characters of the question and of each option.
    """

    question: SceneQuestion
    text: str
    letter: str
    options: tuple[str, ...]
    marks: tuple[int, ...]
    seen: bool


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
        return [self._view(question, system, seen) for question in asked]

    def _view(self, asked: SceneQuestion, system: str | None, seen: bool) -> View:
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
            text=prefix + turns.user + chat.suffix + turns.begin,
            letter=LETTERS[options.index(right)],
            options=tuple(options),
            marks=tuple(len(prefix) + place for place in _marks(turns, shown.text, options)),
            seen=seen,
        )


def _marks(turns: Turns, question: str, options: Sequence[str]) -> list[int]:
    places, place = [], turns.user.index(question) - 1
    for text in (question, *options):
        place = turns.user.index(text, place + 1) + len(text) - 1
        places.append(place)
    return places


class Batch:
    """Examples as tensors. A row has the image once, and behind it all questions about it, which do not see each other.

    All tensors but `tokens`, `at` and `mask` have a row and a place in their first two columns, and labels behind them.
    `ends` has the prompts' last tokens and the right letters, `asked` the questions' last tokens, once for each word of
    the answer, `words` the words of the options and whether the answer has them, and `options` the options' last words,
    whether they fit, and their letters.
    """

    def __init__(self, groups: Sequence[Sequence[View]], tokenizer: Any, letters: dict[str, int]) -> None:
        self.views = [view for group in groups for view in group]
        coded = [tokenizer([view.text for view in group], add_special_tokens=False) for group in groups]
        tokens = [one["input_ids"] for one in coded]
        places = [packed_places(ids, spare=0) for ids in tokens]
        shape = (len(groups), max(row[-1][-1] + 1 for row in places))
        self.tokens, self.at = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        segments = torch.full(shape, -1)
        self._ends, self._asked, self._words, self._options = (list[tuple[int, ...]]() for _ in range(4))
        self._article = tokenizer.encode(" a", add_special_tokens=False)[0]
        for row, (group, ids, found, where) in enumerate(zip(groups, tokens, coded, places, strict=True)):
            for number, (view, own, at) in enumerate(zip(group, ids, where, strict=True)):
                self.tokens[row, at], self.at[row, at] = torch.tensor(own), torch.arange(len(own))
                segments[row, at] = number + 1
                self._ends.append((row, at[-1], letters[view.letter]))
                answer = set(tokenizer.encode(f" {view.question.answer}", add_special_tokens=False)) - {self._article}
                if view.seen:
                    question = at[found.char_to_token(number, view.marks[0])]
                    self._asked += [(row, question, word) for word in answer]
                for letter, (text, mark) in enumerate(zip(view.options, view.marks[1:], strict=True)):
                    first, last = (found.char_to_token(number, char) for char in (mark - len(text) + 1, mark))
                    self._label_option(row, view, answer, letter, [(at[n], own[n]) for n in range(first, last + 1)])
            segments[row, : common(ids)] = 0
        same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
        self.mask = (same & torch.ones(shape[1], shape[1], dtype=torch.bool).tril())[:, None]
        self.ends, self.options = torch.tensor(self._ends), torch.tensor(self._options)
        self.asked, self.words = (torch.tensor(some or [(0, 0, 0)]) for some in (self._asked, self._words))

    def _label_option(
        self, row: int, view: View, answer: set[int], letter: int, words: Sequence[tuple[int, int]]
    ) -> None:
        """Label the words of an option, which have a place and a token each."""
        told = view.seen and view.options[letter] != seeing.NONE  # whether none fits is known only at the end
        if told:
            self._words += [(row, place, int(token in answer)) for place, token in words if token != self._article]
        fits = int(view.options[letter] == view.question.answer) if told else IGNORE
        self._options.append((row, words[-1][0], fits, letter))
