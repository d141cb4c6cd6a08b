"""A wrong section `score` in a caption recipe is refused in one sentence before Ray starts."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from PIL import Image

from caprl_ray import cli
from caprl_ray.caption.job import caption_job
from caprl_ray.dataset import caption_dataset
from caprl_ray.errors import RecipeError
from caprl_ray.plan import Entry, Unit
from caprl_ray.recipe.load import parse
from caprl_ray.storage import Stored

QUESTION = {"id": "42", "question": "Color?", "choices": ["red", "blue"], "answer": "red"}


def asked(folder: Path, **row: Any) -> str:
    pq.write_table(pa.Table.from_pylist([{"path": row.get("key")} | QUESTION | row]), folder / "questions.parquet")
    return str(folder / "questions.parquet")


def document(folder: Path, **score: Any) -> dict[str, Any]:
    return {
        "input": {"paths": [str(folder / "images")]},
        "model": {"source": "stub"},
        "replicas": {"gpus": 0},
        "score": {"join": "key", "model": {"source": "stub"}, "replicas": {"gpus": 0}, **score},
        "output": {"path": str(folder / "out")},
    }


def test_wrong_questions_and_readers_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("a/1.png", "2.png"):
        Image.new("RGB", (30, 30)).save(tmp_path / "images" / name)
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))

    def refused(path: str, *overrides: str) -> str:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document(tmp_path, questions=path)))
        assert cli.main(["caption", str(tmp_path / "recipe.yaml"), *overrides]) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and not (tmp_path / "out" / "data").exists(), said
        return said

    questions = asked(tmp_path, key="b/3.png")
    assert (
        "score.join: there is no question about any image; images have 2.png, a/1.png as key, questions are about "
        "b/3.png. Give another score.join, or score.column."
    ) in refused(questions)
    assert "score.join: id is the images' own id, such as 000000-00000000, and questions are about 42." in refused(
        questions, "score.join=id"
    )
    assert "score.join: sha256 is not in" in refused(questions, "score.join=sha256")
    assert "score.column: the input has no column qa_id; it has no columns besides" in refused(
        questions, "score.join=id", "score.column=qa_id"
    )
    assert "score.model.source: nowhere is no folder, s3:// prefix or hub id" in refused(
        questions, "score.model.source=nowhere"
    )
    assert "score.system: null is not possible with score.model.endpoint" in refused(
        questions, "score.model.endpoint=http://127.0.0.1:9/v1"
    )
    assert "score.mode: prism is an evaluation and no reward" in refused(questions, "score.mode=prism", "sampling.n=2")
    assert "score.mode: prism needs questions with prompts of their own" in refused(questions, "score.mode=prism")
    assert "score.replicas.gpus is 2, but model.engine's tensor" in refused(questions, "score.replicas.gpus=2")
    assert "score.caption is not for captions that this run writes" in refused(questions, "score.caption=text")
    broken = asked(tmp_path, key="2.png", answer="green")
    assert f"{broken}: row 0: its answer 'green' is none of its options" in refused(broken)


def unit(kind: str, *keys: str) -> Unit:
    stored = [Stored(path=f"/{key}", size=1, version="v") for key in keys]
    return Unit(kind=kind, rows=None, entries=[Entry(stored=one, key=one.path[1:]) for one in stored])


def test_files_have_a_question_if_one_of_them_has_and_other_inputs_are_not_judged_before_they_are_read(
    tmp_path: Path,
) -> None:
    job = caption_job(parse(document(tmp_path, questions=asked(tmp_path, key="x/3.png"), join="path")))
    assert job.check_units
    unknown = [unit("files", "1.png"), unit("webdataset", "s.tar")]
    for units in ([unit("files", "a/1.png"), unit("files", "b/3.png")], unknown):
        assert list(job.check_units(iter(units))) == units
    with pytest.raises(RecipeError, match=r"^score\.join: there is no question about any image; images have a/1\.png"):
        list(job.check_units(iter([unit("files", "a/1.png")])))
    several = [unit("files", "a/1.png", "b/1.png", "a/3.png"), unit("webdataset", "s.tar"), unit("files", "b/3.png")]
    with pytest.raises(RecipeError, match=r"^score\.join: /a/3\.png and /b/3\.png have the same file name, by which"):
        list(job.check_units(iter(several)))


def test_everything_that_changes_scores_is_in_the_fingerprint_and_how_many_readers_there_are_is_not(
    tmp_path: Path,
) -> None:
    questions = asked(tmp_path, key="x")

    def fields(**score: Any) -> dict[str, Any]:
        return dict(caption_job(parse(document(tmp_path, **{"questions": questions, **score}))).fingerprint)

    plain = fields()
    without = document(tmp_path) | {"score": None}
    captions = dict(caption_job(parse(without)).fingerprint)
    assert captions.items() <= plain.items() and plain.keys() - captions.keys() >= {"score.mode", "score.model.source"}
    assert fields(replicas={"gpus": 0, "max": 3}, engine={"stall_timeout_s": 9.0}) == plain
    for other in ({"mode": "sampled"}, {"seed": 1}, {"instruction": "{caption} {question}"}, {"join": "path"}):
        assert {name for name in fields(**other) if fields(**other)[name] != plain[name]}, other
    (tmp_path / "more.parquet").write_bytes(Path(asked(tmp_path, key="y")).read_bytes())
    assert fields(questions=str(tmp_path / "more.parquet"))["score.questions"] != plain["score.questions"]
    assert fields(model={"source": "stub", "engine": {"dtype": "float32"}})["score.model.engine.dtype"] == "float32"


def test_captions_inside_a_dataset_are_not_scored(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^score: captions inside a Ray Dataset are not scored"):
        caption_dataset(None, {"score": {"questions": asked(tmp_path)}})  # type: ignore[arg-type]
