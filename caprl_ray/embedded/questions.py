"""Multiple-choice questions about rendered scenes, from what is true of a scene: a questioner that is always right.

`about` asks about a scene, `rows` makes the table that `caprl-ray score` reads, and `told` says what a caption that
states some facts answers: the right option of a perfect reader, who knows nothing but the caption.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caprl_ray.embedded import scenes
from caprl_ray.embedded.scenes import POSITIONS, Scene

COLOR, SHAPE, SIZE, PLACE = "color", "shape", "size", "place"
WHOLE, BACKGROUND, COUNT = "whole", "background", "count"
NUMBERS = ("one", "two", "three", "four", "five")
VALUES: Mapping[str, Sequence[str]] = {
    COLOR: tuple(scenes.COLOURS),
    SHAPE: scenes.SHAPES,
    SIZE: (*scenes.SIZES, "medium"),
    PLACE: tuple(place for row in POSITIONS for place in row),
    BACKGROUND: tuple(scenes.BACKGROUNDS),
    COUNT: NUMBERS,
}
OPTIONS = (3, 4, 4, 5)  # how many a question has; a size has three


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of question: what it asks, by which attributes it names its thing, and its phrasings."""

    asks: str
    by: tuple[str, ...] = ()
    texts: tuple[str, ...]

    @property
    def name(self) -> str:
        """What results call it, such as "color by place"."""
        return f"{self.asks} by {' and '.join(self.by)}" if self.by else self.asks


KINDS = (
    Kind(
        asks=BACKGROUND,
        texts=(
            "What is the color of the background?",
            "What color is the background of the image?",
            "Which color fills the background?",
        ),
    ),
    Kind(
        asks=COUNT,
        texts=(
            "How many shapes are in the image?",
            "How many shapes can be seen?",
            "What is the number of shapes in the image?",
        ),
    ),
    Kind(
        asks=COLOR,
        by=(PLACE,),
        texts=(
            "What is the color of the shape at the {place}?",
            "What color does the shape at the {place} have?",
            "Which color is the shape at the {place} of the image?",
        ),
    ),
    Kind(
        asks=SHAPE,
        by=(PLACE,),
        texts=(
            "Which shape is at the {place}?",
            "What kind of shape can be seen at the {place}?",
            "Which shape is located at the {place} of the image?",
        ),
    ),
    Kind(
        asks=SIZE,
        by=(PLACE,),
        texts=(
            "What is the size of the shape at the {place}?",
            "How large is the shape at the {place}?",
            "What size does the shape at the {place} of the image have?",
        ),
    ),
    Kind(
        asks=WHOLE,
        by=(PLACE,),
        texts=(
            "What is at the {place}?",
            "What can be seen at the {place} of the image?",
            "What is located at the {place} of the image?",
        ),
    ),
    Kind(
        asks=COLOR,
        by=(SHAPE,),
        texts=(
            "What is the color of the {shape}?",
            "What color does the {shape} have?",
            "Which color is the {shape} in the image?",
        ),
    ),
    Kind(
        asks=SIZE,
        by=(SHAPE,),
        texts=(
            "What is the size of the {shape}?",
            "How large is the {shape}?",
            "What size does the {shape} in the image have?",
        ),
    ),
    Kind(
        asks=PLACE,
        by=(SHAPE,),
        texts=(
            "Where is the {shape}?",
            "Where in the image is the {shape} located?",
            "What is the position of the {shape}?",
        ),
    ),
    Kind(
        asks=SHAPE,
        by=(COLOR,),
        texts=(
            "Which shape is {color}?",
            "What is the {color} shape?",
            "What kind of shape is {color} in the image?",
        ),
    ),
    Kind(
        asks=PLACE,
        by=(COLOR,),
        texts=(
            "Where is the {color} shape?",
            "Where in the image is the {color} shape located?",
            "What is the position of the {color} shape?",
        ),
    ),
    Kind(
        asks=PLACE,
        by=(COLOR, SHAPE),
        texts=(
            "Where is the {color} {shape}?",
            "Where in the image is the {color} {shape} located?",
            "What is the position of the {color} {shape}?",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is stated about a scene. An attribute that is not stated is not in a thing; `background` None likewise."""

    background: str | None
    things: tuple[Mapping[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class SceneQuestion:
    """A question about a scene: its text, its options in a random order, and the text of the right one.

    `named` has the attributes by which it names its thing.
    """

    kind: Kind
    named: Mapping[str, str]
    text: str
    choices: tuple[str, ...]
    answer: str


def about(scene: Scene, rng: random.Random, most: int) -> list[SceneQuestion]:
    """`most` questions about a scene, or as many as there are. None is asked twice, and each has one right answer."""
    stated = facts(scene)
    possible = list(_possible(stated))
    return [_question(stated, kind, named, rng) for kind, named in rng.sample(possible, min(most, len(possible)))]


def rows(key: str, scene: Scene, rng: random.Random, most: int) -> list[dict[str, Any]]:
    """Questions about the scene of a key, as rows of a table that `caprl-ray score` reads with `join: key`."""
    return [
        {
            "key": key,
            "question_id": f"{key}#{number}",
            "question": question.text,
            "choices": list(question.choices),
            "answer": question.answer,
            "about": question.kind.name,
        }
        for number, question in enumerate(about(scene, rng, most))
    ]


def facts(scene: Scene) -> Facts:
    """All that is true of a scene."""
    things = tuple(
        {PLACE: POSITIONS[one.row][one.column], SIZE: one.size, COLOR: one.colour, SHAPE: one.kind}
        for one in scene.things
    )
    return Facts(background=scene.background, things=things)


def told(question: SceneQuestion, stated: Facts) -> str | None:
    """The option that the stated facts say is right. None if they do not name the thing, name several that it may be,
    do not say what is asked, or say what is no option."""
    found = stated_answer(question.kind, question.named, stated)
    return found if found in question.choices else None


def stated_answer(kind: Kind, named: Mapping[str, str], stated: Facts) -> str | None:
    """The answer that the facts give, whatever the options are."""
    if kind.asks == BACKGROUND:
        return stated.background
    if kind.asks == COUNT:
        return NUMBERS[len(stated.things) - 1] if 0 < len(stated.things) <= len(NUMBERS) else None
    things = referred(named, stated)
    return value(things[0], kind.asks) if len(things) == 1 else None


def referred(named: Mapping[str, str], stated: Facts) -> list[Mapping[str, str]]:
    """The things that have all these attributes."""
    return [thing for thing in stated.things if named.items() <= thing.items()]


def value(thing: Mapping[str, str], asked: str) -> str | None:
    """An attribute of a thing, or WHOLE: what kind of thing it is."""
    if asked != WHOLE:
        return thing.get(asked)
    parts = [thing.get(name) for name in (SIZE, COLOR, SHAPE)]
    return f"a {' '.join(map(str, parts))}" if all(parts) else None


def _possible(stated: Facts) -> Iterator[tuple[Kind, dict[str, str]]]:
    """All questions with one right answer."""
    for kind in KINDS:
        if not kind.by:
            yield kind, {}
            continue
        for thing in stated.things:
            named = {name: thing[name] for name in kind.by}
            if len(referred(named, stated)) == 1:
                yield kind, named


def _question(stated: Facts, kind: Kind, named: Mapping[str, str], rng: random.Random) -> SceneQuestion:
    answer = stated_answer(kind, named, stated)
    assert answer
    choices = [answer, *_wrong(stated, kind, answer, rng, rng.choice(OPTIONS) - 1)]
    rng.shuffle(choices)
    text = rng.choice(kind.texts).format(**named)
    return SceneQuestion(kind=kind, named=named, text=text, choices=tuple(choices), answer=answer)


def _wrong(stated: Facts, kind: Kind, answer: str, rng: random.Random, most: int) -> list[str]:
    """Wrong options. What is true of the scene's other things comes first: a reader must know which thing is meant."""
    others = [true for thing in stated.things if (true := value(thing, kind.asks))] if kind.by else []
    found = [one for one in dict.fromkeys(others) if one != answer]
    rng.shuffle(found)
    while len(found) < most:
        more = _near(answer, rng) if kind.asks == WHOLE else rng.choice(VALUES[kind.asks])
        if more != answer and more not in found:
            found.append(more)
        elif kind.asks != WHOLE and len(found) == len(VALUES[kind.asks]) - 1:
            break
    return found[:most]


def _near(whole: str, rng: random.Random) -> str:
    """A thing that differs from another one in one or two attributes."""
    _, *parts = whole.split(" ", 3)
    values = (tuple(scenes.SIZES), VALUES[COLOR], VALUES[SHAPE])
    for place in rng.sample(range(3), rng.choice((1, 2))):
        parts[place] = rng.choice(values[place])
    return f"a {' '.join(parts)}"
