"""The questioner that knows the truth about scenes: questions in curation's form, right ones, and named as what it is."""

import asyncio
import random

import pytest

from caprl_ray.commands.loop import ASKED, curation
from caprl_ray.curate.drafts import TELLS_ANSWER, drafts
from caprl_ray.embedded import questions, rules, scenes
from caprl_ray.engines import launch
from caprl_ray.engines.ground_truth import NO_SCENE
from caprl_ray.errors import RecipeError
from caprl_ray.models.resolve import ALLOW_STUB, EMBEDDED_QUESTIONER, resolve
from caprl_ray.recipe.curate import CurateRecipe
from caprl_ray.recipe.load import parse_as
from caprl_ray.recipe.prompts import PromptTemplate
from caprl_ray.recipe.score_recipe import ScoreRecipe


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


def test_every_row_says_that_it_is_the_truth_and_it_answers_nothing(recipe, tmp_path):
    assert resolve(recipe).label == "embedded-questioner (ground truth)"
    assert resolve(recipe).size_rule == resolve(recipe.answering).size_rule, "both see the same pixels"
    document = {
        "input": {"paths": [str(tmp_path)]},
        "model": {"source": EMBEDDED_QUESTIONER},
        "score": {"questions": ["-"]},
        "output": {"path": str(tmp_path / "out")},
    }
    with pytest.raises(RecipeError, match="for curating"):
        resolve(parse_as(ScoreRecipe, document))
