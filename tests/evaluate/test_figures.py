"""The figures of an evaluation, and what they say on a terminal."""

import json
from typing import Any

import pytest

from caprl_ray.evaluate.answers import EMPTY
from caprl_ray.evaluate.figures import evaluated
from caprl_ray.evaluate.table import table
from caprl_ray.evaluate.words import about, names
from tests.evaluate.evaluations import A, B, evaluation


def images(count: int) -> list[str]:
    return [f"{number:03d}" for number in range(count)]


def known() -> dict[str, Any]:
    """Forty images with two questions about colours and one about numbers. A answers colours, B numbers, too, but for
    half of the images it has nothing to say of colours; of the last image only A has answers."""
    questions = ("colour:0", "colour:1", "number:0")
    a = {image: dict(zip(questions, (1.0, 1.0, 0.0), strict=True)) for image in images(40)}
    b = {image: dict(zip(questions, (n % 2, n % 2, 0.5), strict=True)) for n, image in enumerate(images(39))}
    empty = {image: dict(zip(questions, (0.0, None, 0.0), strict=True)) for image in images(40)}
    return evaluated(
        evaluation(
            {A: a, B: b, EMPTY: empty},
            kinds=lambda image: "chart" if int(image) < 35 else "map",
            sizes=lambda image: (1000, 1000) if int(image) % 4 else (5000, 4000),
        )
    )


def test_scores_are_those_of_judged_questions_by_image_kind_question_kind_and_resolution() -> None:
    found = known()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    a, b, empty = (found["ways"][way] for way in (A, B, EMPTY))
    assert a["score"]["value"] == pytest.approx(2 / 3) and (a["questions"], a["asked"], a["images"]) == (120, 120, 40)
    assert (b["score"]["value"], b["images_without"]) == (pytest.approx((19 * 2 + 39 / 2) / 117), 1)
    assert b["score"]["low"] < b["score"]["value"] < b["score"]["high"]
    assert (empty["questions"], empty["asked"], empty["score"]["value"], empty["can_not_answer"]) == (80, 120, 0, 1)
    charts, maps = found["by"]["image_kind"]
    assert (charts["name"], charts["images"], charts["few"]) == ("chart", 35, False)
    assert (maps["name"], maps["images"], maps["few"]) == ("map", 5, True)  # few, and not hidden
    assert maps["ways"][B]["questions"] == 12 and maps["ways"][B]["images"] == 4
    colours, numbers = found["by"]["question_kind"]
    assert (colours["name"], colours["questions"], numbers["name"]) == ("colour", 80, "number")
    assert [one["ways"][A]["score"]["value"] for one in (colours, numbers)] == [1, 0]
    assert [one["ways"][B]["score"]["value"] for one in (colours, numbers)] == [pytest.approx(19 / 39), 0.5]
    assert [(one["name"], one["images"]) for one in found["by"]["resolution"]] == [
        ("1 to 4 megapixels", 30),
        ("12 megapixels and more", 10),
    ]


def test_ways_are_compared_on_the_questions_of_both() -> None:
    found = known()
    (one,) = found["differences"]
    assert (one["first"], one["second"], one["images"], one["questions"]) == (A, B, 39, 117)
    assert one["difference"]["value"] == pytest.approx((39 / 2 - 40) / 117) and one["told_apart"]
    assert [(one["first"], one["second"]) for one in found["against_references"]] == [(EMPTY, A), (EMPTY, B)]
    against = found["against_references"][0]
    assert against["difference"]["value"] == pytest.approx(0.5) and against["p_corrected"] == 0.0002


def test_the_worst_captions_come_with_what_they_left_unanswered() -> None:
    a = {
        "x": {"q0": 0.0, "q1": 0.0},
        "y": {"q0": 1.0, "q1": 0.0},
        "z": {"q0": 1.0},
        "w": {"q0": None},
        "v": {"q0": 0.0},
    }
    b = {"x": {"q0": 1.0, "q1": 0.0}, "y": {"q0": 1.0, "q1": 0.0}, "v": {"q0": 1.0}}
    found = evaluated(evaluation({A: a, B: b, EMPTY: {"y": {"q1": 1.0}}}))["worst"]
    assert [(one["image"], one["score"], one["lost"]) for one in found[A]] == [("x", 0, 1), ("v", 0, 1), ("y", 0.5, 0)]
    missed = found[A][0]["missed"]
    assert [(one["id"], one["given"], one["others"][B]["given"]) for one in missed] == [
        ("q0", None, "red"),
        ("q1", None, None),
    ]
    assert found[A][0]["caption"] == f"What {A} says of x." and missed[0]["right"] == "red"
    assert [one["image"] for one in found[B]] == ["x", "y"]


def test_a_terminal_says_which_output_is_better_or_how_many_images_that_takes() -> None:
    said = table(known())
    assert "a is better than b by 17.5 points [" in said and ", p = 0.003." in said
    assert "66.7 % [66.7, 66.7]" in said and "117 of 117" in said
    assert "66.7 %*  50.0 %*" in said and "* fewer than 30 images" in said
    assert "least answered of b:\n  /in/000.jpg: 0 of 3 answered right" in said
    assert "cost: 90 seconds, $1.50, 1,234 answers" in said
    near = {
        A: {n: {"q": float(int(n) % 3 > 0)} for n in images(60)},
        B: {n: {"q": float(int(n) % 7 > 1)} for n in images(60)},
    }
    text = " ".join(table(evaluated(evaluation(near))).split())
    assert "a and b cannot be told apart with 60 images: b differs by +3.3 [" in text
    assert "it takes about " in text and "This sample can tell " in text
    same = {way: {n: {"q": 1.0} for n in images(60)} for way in (A, B)}
    assert "a and b cannot be told apart with 60 images: all 60 questions were answered alike." in table(
        evaluated(evaluation(same))
    )
    assert about(2311) == "about 2,400" and about(45) == "about 45" and about(10**7) == "more than 1,000,000"


def test_what_is_not_there_is_said_so() -> None:
    apart = {A: {"x": {"q": 1.0}}, B: {"y": {"q": 0.0}}, EMPTY: {"x": {"q": None}}}
    said = " ".join(table(evaluated(evaluation(apart))).split())
    assert "a and b cannot be compared: they have no answered question in common." in said
    assert "empty no answers 0 of 1" in said
    one = {A: {"x": {"q": 0.0, "r": 0.5}}, B: {"x": {"q": 1.0, "r": 1.0}}}
    said = " ".join(table(evaluated(evaluation(one))).split())
    assert "a and b cannot be told apart with 1 image: b differs by +75.0 points, p = 1.00." in said
    alone = table(evaluated(evaluation({A: {"x": {"q": 1.0}}}, references=())))
    assert "100.0 %" in alone and "p-value" not in alone
    nothing = evaluated(evaluation({A: {}}))
    assert nothing["ways"][A]["score"] is None and "no answers" in table(nothing)


def test_outputs_are_called_by_the_last_part_of_their_paths_if_that_tells_them_apart() -> None:
    figures = {"outputs": ["/x/out", "/y/out", "/z/new/"], "references": [EMPTY]}
    assert list(names(figures).values()) == ["/x/out", "/y/out", "new", EMPTY]
    assert "[red]x" in table(evaluated(evaluation({f"/{way}/[red]x": {"y": {"q": 1.0}} for way in "ab"})))
    long = "/long" * 20
    alike = [
        f"A: /x{long}/out",
        f"B: /y{long}/out",
        f"C: /x/1{long.replace('/', '-')}",
        f"D: /x/2{long.replace('/', '-')}",
    ]
    called = list(names({"outputs": alike, "references": []}).values())
    assert [name[:4] for name in called] == ["A: …", "B: …", "C: …", "D: …"]
    hostile = names({"outputs": [f"/x/\x1b[31m{'long' * 50}"], "references": []})
    assert all("\x1b" not in name and len(name) < 70 for name in hostile.values())
