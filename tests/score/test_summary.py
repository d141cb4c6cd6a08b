"""Sums of scores: four numbers, intervals that know of images, and differences between outputs."""

from typing import Any

import numpy as np
import pytest

from caprl_ray.score.summary import compared, difference, interval, sentences, summary
from caprl_ray.score.tally import Means, Tally


def answer(question: str, correct: float | None, condition: str = "caption", **more: Any) -> dict[str, Any]:
    return {
        "benchmark": "SEED",
        "question_id": question,
        "metric": "choice",
        "condition": condition,
        "parsed": None if correct is None else "AB"[int(correct)],
        "right": "B",
        "correct": correct,
        "can_not_answer": False,
        "code": None,
        **more,
    }


def test_four_numbers_and_an_unjudged_answer_is_never_wrong() -> None:
    tally = Tally()
    for image in range(10):
        tally.add(
            f"image {image}",
            [
                answer("q0", 1.0, right="A"),
                answer("q0", 0.0 if image < 5 else 1.0),
                answer("q0", None if image == 0 else 1.0, "again"),
                answer("q0", 0.0, "blind"),
                answer("q1", None, code="answer_unclear"),
                answer("q1", None, code="answer_unclear"),
                answer("q2", 0.0, can_not_answer=True, benchmark="mine"),
            ],
        )
    found = summary(tally)["benchmarks"]
    seed, mine = found["SEED"], found["mine"]
    assert (seed["images"], seed["questions"], seed["answers"]) == (10, 20, 40)
    assert seed["accuracy"]["value"] == pytest.approx(0.75)  # of the ten questions that were judged
    assert 0.55 < seed["accuracy"]["low"] < 0.75 < seed["accuracy"]["high"] < 0.95
    assert (seed["blind"]["value"], seed["unscored"], seed["codes"]) == (0, 0.5, {"answer_unclear": 20})
    assert seed["again"] == {"answers": 10, "same": 5}
    assert seed["places"] == {"accuracy": {"A": 1.0, "B": 0.5}, "bias": 0.5}
    assert (mine["can_not_answer"], mine["accuracy"]["value"], mine["blind"]) == (1, 0, None)
    assert seed["paper"]["CapRL-3B"] == 70.6 and "paper" not in mine
    assert summary(tally)["average"] == pytest.approx(0.375)
    first, second, average = sentences(summary(tally))
    assert first.startswith("SEED: 75.0% [") and "50.0% unscored" in first and "CapRL-3B 70.6" in first
    assert "100.0% \"can not answer\"" in second and "no answers blind" in second and "37.5%" in average  # fmt: skip
    assert sentences(summary(Tally())) == []


def test_intervals_cover_the_truth_where_answers_about_an_image_agree() -> None:
    """Twenty questions an image with one fate: an interval that took them for independent would be far too narrow."""
    random, covered, widths = np.random.default_rng(1), 0, []
    for _ in range(60):
        right = np.repeat(random.random(50) < 0.7, 20).astype(float)
        found = interval(Means(questions=np.arange(1000), images=np.repeat(np.arange(50), 20), values=right))
        assert found
        covered += found["low"] <= 0.7 <= found["high"]
        widths.append(found["high"] - found["low"])
    assert covered >= 52  # 57 of 60 are expected
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 50), rel=0.15)
    alone = interval(Means(questions=np.arange(2), images=np.zeros(2), values=np.array([1.0, 0.0])))
    assert alone == {"value": 0.5, "low": None, "high": None}
    assert interval(Means(questions=np.array([]), images=np.array([]), values=np.array([]))) is None


def test_two_outputs_are_compared_on_the_same_questions_and_told_apart_only_if_they_are() -> None:
    def output(better: int, images: int = 100) -> Tally:
        tally = Tally()
        for image in range(images):
            rows = [answer(f"q{n}", float((image * 7 + n) % 10 < 5)) for n in range(4)]
            tally.add(str(image), [*rows, answer("extra", float(image < better))])
        return tally

    better = difference(output(60), output(40))["SEED"]
    assert better["difference"]["value"] == pytest.approx(20 / 500) and better["told_apart"]
    same = difference(output(41), output(40))["SEED"]
    assert same["difference"]["value"] == pytest.approx(1 / 500) and not same["told_apart"]
    assert (
        compared({"SEED": better}, "B")[0].startswith("SEED: +4.0% [")
        and "; they differ" in compared({"a": better}, "B")[0]
    )
    assert compared({}, "B") == ["B has no benchmark in common"]
    fewer = difference(output(60), output(40, images=50))["SEED"]
    assert (fewer["questions"], fewer["difference"]["value"]) == (250, pytest.approx(10 / 250))
