"""The questioner that knows the truth about scenes, and the viewer that reads scenes off their pixels."""

import asyncio
import random
from collections import Counter

import pytest

from caprl_ray.commands.loop import ASKED, curation
from caprl_ray.curate.drafts import TELLS_ANSWER, Draft, as_question, drafts
from caprl_ray.embedded import questions, rules, scenes
from caprl_ray.engines import launch
from caprl_ray.engines.ground_truth import NO_SCENE
from caprl_ray.engines.protocol import Picture
from caprl_ray.errors import RecipeError
from caprl_ray.models.resolve import ALLOW_STUB, EMBEDDED_QUESTIONER, resolve
from caprl_ray.recipe.curate import CurateRecipe
from caprl_ray.recipe.load import parse_as
from caprl_ray.recipe.prompts import PromptTemplate
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.score import seeing


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> CurateRecipe:
    monkeypatch.delenv(ALLOW_STUB)
    return parse_as(CurateRecipe, curation(tmp_path, [tmp_path / "scenes.jsonl"]))


def test_its_questions_are_usable_and_right(recipe):
    engine = asyncio.run(launch.start_mortal(recipe, resolve(recipe)))
    rng, usable, unusable = random.Random(3), 0, []
    for most in (1, 3, 5) * 20:
        scene = scenes.sample_scene(rng)
        prompt = PromptTemplate(ASKED).fill({"questions": str(most), "scene": scenes.caption(scene)}, str)
        said, again = (asyncio.run(engine.caption(None, prompt)).text for _ in range(2))
        found = drafts(said, 20)
        assert said == again and len(found.questions) + len(found.unusable) == most
        for one in found.questions:
            kind, named = rules.understood(one.question)
            truth = questions.stated_answer(kind, named, questions.facts(scene))
            assert one.choices[one.right] == truth, (scenes.caption(scene), one)
        usable, unusable = usable + len(found.questions), [*unusable, *found.unusable]
    assert usable > 8 * len(unusable) and TELLS_ANSWER in unusable, "such as: How large is it? - large"


def test_without_a_scene_it_asks_nothing(recipe):
    engine = asyncio.run(launch.start_mortal(recipe, resolve(recipe)))
    assert asyncio.run(engine.caption(None, "Write 5 multiple-choice questions.")).text == NO_SCENE


def test_the_viewer_sees_what_is_there_and_guesses_without_the_image(recipe):
    engine = asyncio.run(launch.start_mortal(recipe.answering, resolve(recipe.answering)))

    def said(picture, turns):
        return asyncio.run(engine.caption(picture, turns)).text.strip()

    rng, blind = random.Random(4), Counter()
    for number in range(60):
        scene = scenes.sample_scene(rng)
        image = scenes.render(scene, *((84, 84), (112, 84), (84, 112))[number % 3], rng=rng)
        picture = Picture(pixels=memoryview(image.tobytes()), width=image.width, height=image.height)
        for one in questions.about(scene, rng, 3):
            right = one.choices.index(one.answer)
            draft = as_question(Draft(question=one.text, choices=one.choices, right=right), "", 0)
            turned = seeing.orders(draft, 4, seed=0)
            assert {seeing.chosen(said(picture, seeing.with_image(draft, order)), order) for order in turned} == {right}
            guesses = {seeing.chosen(said(None, seeing.without_image(draft, order)), order) for order in turned}
            assert len(guesses) == 1, "the same option, wherever it stands"
            blind[guesses == {right}] += 1
            others = [choice for choice in one.choices if choice != one.answer] + ["something else"]
            wrong = as_question(Draft(question=one.text, choices=tuple(others), right=0), "", 0)
            order = turned[0]
            assert seeing.chosen(said(picture, seeing.with_image(wrong, order)), order) == len(order), "none of them"
    assert 0.15 < blind[True] / blind.total() < 0.4


def test_every_row_says_what_they_are_and_they_answer_nothing_from_captions(recipe, tmp_path):
    assert resolve(recipe).label == "embedded-questioner (ground truth)"
    assert resolve(recipe.answering).label == "embedded-viewer (rules)"
    assert resolve(recipe).size_rule == resolve(recipe.answering).size_rule, "both see the same pixels"
    document = {
        "input": {"paths": [str(tmp_path)]},
        "model": {"source": EMBEDDED_QUESTIONER},
        "score": {"questions": ["-"]},
        "output": {"path": str(tmp_path / "out")},
    }
    with pytest.raises(RecipeError, match="for curating"):
        resolve(parse_as(ScoreRecipe, document))
