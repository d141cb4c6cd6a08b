"""Questions about rendered scenes: each has one right answer, and a perfect reader says what a caption states."""

import json
import random
import re

import pytest

from caprl_ray.embedded import questions, scenes
from caprl_ray.embedded.kinds import KINDS
from caprl_ray.embedded.questions import Facts, SceneQuestion
from caprl_ray.models.resolve import EMBEDDED_ANSWERER, FOLDERS
from caprl_ray.score.judge import BLIND, INSTRUCTION

THING = re.compile(r"at the ([a-z]+ [a-z]+|center) a ([a-z]+) ([a-z]+) ([a-z]+)")


def read(caption: str, question: SceneQuestion) -> list[str]:
    """The attributes that a caption states, of each thing that may be meant."""
    if question.kind.asks == "background":
        return re.findall(r"^On a ([a-z]+) background", caption)
    things = [dict(zip(("place", "size", "color", "shape"), thing, strict=True)) for thing in THING.findall(caption)]
    if question.kind.asks == "count":
        return [["zero", "one", "two", "three"][len(things)]]
    meant = [thing for thing in things if all(thing[name] == value for name, value in question.named.items())]
    whole = [f"a {thing['size']} {thing['color']} {thing['shape']}" for thing in meant]
    return whole if question.kind.asks == "whole" else [thing[question.kind.asks] for thing in meant]


def test_each_question_has_one_right_answer_among_distinct_options() -> None:
    rng, kinds, places = random.Random(4), set(), list[float]()
    for _ in range(400):
        scene = scenes.sample_scene(rng)
        asked = questions.about(scene, rng, 5)
        assert len({(one.kind.name, *one.named.values()) for one in asked}) == len(asked) == 5
        for one in asked:
            assert read(scenes.caption(scene), one) == [one.answer], (scenes.caption(scene), one)
            assert one.answer in one.choices and 3 <= len(one.choices) <= 5
            assert len(set(one.choices)) == len(one.choices)
            assert all(value in one.text for value in one.named.values()) and "{" not in one.text
            kinds.add(one.kind.name)
            places.append(one.choices.index(one.answer) / (len(one.choices) - 1))
    assert kinds == {kind.name for kind in KINDS}
    assert sum(places) / len(places) == pytest.approx(0.5, abs=0.05), "the right option stands anywhere"


def test_the_same_seed_asks_the_same() -> None:
    scene = scenes.sample_scene(random.Random(5))
    first, again, other = (questions.about(scene, random.Random(n), 6) for n in (1, 1, 2))
    assert first == again != other


def test_a_perfect_reader_says_what_the_caption_states_and_nothing_else() -> None:
    rng, said = random.Random(6), list[str | None]()
    for _ in range(300):
        scene, other = (scenes.sample_scene(rng) for _ in range(2))
        (one,) = questions.about(scene, rng, 1)
        facts = questions.facts(scene)
        assert questions.told(one, facts) == one.answer
        stated = read(scenes.caption(other), one)
        said.append(questions.told(one, questions.facts(other)))
        assert said[-1] == (stated[0] if len(stated) == 1 and stated[0] in one.choices else None)
        without = tuple(thing for thing in facts.things if not one.named.items() <= thing.items())
        assert not one.named or questions.told(one, Facts(background=facts.background, things=without)) is None
        assert questions.told(one, Facts(background=None, things=())) is None
    assert None in said and len(set(said)) > 10


def test_the_embedded_answerer_is_small_and_knows_the_judges_prompts() -> None:
    folder = FOLDERS[EMBEDDED_ANSWERER]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    begin, middle = re.split(r"\{caption\}", INSTRUCTION)
    known = {begin, middle.removesuffix("{question}"), BLIND.removesuffix("{question}"), *(f" {c}" for c in "ABCDEF")}
    assert known <= set(words), "train it again: make embedded-answerer"
