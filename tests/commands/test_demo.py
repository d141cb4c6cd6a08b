"""`caprl-ray demo` leaves a recipe that runs as it is, and prints commands that work."""

import re
import shlex
from collections import Counter
from pathlib import Path
from typing import NoReturn

import pyarrow.parquet as pq
import pytest

from caprl_ray.cli import main
from caprl_ray.commands import demo, demo_score, evaluate
from caprl_ray.errors import RecipeError
from caprl_ray.job import Job
from caprl_ray.recipe.load import load, parse


def refuse(_: None) -> NoReturn:
    raise RecipeError("enough.")


@pytest.mark.usefixtures("ray_cluster")
def test_the_recipe_and_the_commands_of_the_demo_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = {"model": {"source": "stub"}}
    real, scoring, judge = demo.demo_recipe, demo_score.score_recipe, demo_score.judge_recipe()
    monkeypatch.setattr(demo, "demo_recipe", lambda paths, out: real(paths, out) | stub)
    monkeypatch.setattr(demo_score, "score_recipe", lambda *paths: scoring(*paths) | stub)
    monkeypatch.setattr(demo_score, "judge_recipe", lambda: {"score": judge["score"] | stub})
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--images", "16", "--out", "my demo"]) == 0
    said = capsys.readouterr().out
    assert "16 images: 16 captioned, 0 failed" in said and "the ledger balances: every planned image is one row" in said
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^  caprl-ray (.*)$", said, re.MULTILINE)]
    assert [command[0] for command in commands] == ["verify", "plan", "caption", "score", "evaluate"]
    *others, evaluating = commands
    assert all(main(command) == 0 for command in others)
    assert capsys.readouterr().out.count("16 images: 16 captioned, 0 failed") == 2
    jobs: list[Job] = []
    monkeypatch.setattr(evaluate, "run", lambda job, **more: refuse(jobs.append(job)))
    assert main(evaluating) == 2  # all is there for the reader, which others run
    ((captions,),) = (job.recipe.input.paths for job in jobs)
    ways = [way for row in pq.read_table(captions).to_pylist() for way in row["ways"]]
    assert Counter(ways) == dict.fromkeys(("A", "B", "empty", "swapped"), 16)
    monkeypatch.chdir("/")  # the recipe runs from anywhere
    assert main(["caption", str(tmp_path / "my demo/recipe.yaml")]) == 0
    assert main(["score", str(tmp_path / "my demo/score.yaml")]) == 0
    said = capsys.readouterr().out
    assert "nothing to caption" in said and "nothing to score" in said


def test_the_recipe_with_comments_is_the_recipe(tmp_path: Path) -> None:
    document = demo.demo_recipe([Path("/a b"), Path("/c")], Path("/out"))
    (tmp_path / "recipe.yaml").write_text(demo._recipe_text(document))
    assert load(tmp_path / "recipe.yaml") == parse(document)
