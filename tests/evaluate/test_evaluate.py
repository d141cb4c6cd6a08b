"""`caprl-ray evaluate` from end to end: outputs told apart, by questions that the judge makes or that are given."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from caprl_ray import cli
from caprl_ray.commands import evaluate
from caprl_ray.errors import SystemFailure
from caprl_ray.job import Job
from tests.evaluate.outputs import full, half, write

JUDGE = {
    "model": {"source": "stub"},
    "replicas": {"gpus": 0},
    "curate": {"model": {"source": "stub"}, "replicas": {"gpus": 0}},
    "score": {"model": {"source": "stub"}, "replicas": {"gpus": 0}},
}
IMAGES = 24


def judge(folder: Path, **more: Any) -> str:
    (folder / "judge.yaml").write_text(yaml.safe_dump(JUDGE | more))
    return str(folder / "judge.yaml")


def objects(out: Path, job: str) -> dict[Path, int]:
    found = {path: path.stat().st_mtime_ns for path in (out / "evaluations").glob(f"{job}-*/**/*.parquet")}
    assert found
    return found


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(600)
def test_outputs_are_told_apart_and_what_was_done_is_not_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write(tmp_path, "good", range(IMAGES), full)
    poor = write(tmp_path, "poor", range(IMAGES + 4, 3, -1), half, failed=(7,))
    said_before = verified(good, capsys)
    command = ["evaluate", str(good), str(poor), "--judge", judge(tmp_path), "--sample", "14"]
    whole = evaluate.run

    def dies(job: Job, **more: Any) -> Any:
        if job.name == "score":
            raise SystemFailure("the reader's node is gone.")
        return whole(job, **more)

    monkeypatch.setattr(evaluate, "run", dies)
    assert cli.main(command) == 1
    asked = objects(good, "questions")
    monkeypatch.setattr(evaluate, "run", whole)
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert objects(good, "questions") == asked

    found = json.loads((good / "evaluation.json").read_text())
    first, second = found["outputs"]
    assert (first, second) == (f"A: {good}", f"B: {poor}") and found["images"] == 14
    score = {way: told["score"]["value"] for way, told in found["ways"].items()}
    assert score[first] == 1 and 0.65 < score[second] < 0.85
    assert score["empty"] == 0 <= score["swapped"] < 0.5 and score["alt text"] == 0.5
    (apart,) = found["differences"]
    assert apart["told_apart"] and apart["difference"]["value"] == pytest.approx(score[second] - 1)
    assert found["evaluation"]["common"] == 19  # 4 to 23, but for the one that has failed
    assert found["cost"]["questions_written"] == 70 and found["cost"]["questions_kept"] == 28
    assert (good / "report" / "evaluation.html").exists()
    assert verified(good, capsys) == said_before

    monkeypatch.setattr(evaluate, "run", None)  # nothing is run any more
    assert cli.main(command) == 0
    assert capsys.readouterr().out == said
    jobs: list[Job] = []
    monkeypatch.setattr(evaluate, "run", lambda job, **more: jobs.append(job) or dies(replace(job, name="score")))
    assert cli.main([*command[:-1], "19"]) == 1  # what has questions gets no others
    (images,) = jobs[0].recipe.input.paths
    new = [pq.read_table(file).num_rows for file in Path(images).glob("*.parquet")]
    assert jobs[0].name == "curate" and sum(new) == 5
    moved = good.rename(tmp_path / "moved")
    monkeypatch.setattr(evaluate, "run", dies)
    assert cli.main(["evaluate", str(poor), "--questions", str(moved), "--judge", judge(tmp_path)]) == 1
    (table,) = (poor / "evaluations").glob("answers-*/questions.parquet")
    assert pq.read_table(table).num_rows == 28 and not list((poor / "evaluations").glob("questions-*"))
    ways = pq.read_table(table.parent / "captions.parquet")["ways"].to_pylist()
    assert sum("A" in of for of in ways) == 14  # all that have questions


def verified(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert cli.main(["verify", str(out)]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_questioner_without_questions_ends_the_evaluation_with_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write(tmp_path, "out", range(12), full)
    assert cli.main(["evaluate", str(out), "--judge", judge(tmp_path, prompt={"user": "Describe it."})]) == 3
    said = capsys.readouterr().err
    assert "failures.max_fraction: 12 of 12 images failed, more than 0.5 allows (no_question 12); " in said
    assert "no JSON object; it begins" in said and "the questioner wrote no usable question" in said
