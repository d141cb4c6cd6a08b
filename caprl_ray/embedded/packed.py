"""Examples as tensors, with the labels of the auxiliary heads in the answerer's training."""

from collections.abc import Sequence
from typing import Any

import torch

from caprl_ray.embedded import answerer_architecture as architecture
from caprl_ray.embedded import kinds, questions, scenes
from caprl_ray.embedded.examples import Example
from caprl_ray.embedded.kinds import BACKGROUND, COLOR, COUNT, PLACE, SHAPE, SIZE
from caprl_ray.score.judge import INSTRUCTION
from caprl_ray.score.metrics import LETTERS

IGNORE = -100
# The auxiliary heads predict the values of these attributes. Class 0 means "not stated". Things have the first four.
ATTRIBUTES = (PLACE, SIZE, COLOR, SHAPE, BACKGROUND, COUNT)


class Batch:
    """Examples as tensors, with the labels of the auxiliary heads.

    A row has one caption and after it all questions about it; the mask hides each question from the others. Each row of
    the tensors `ends`, `things`, `asked` and `options` names a token (columns 0 and 1: its row and place in `tokens`)
    and gives its labels (the other columns).
    """

    def __init__(self, groups: Sequence[tuple[Sequence[Example], Sequence[list[int]]]], words: "Words") -> None:
        self.examples = [example for examples, _ in groups for example in examples]
        self._words = words
        self._ends, self._things, self._asked, self._options = (list[tuple[int, ...]]() for _ in range(4))
        places = [_places(tokens) for _, tokens in groups]
        shape = (len(groups), max(row[-1][-1] + 3 for row in places))
        self.tokens, self.positions = torch.full(shape, words.end), torch.zeros(shape, dtype=torch.long)
        segments = torch.full(shape, -1)  # all tokens see segment 0; only its own tokens see any other segment
        for row, ((examples, tokens), at) in enumerate(zip(groups, places, strict=True)):
            for number, (example, ids, own) in enumerate(zip(examples, tokens, at, strict=True)):
                where = [*own, own[-1] + 1, own[-1] + 2]
                self.tokens[row, where] = torch.tensor([*ids, words.letters[example.letter], words.stop])
                self.positions[row, where] = torch.arange(len(where))
                segments[row, where] = number + 1
                self._label_question(row, example, ids, own)
            segments[row, : _common(tokens)] = 0
            self._label_things(row, examples[0], tokens[0])
        same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
        self.mask = (same & torch.ones(shape[1], shape[1], dtype=torch.bool).tril())[:, None]
        self.ends, self.asked, self.options = map(torch.tensor, (self._ends, self._asked, self._options))
        self.things = torch.tensor(self._things or [(0,) * 5])

    def _label_question(self, row: int, example: Example, ids: Sequence[int], at: Sequence[int]) -> None:
        words = self._words
        self._ends.append((row, at[-1], words.letters[example.letter]))
        starts = [place for place, one in enumerate(ids) if one in words.markers]
        self._asked.append((row, at[starts[0] - 1], *_meant(example)))
        last_words = [*(start - 1 for start in starts[1:]), ids.index(words.assistant, starts[-1]) - 1]
        for letter, (place, fits) in enumerate(zip(last_words, example.fits, strict=True)):
            self._options.append((row, at[place], fits, letter))

    def _label_things(self, row: int, example: Example, ids: Sequence[int]) -> None:
        """Label the words for shapes in the caption with the other attributes of their things."""
        caption = ids[: ids.index(self._words.middle)] if self._words.middle in ids else []
        shapes = [place for place, one in enumerate(caption) if one in self._words.shapes]
        things = [thing for thing in example.facts.things if SHAPE in thing]
        for place, thing in zip(shapes, things, strict=True):
            self._things.append((row, place, *(_number(name, thing.get(name)) for name in ATTRIBUTES[:3])))


def _common(tokens: Sequence[list[int]]) -> int:
    """The number of tokens at the beginning that all sequences have in common."""
    return next((n for n, column in enumerate(zip(*tokens, strict=False)) if len(set(column)) > 1), len(tokens[0]) - 1)


def _places(tokens: Sequence[list[int]]) -> list[list[int]]:
    """The place of each token in a row that has the common beginning once. After each question, two places are free."""
    begin = _common(tokens)
    found, used = [], begin
    for one in tokens:
        more = len(one) - begin
        found.append([*range(begin), *range(used, used + more)])
        used += more + 2
    return found


def _number(name: str, found: str | None) -> int:
    return 1 + list(kinds.VALUES[name]).index(found) if found else 0


def _meant(example: Example) -> list[int]:
    """For each attribute, its class in the thing that the question is about. IGNORE for attributes without a label."""
    kind, facts = example.question.kind, example.facts
    if kind.asks in (BACKGROUND, COUNT):
        found = questions.stated_answer(kind, {}, facts)
        return [_number(name, found) if name == kind.asks else IGNORE for name in ATTRIBUTES]
    things = questions.referred(example.question.named, facts)
    thing = things[0] if len(things) == 1 else {}
    return [_number(name, thing.get(name)) for name in ATTRIBUTES[:4]] + [IGNORE, IGNORE]


class Words:
    """The tokens that training looks for."""

    def __init__(self, tokenizer: Any) -> None:
        def of(text: str) -> int:
            (token,) = tokenizer.encode(text, add_special_tokens=False)
            return int(token)

        self.end, self.assistant, self.stop = of(architecture.END), of(architecture.ASSISTANT), of(".")
        self.middle = of(INSTRUCTION.partition("{caption}")[2].partition("{question}")[0])
        self.letters = {letter: of(f" {letter}") for letter in LETTERS}
        self.markers = {of(marker) for marker in architecture.MARKERS}
        self.shapes = {of(f" {shape}") for shape in scenes.SHAPES}
