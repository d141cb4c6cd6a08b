"""The questioner and the viewer that read scenes off their pixels: what they say is true, and rows name them so."""

import asyncio
import random
from collections import Counter
from itertools import product

import pytest
from PIL import Image

from caprl_ray.commands.loop import curation
from caprl_ray.curate import asking
from caprl_ray.curate.answerer import Answerer
from caprl_ray.curate.drafts import TELLS_ANSWER, Draft, drafts
from caprl_ray.curate.keep import GUESSED
from caprl_ray.curate.questioner import Questioner
from caprl_ray.embedded import questions, rules, scenes
from caprl_ray.engines import launch
from caprl_ray.engines.protocol import Picture
from caprl_ray.engines.scene_rules import NO_SCENE
from caprl_ray.errors import RecipeError
from caprl_ray.models.resolve import ALLOW_STUB, EMBEDDED_QUESTIONER, resolve
from caprl_ray.recipe.curate import ASKED, CurateRecipe
from caprl_ray.recipe.load import parse_as
from caprl_ray.recipe.prompts import PromptTemplate
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.replica.cut import Cut


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> CurateRecipe:
    monkeypatch.delenv(ALLOW_STUB)
    return parse_as(CurateRecipe, curation(tmp_path, [tmp_path / "scenes"]))


def drawn(scene, rng, width=84, height=84) -> Picture:
    return taken(scenes.render(scene, width, height, rng=rng))


def taken(image) -> Picture:
    return Picture(pixels=memoryview(image.tobytes()), width=image.width, height=image.height)


def test_its_questions_are_usable_and_right(recipe):
    engine = asyncio.run(launch.start_mortal(recipe, resolve(recipe)))
    rng, usable, unusable = random.Random(3), 0, []
    for most in (1, 3, 5) * 10:
        scene = scenes.sample_scene(rng)
        picture, prompt = drawn(scene, rng), PromptTemplate(ASKED).fill({"questions": str(most)}, str)
        said, again = (asyncio.run(engine.caption(picture, prompt)).text for _ in range(2))
        found = drafts(said, 20)
        assert said == again and len(found.questions) + len(found.unusable) == most
        for one in found.questions:
            kind, named = rules.understood(one.question)
            truth = questions.stated_answer(kind, named, questions.facts(scene))
            assert one.choices[one.right] == truth, (scenes.caption(scene), one)
        usable, unusable = usable + len(found.questions), [*unusable, *found.unusable]
    assert usable > 8 * len(unusable) and TELLS_ANSWER in unusable, "such as: How large is it? - large"


def test_it_asks_nothing_about_what_is_no_scene(recipe):
    engine = asyncio.run(launch.start_mortal(recipe, resolve(recipe)))
    noise = Image.frombytes("RGB", (84, 84), random.Random(5).randbytes(84 * 84 * 3))
    steps = Image.linear_gradient("L").resize((84, 84)).convert("RGB")
    stripes = Image.new("RGB", (84, 84), "gray")  # in a cell's middle, of which the median is black, which is nowhere
    for x, y in product(range(28, 56), repeat=2):
        stripes.putpixel((x, y), ((255, 0, 0), (0, 255, 0), (0, 0, 255))[(x + y) % 3])
    for image in (noise, steps, stripes, Image.new("RGB", (84, 84), "red")):
        assert asyncio.run(engine.caption(taken(image), ASKED)).text == NO_SCENE


def test_the_viewer_sees_what_is_there_and_guesses_without_the_image(recipe):
    engine = asyncio.run(launch.start_mortal(recipe.answering, resolve(recipe.answering)))

    def said(picture, turns):
        return asyncio.run(engine.caption(picture, turns)).text.strip()

    rng, blind = random.Random(4), Counter()
    for number in range(30):
        scene = scenes.sample_scene(rng)
        picture = drawn(scene, rng, *((84, 84), (112, 84), (84, 112))[number % 3])
        for one in questions.about(scene, rng, 3):
            right = one.choices.index(one.answer)
            draft = asking.as_question(Draft(question=one.text, choices=one.choices, right=right), "", 0)
            turned = asking.orders(draft, 4, seed=0)
            assert {asking.chosen(said(picture, asking.with_image(draft, order)), order) for order in turned} == {right}
            guesses = {asking.chosen(said(None, asking.without_image(draft, order)), order) for order in turned}
            assert len(guesses) == 1, "the same option, wherever it stands"
            blind[guesses == {right}] += 1
            others = [choice for choice in one.choices if choice != one.answer] + ["something else"]
            wrong = asking.as_question(Draft(question=one.text, choices=tuple(others), right=0), "", 0)
            order = turned[0]
            assert asking.chosen(said(picture, asking.with_image(wrong, order)), order) == len(order), "none of them"
    assert 0.15 < blind[True] / blind.total() < 0.4
    foreign = asking.as_question(Draft(question="Who wrote it?", choices=("a", "b", "c"), right=0), "", 0)
    assert said(picture, asking.with_image(foreign, (0, 1, 2))) == "D", "none of them"


def test_every_row_says_what_they_are_and_they_answer_nothing_from_captions(recipe, tmp_path):
    assert resolve(recipe).label == "embedded-questioner (rules)"
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


def test_kept_questions_are_right_and_need_the_image(recipe):
    rng, truths, rows = random.Random(6), [], []
    for number in range(40):
        truths.append(scenes.sample_scene(rng))
        picture = drawn(truths[-1], rng)
        size = {"pixels": picture.pixels, "pixel_width": picture.width, "pixel_height": picture.height}
        rows.append({"key": f"{number}.png", **size})

    async def curated() -> list[dict]:
        questioner, viewer = resolve(recipe), resolve(recipe.answering)
        asking = Questioner(recipe, questioner, await launch.start_mortal(recipe, questioner), Cut())
        asked = [row | found for row, found in zip(rows, await asking.write(rows), strict=True)]
        engine = await launch.start_mortal(recipe.answering, viewer)
        return list(await Answerer(recipe.curate, viewer, engine, Cut()).write(asked))

    found, dropped = asyncio.run(curated()), Counter()
    for scene, row in zip(truths, found, strict=True):
        for one in row["tried"]:
            dropped[one["dropped"]] += 1
        for one in row["reward_model"]["ground_truth"]:
            kind, named = rules.understood(one["question"])
            texts = [choice.partition(") ")[2] for choice in one["choices"]]
            truth = questions.stated_answer(kind, named, questions.facts(scene))
            assert texts["ABCDE".index(one["answer"])] == truth
    assert set(dropped) == {None, GUESSED} and dropped[None] > 2 * dropped[GUESSED]
