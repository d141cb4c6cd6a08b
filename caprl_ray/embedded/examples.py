"""Examples from which the embedded answerer learns: the judge's prompts, made by its own code, with the right letter.

Captions are right, wrong, of another scene, incomplete or empty. The right letter is the one that a perfect reader
would answer.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caprl_ray.embedded import answerer_architecture as architecture
from caprl_ray.embedded import kinds, questions, scenes
from caprl_ray.embedded.kinds import BACKGROUND, COLOR, PLACE, SHAPE, SIZE
from caprl_ray.embedded.questions import Facts, SceneQuestion
from caprl_ray.models.chat import ChatFormat
from caprl_ray.score.judge import Shown
from caprl_ray.score.metrics import LETTERS
from caprl_ray.score.question import Question

QUESTIONS = 4  # about each caption
UNKNOWN_WORDS = ("teal", "plain", "blurry", "dog", "thing")  # the tokenizer knows none of them
ELSEWHERE = ("A photo of a dog.", "I cannot see the image.", "An image.", "The the the the the the.")


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt as the judge sends it, its right letter, and labels for the auxiliary heads.

    Attributes:
        kind: the name of the function that made the caption's facts, such as "incomplete".
        question: the question in the prompt.
        facts: what the caption states.
        text: the prompt.
        letter: the right answer.
        fits: for each option, whether the caption says that it is right.
    """

    kind: str
    question: SceneQuestion
    facts: Facts
    text: str
    letter: str
    fits: tuple[bool, ...]


def complete(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """All facts."""
    return questions.facts(scene)


def without_its_thing(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """Facts without the thing that the question is about, or without the background."""
    facts = questions.facts(scene)
    if question.kind.asks == BACKGROUND:
        return Facts(background=None, things=facts.things)
    meant = questions.referred(question.named, facts) if question.named else [rng.choice(facts.things)]
    return Facts(background=facts.background, things=tuple(one for one in facts.things if one not in meant))


def without_another_thing(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """Facts without one thing."""
    facts = questions.facts(scene)
    others = [one for one in facts.things if not question.named.items() <= one.items()] or list(facts.things)
    left_out = rng.choice(others)
    return Facts(background=facts.background, things=tuple(one for one in facts.things if one is not left_out))


def wrong(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """All facts, of which one to three are changed."""
    facts = questions.facts(scene)
    things, background = [dict(one) for one in facts.things], facts.background
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.15:
            background = rng.choice(kinds.VALUES[BACKGROUND])
            continue
        name = rng.choice((PLACE, SIZE, COLOR, SHAPE))
        values = scenes.SIZES if name == SIZE else kinds.VALUES[name]
        new = rng.choice(list(values))
        if name != PLACE or new not in [one[PLACE] for one in things]:
            rng.choice(things)[name] = new
    return Facts(background=background, things=tuple(things))


def of_another_scene(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """Facts of another scene."""
    return questions.facts(scenes.sample_scene(rng))


def incomplete(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """Facts without some of their attributes."""
    facts = questions.facts(scene)
    share = rng.choice((0.1, 0.2, 0.4))
    things = [{name: one for name, one in thing.items() if rng.random() > share} for thing in facts.things]
    background = None if rng.random() < share else facts.background
    return Facts(background=background, things=tuple(thing for thing in things if thing))


def nothing(scene: scenes.Scene, question: SceneQuestion, rng: random.Random) -> Facts:
    """No facts."""
    return Facts(background=None, things=())


Make = Callable[[scenes.Scene, SceneQuestion, random.Random], Facts]
# How captions differ from the scene that is asked about, and how often.
CAPTIONS: Sequence[tuple[Make, int]] = (
    (complete, 34),
    (without_its_thing, 15),
    (without_another_thing, 8),
    (wrong, 16),
    (of_another_scene, 12),
    (incomplete, 10),
    (nothing, 5),
)


def worded(facts: Facts, rng: random.Random) -> str:
    """A caption that states these facts. If the facts are complete, it is the one of `scenes.caption`."""
    if not facts.things and facts.background is None:
        return rng.choice(("", "", "", *ELSEWHERE))
    background = f"On a {facts.background} background"
    if facts.background is None:
        background = rng.choice(("", f"On a {rng.choice(UNKNOWN_WORDS)} background"))
    phrases = [_phrase(thing, rng) for thing in facts.things]
    listed = f"{', '.join(phrases[:-1])} and {phrases[-1]}" if len(phrases) > 1 else "".join(phrases)
    text = ", ".join(filter(None, (background, listed)))
    return f"{text[0].upper()}{text[1:]}."


def _phrase(thing: Mapping[str, str], rng: random.Random) -> str:
    def said(name: str, otherwise: str) -> str:
        return thing.get(name) or (rng.choice(UNKNOWN_WORDS) if rng.random() < 0.3 else otherwise)

    words = ("a", said(SIZE, ""), said(COLOR, ""), said(SHAPE, "shape"))
    place = said(PLACE, "")
    return " ".join(filter(None, (f"at the {place}" if place else "", *words)))


class Prompts:
    """Makes examples with the judge's own prompts. The chat template is the tokenizer's."""

    def __init__(self, tokenizer: Any, rng: random.Random) -> None:
        def apply(messages: Any) -> str:
            return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

        self._rng = rng
        systems = architecture.SYSTEM_PROMPTS
        self._formats = {system: ChatFormat.render(apply, system, image=False) for system in systems}

    def examples(self, make: Make | None = None) -> list[Example]:
        """Questions about one scene with one caption. `make` makes the caption's facts; if None, it is random."""
        rng = self._rng
        scene = scenes.sample_scene(rng)
        asked = questions.about(scene, rng, QUESTIONS)
        makes, weights = zip(*CAPTIONS, strict=True)
        make = make or rng.choices(makes, weights)[0]
        facts = make(scene, asked[0], rng)
        blind = make is nothing and rng.random() < 0.4
        system = rng.choices(architecture.SYSTEM_PROMPTS, (9, 1))[0]
        caption = None if blind else worded(facts, rng)
        return [self._example(question, facts, caption, system, make.__name__) for question in asked]

    def _example(
        self, question: SceneQuestion, facts: Facts, caption: str | None, system: str | None, kind: str
    ) -> Example:
        right = questions.told(question, facts)
        asked = Question(id="", image="", text=question.text, metric="choice", benchmark="", choices=question.choices)
        order = tuple(self._rng.sample(range(len(question.choices)), len(question.choices)))
        shown = Shown(question=asked, order=order, can_refuse=caption is not None)
        number = shown.options.index(right) if right else len(shown.options) - 1
        if caption is None:  # nothing is known, so all options are equally likely
            number = self._rng.randrange(len(shown.options))
        turns = shown.turns(caption, one_letter=True, system=system)
        return Example(
            kind=kind,
            question=question,
            facts=facts,
            text=self._formats[system].prompt(turns.user) + turns.begin,
            letter=LETTERS[number],
            fits=tuple(place == number and caption is not None for place in range(len(shown.options))),
        )
