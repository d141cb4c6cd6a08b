"""CapRL's loop on scenes, through real engines: curated questions, GRPO with TRL, captions, and their evaluation."""

import json
from pathlib import Path
from typing import NoReturn

import pyarrow.parquet as pq
import pytest

import caprl_ray.commands.loop as command
from caprl_ray import cli, pipeline
from caprl_ray.cluster import session
from caprl_ray.commands.loop import AFTER, BEFORE, HELD_OUT, TRAIN, Found, loop, table
from caprl_ray.embedded import questions, rules
from caprl_ray.errors import RecipeError


def test_one_scene_has_a_score_without_an_interval() -> None:
    score = {"value": 0.5, "low": None, "high": None}
    said = list(table(Found(before=score, after=score, difference=score | {"value": 0.0}, told_apart=False)))
    assert said[1:] == [
        "before      50.0 %",
        "after       50.0 %",
        "difference  +0.0 points",
        "the score does not rise by more than chance explains",
    ]
    assert "before      no answers" in table(Found(before=None, after=None, difference=None, told_apart=False))


def test_what_the_page_needs_is_looked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> NoReturn:
        raise RecipeError("matplotlib is not installed.")

    monkeypatch.setattr(command, "check_matplotlib", missing)
    monkeypatch.setattr("sys.argv", ["loop", "--out", str(tmp_path / "loop")])
    assert command.main() == 2
    assert capsys.readouterr().err == "loop: matplotlib is not installed.\n" and not (tmp_path / "loop").exists()


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1800)
def test_a_captioner_that_is_trained_by_curated_questions_scores_higher(tmp_path: Path) -> None:
    with session.lasting(False, engine_on_cpu=True), session.connected():
        found = loop(tmp_path, pipeline.run, train=16, held_out=60, steps=16, tell=print)
    assert found.rises and found.difference and found.difference["low"] > 0

    truths = {}
    for name in (TRAIN, HELD_OUT):
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        truths |= {row["image"]: row["scene"] for row in map(json.loads, lines)}
    rows = pq.read_table(tmp_path / "questions" / "data").to_pylist()
    assert {Path(row["key"]).name for row in rows} == set(truths)
    assert {row["questioner"] for row in rows} == {"embedded-questioner (rules)"}
    seen, blind, kept = [], [], 0
    for row in rows:
        facts = rules.stated(truths[Path(row["key"]).name])
        for one in row["tried"]:
            seen.append(one["accuracy_with_image"])
            blind.append(one["accuracy_without_image"])
            kind, named = rules.understood(one["question"])
            truth = questions.stated_answer(kind, named, facts)
            if one["dropped"] is None:
                kept += 1
                assert one["choices"]["ABCDEF".index(one["answer"])] == truth
                assert one["accuracy_with_image"] == 1 and one["accuracy_without_image"] == 0
        assert row["kept"] == sum(one["dropped"] is None for one in row["tried"])
    assert sum(seen) / len(seen) > 0.9, "it sees"
    assert sum(blind) / len(blind) < 0.4, "and without the image it guesses"
    assert kept > len(rows), "more than one of them an image"

    for name in (BEFORE, AFTER):
        labels = set(pq.read_table(tmp_path / name / "data", columns=["model"])["model"].to_pylist())
        assert [label.partition("@")[0] for label in labels] == [str(tmp_path / f"captioner-{name}")]
    assert cli.main(["verify", str(tmp_path / AFTER)]) == 0
