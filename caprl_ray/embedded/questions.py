"""Multiple-choice questions about rendered scenes, which are always right because they are derived from the scene.

`about` makes the questions, and `row` makes the rows that `caprl-ray score` reads. `told` answers a question from the
facts of a caption, as a perfect reader would who knows only the caption.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from caprl_ray.embedded import scenes
from caprl_ray.embedded.kinds import BACKGROUND, COLOR, COUNT, KINDS, NUMBERS, PLACE, SHAPE, SIZE, VALUES, WHOLE, Kind
from caprl_ray.embedded.scenes import POSITIONS, Scene

OPTIONS = (3, 4, 4, 5)  # how many options a question has, drawn at random; a question about a size has at most three


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The stated facts about a scene. A thing lacks attributes that are not stated; `background` is None if it is not
    stated."""

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
    """`most` different questions about a scene, or as many as there are. Each has exactly one right answer."""
    return about_facts(facts(scene), rng, most)


def about_facts(stated: Facts, rng: random.Random, most: int) -> list[SceneQuestion]:
    """As `about`, from the complete facts of a scene."""
    possible = list(_possible(stated))
    return [_question(stated, kind, named, rng) for kind, named in rng.sample(possible, min(most, len(possible)))]


def row(question: SceneQuestion, *, key: str, question_id: str, benchmark: str) -> dict[str, Any]:
    """A question as a row of a table that `caprl-ray score` reads with `join: key`."""
    return {
        "key": key,
        "question_id": question_id,
        "benchmark": benchmark,
        "question": question.text,
        "choices": list(question.choices),
        "answer": question.answer,
    }


def facts(scene: Scene) -> Facts:
    """The complete facts of a scene."""
    things = tuple(
        {PLACE: POSITIONS[one.row][one.column], SIZE: one.size, COLOR: one.colour, SHAPE: one.kind}
        for one in scene.things
    )
    return Facts(background=scene.background, things=things)


def told(question: SceneQuestion, stated: Facts) -> str | None:
    """The option that is right by the stated facts. None if no thing or several things in the facts match the question,
    if the asked attribute is not stated, or if its value is no option."""
    found = stated_answer(question.kind, question.named, stated)
    return found if found in question.choices else None


def stated_answer(kind: Kind, named: Mapping[str, str], stated: Facts) -> str | None:
    """The answer that the facts give to a question without options; None if they give none."""
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
    """An attribute of a thing. For WHOLE, a phrase such as "a large red circle". None if it is not stated."""
    if asked != WHOLE:
        return thing.get(asked)
    parts = [thing.get(name) for name in (SIZE, COLOR, SHAPE)]
    return f"a {' '.join(map(str, parts))}" if all(parts) else None


def _possible(stated: Facts) -> Iterator[tuple[Kind, dict[str, str]]]:
    """All questions with exactly one right answer, each as its kind and the attributes that name its thing."""
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
    """At most `most` wrong options. Values of the scene's other things come first, so that a reader must know which
    thing is meant."""
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
    """A phrase for a thing that differs from `whole` in at most two attributes."""
    _, *parts = whole.split(" ", 3)
    values = (tuple(scenes.SIZES), VALUES[COLOR], VALUES[SHAPE])
    for place in rng.sample(range(3), rng.choice((1, 2))):
        parts[place] = rng.choice(values[place])
    return f"a {' '.join(parts)}"
