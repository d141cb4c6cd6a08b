"""`caprl-ray score` from end to end: captions of an output, joined with questions, answered, judged and summed up."""

import gzip
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from caprl_ray import cli
from caprl_ray.answer import captions, curated, results
from caprl_ray.answer.job import score_job
from caprl_ray.caption.columns import CAPTION
from caprl_ray.embedded import questions as scene_questions
from caprl_ray.embedded.scenes import SHAPES, Scene, sample_scene
from caprl_ray.embedded.scenes import caption as scene_caption
from caprl_ray.errors import RecipeError
from caprl_ray.output import again, doubtful, lease
from caprl_ray.output.holder import FINISHED, Holder
from caprl_ray.output.part import Part, part_of
from caprl_ray.output.record import plain
from caprl_ray.recipe.load import load_as
from caprl_ray.recipe.score import QuestionFile
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.rows.schema import data_schema, row_id
from caprl_ray.score.question import Question
from caprl_ray.score.questions import Questions
from caprl_ray.sources import plan_units
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage
from tests.export.outputs import make

COLORS, ANIMALS = ("red", "green", "blue", "black"), ("dog", "cat", "cow", "hen")
IMAGES = 48  # 16 captions are right, 16 are of another image, 16 say nothing


def truth(image: int) -> tuple[str, str]:
    return COLORS[image % 4], ANIMALS[image // 4 % 4]


def caption(image: int) -> str | None:
    color, animal = truth(image if image < 16 else image + 5)  # five further: other color, other animal
    return f"A {color} {animal} on the grass." if image < 32 else ""


def output_of_a_caption_run(folder: Path) -> Path:
    """Two more rows have no caption, and no questions."""
    schema = data_schema(pa.schema([("url", pa.string())]), CAPTION)
    rows = [{"id": row_id(0, n), "unit": 0, "index": n, "source": f"/data/{n}.png", "key": f"train/{n}.png",
             "sha256": f"{n:064x}", "width": 9, "height": 9, "caption": caption(n), "model": "captioner",
             "url": f"https://example.org/{n}"} for n in range(IMAGES)]  # fmt: skip
    rows += [{**rows[0], "id": row_id(0, IMAGES), "index": IMAGES, "key": "train/7.png", "caption": None}]
    rows += [{**rows[0], "id": row_id(0, IMAGES + 1), "index": IMAGES + 1, "key": "other.png"}]
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "data" / ("0" * 32 + ".parquet"), row_group_size=20)
    job, said = {"name": "caption", "done": "captioned"}, {"prompt": {"system": None, "user": "Describe"}}
    (folder / "run.json").write_text(json.dumps({"fingerprint": {}, "job": job, "recipe": said}))
    return folder


def questions(folder: Path, images: int = IMAGES + 1) -> str:
    """Two questions about each image, by paths of another machine; one image has no caption."""
    rows: list[dict[str, Any]] = []
    for image in range(images):
        color, animal = truth(image)
        for text, choices, right in (("Color?", COLORS, color), ("Animal?", ANIMALS, animal)):
            rows.append({"path": f"/elsewhere/{image}.png", "question": text, "choices": choices, "answer": right})
    pq.write_table(pa.Table.from_pylist(rows), folder / "questions.parquet")
    return str(folder / "questions.parquet")


def recipe(folder: Path, asked: str, **score: Any) -> str:
    document = {
        "input": {"paths": [str(folder / "captions")]},
        "model": {"source": "stub"},
        "replicas": {"gpus": 0},
        "score": {"questions": [{"path": asked, "benchmark": "pets"}], "join": "path", **score},
        "output": {"path": str(folder / "scores"), "rows_per_object": 8},
    }
    (folder / "score.yaml").write_text(yaml.safe_dump(document))
    return str(folder / "score.yaml")


def half(scene: Scene, left_out: bool) -> str:
    """A caption that leaves the last thing out, or calls it another shape."""
    *others, last = scene.things
    wrong = replace(last, kind=SHAPES[(SHAPES.index(last.kind) + 1) % len(SHAPES)])
    return scene_caption(replace(scene, things=(*others, *([] if left_out else [wrong]))))


@pytest.mark.engine
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(600)
def test_the_real_engine_reads_what_captions_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Captions that are right, of another scene, half right, or empty, with the embedded answerer on vLLM."""
    rng, asked, rows = random.Random(8), [], []
    seen = [sample_scene(rng, least=2) for _ in range(60)]
    for number, (scene, other) in enumerate(zip(seen, [*seen[1:], seen[0]], strict=True)):
        kinds = {
            "right": scene_caption(scene),
            "swapped": scene_caption(other),
            "left out": half(scene, left_out=True),
            "wrong": half(scene, left_out=False),
            "empty": "",
        }
        about = scene_questions.about(scene, rng, 4)
        for kind, text in kinds.items():
            rows.append({"key": f"{kind} {number}", "caption": text})
            asked += [
                scene_questions.row(one, key=f"{kind} {number}", question_id=str(n), benchmark=kind)
                for n, one in enumerate(about)
            ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "captions.parquet")
    pq.write_table(pa.Table.from_pylist(asked), tmp_path / "asked.parquet")
    document = {
        "input": {"paths": [str(tmp_path / "captions.parquet")], "rename": {"key": "name"}},
        "model": {"source": "embedded-answerer"},
        "score": {"questions": [str(tmp_path / "asked.parquet")], "join": "key", "rotations": 2, "blind": 0.2},
        "output": {"path": str(tmp_path / "scores")},
    }
    (tmp_path / "score.yaml").write_text(yaml.safe_dump(document))
    assert cli.main(["score", str(tmp_path / "score.yaml")]) == 0
    assert "embedded-answerer answers only questions about rendered scenes" in capsys.readouterr().err
    found = json.loads((tmp_path / "scores" / "scores.json").read_text())["benchmarks"]
    right, refused = ({kind: one[name] for kind, one in found.items()} for name in ("accuracy", "can_not_answer"))
    share = {kind: one["value"] for kind, one in right.items()}
    assert share["right"] >= 0.95 and refused["right"] <= 0.05, found
    assert share["empty"] <= 0.05 and refused["empty"] >= 0.95, found
    assert share["swapped"] <= 0.15 and refused["swapped"] >= 0.7, found
    assert share["swapped"] + 0.2 < share["left out"] < share["right"] - 0.1, found
    assert share["swapped"] + 0.2 < share["wrong"] < share["right"] - 0.1, found
    assert refused["left out"] > 0.2 > refused["right"], found
    assert 0.1 < found["right"]["blind"]["value"] < 0.5
    for row in pq.read_table(tmp_path / "scores" / "data").to_pylist():
        for answer in row["answers"]:
            letters = "ABCDEF"[: len(answer["options"])]
            assert answer["raw"].strip() == answer["parsed"] == letters[np.argmax(answer["logprobs"])]


def test_questions_are_not_taken_from_the_output_of_another_job(tmp_path: Path) -> None:
    path = recipe(tmp_path, str(output_of_a_caption_run(tmp_path / "captions")))
    with pytest.raises(RecipeError, match=r"^score\.questions: .* the job caption, not questions"):
        score_job(load_as(ScoreRecipe, path))


def in_two_parts(path: str, sums: Path) -> None:
    """Score by two drivers. There is one unit, so one of them has nothing to do."""
    last = part_of(0, 2)
    sums.unlink()
    assert cli.main(["score", path, "--part", str(Part(number=3 - last.number, of=2))]) == 0
    assert not sums.exists(), "who completes the output sums it up"
    assert cli.main(["score", path, "--part", str(last)]) == 0
    assert sums.exists()


def compacted(output: Path) -> list[dict[str, Any]]:
    """The rows of an output after `compact`."""
    before = len(list((output / "data").iterdir()))
    assert cli.main(["compact", str(output)]) == 0
    assert before > 3 and len(list((output / "data").iterdir())) == 1
    return pq.read_table(output / "data").to_pylist()


@pytest.mark.usefixtures("ray_cluster")
def test_captions_are_scored_by_what_can_be_answered_from_them_and_a_run_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_of_a_caption_run(tmp_path / "captions")
    path = recipe(tmp_path, questions(tmp_path), twice=0.5)
    assert cli.main(["score", path, "--limit", "20"]) == 0
    kept = pq.read_table(tmp_path / "scores" / "data").to_pylist()
    assert 0 < len(kept) < IMAGES
    capsys.readouterr()
    in_two_parts(path, tmp_path / "scores" / "scores.json")
    said = capsys.readouterr().out

    rows = {row["image_key"]: row for row in pq.read_table(tmp_path / "scores" / "data").to_pylist()}
    assert len(rows) == IMAGES and all(rows[row["image_key"]] == row for row in kept)
    for image in range(IMAGES):
        row = rows[f"train/{image}.png"]
        assert row["score"] == (1 if image < 16 else 0) and row["caption"] == caption(image)
        assert (row["image_id"], row["url"]) == (row_id(0, image), f"https://example.org/{image}")
        seen = [answer for answer in row["answers"] if answer["condition"] == "caption"]
        assert len(seen) == row["answered"] == 8 and row["can_not_answer"] == (8 if image >= 32 else 0)
        for answer in seen:
            assert answer["options"][-1] == "Can not answer based on the caption"
            shown = dict(zip("ABCDE", answer["options"], strict=True))
            assert shown[answer["right"]] == truth(image)[answer["question"] == "Animal?"]
            assert answer["logprobs"]["ABCDE".index(answer["parsed"])] == pytest.approx(-0.1)
    assert {(row["answerer"], row["score_prompt"]) for row in rows.values()} == {("stub", "caption-questions-1")}
    failed = {row["image_key"]: row["code"] for row in pq.read_table(tmp_path / "scores" / "failed").to_pylist()}
    assert failed == {"train/7.png": "no_caption", "other.png": "no_questions"}

    found = json.loads((tmp_path / "scores" / "scores.json").read_text())
    pets = found["benchmarks"]["pets"]
    assert pets["accuracy"]["value"] == pytest.approx(1 / 3) and pets["unscored"] == 0
    assert pets["accuracy"]["low"] < 1 / 3 < pets["accuracy"]["high"] and pets["can_not_answer"] == pytest.approx(1 / 3)
    assert pets["blind"]["value"] == pytest.approx(1 / 4)  # the stub guesses the first by the alphabet
    assert pets["again"]["same"] == pets["again"]["answers"] > 20 and pets["places"]["bias"] == 0
    assert found["captions_without_questions"] == found["images_without_scores"]["count"] == 1
    assert found["captions"][0]["prompt"] == {"system": None, "user": "Describe"}
    assert found["images_without_scores"]["first"] == ["48.png"] and found["prompt"] == "caption-questions-1"
    assert "pets: 33.3% [" in said and "1 captions without questions, 1 images with questions" in said

    own = str(tmp_path / "scores")
    assert cli.main(["score", path, "--against", own]) == 0
    said = capsys.readouterr().out
    assert f"pets: +0.0% [0.0%, 0.0%] to {own} on 96 questions of both; they cannot be told apart" in said
    assert cli.main(["score", path, "--against", str(tmp_path / "captions")]) == 2
    assert "is not the output of a scoring run: it holds the rows of the job caption." in capsys.readouterr().err

    assert {row["image_key"]: row for row in compacted(tmp_path / "scores")} == rows
    assert cli.main(["score", path]) == 0
    assert json.loads((tmp_path / "scores" / "scores.json").read_text()) == found
    assert cli.main(["verify", own]) == 0
    assert "48 scored, 2 failed" in capsys.readouterr().out
    assert cli.main(["score", path, "score.seed=1"]) == 2
    assert "score.seed was 0 and is 1" in capsys.readouterr().err
    (merged,) = (tmp_path / "captions" / "data").iterdir()
    merged.rename(merged.with_name("1" * 32 + ".parquet"))  # as compact does
    assert cli.main(["score", path, "--extend"]) == 2
    assert f"has replaced files of captions since they were scored (1, such as {merged})" in capsys.readouterr().err
    assert cli.main(["score", path]) == 0


def test_a_wrong_recipe_is_refused_in_one_sentence_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_of_a_caption_run(tmp_path / "captions")
    asked = questions(tmp_path)
    path = recipe(tmp_path, asked)

    def refused(*overrides: str) -> str:
        assert cli.main(["score", path, *overrides]) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and not (tmp_path / "scores" / "run.json").exists(), said
        return said

    pq.write_table(pa.Table.from_pylist([{"id": "x", "question": "Q?", "choices": ["a", "b"], "answer": "c"}]), asked)
    said = refused("score.join=id")
    assert f"{asked}: row 0: its answer 'c' is none of its options, A) a, B) b." in said
    pq.write_table(pa.Table.from_pylist([{"id": "x", "question": "Q?", "choices": ["a", "b"], "answer": "a"}]), asked)
    said = refused("score.join=id")
    assert "captions have 000000-00000000, 000000-00000001, 000000-00000002 in id, questions are about x" in said
    assert "score.join: path is not in" in refused()
    assert "score.mode: prism needs questions with prompts of their own" in refused("score.join=id", "score.mode=prism")
    assert "prompt is for captioning" in refused("prompt.user=Describe")
    assert "score.mode: 'best' is not allowed" in refused("score.mode=best")
    assert "score.questions.0.pth: unknown field; questionfile has path" in refused(
        "score.questions=[{path: x, pth: x}]"
    )
    assert "score.system: null is not possible with model.endpoint" in refused("model.endpoint=http://127.0.0.1:9/v1")
    pq.write_table(pa.Table.from_pylist([{"id": row_id(0, 0), "question": f"{n}?" * 50, "choices": list("abcd"),
                                          "answer": "a"} for n in range(2000)]), asked)  # fmt: skip
    assert "an image has 2,000 questions, which is too many for one row" in refused("score.join=id")
    assert "instruction must contain {question} exactly once" in refused("score.instruction=Read {caption}")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"")
    pq.write_table(pa.Table.from_pylist([{"id": "x", "question": "Q?", "choices": ["a", "b"], "answer": "a"}]), asked)
    lines = ("score.join=id", f"input.paths={tmp_path / 'empty.jsonl'}")
    assert "input.paths: the captions have no rows" in refused(*lines)
    assert "photos holds no file named like parquet or JSON lines" in refused(
        "score.join=id", f"input.paths={tmp_path / 'photos'}"
    )
    assert "input.kind: webdataset has no rows without images" in refused(*lines, "input.kind=webdataset")
    against = refused(*lines, "--against", str(tmp_path))
    assert "is not the output of a scoring run: it has no run.json." in against


def test_an_output_of_two_versions_has_the_columns_of_both(tmp_path: Path) -> None:
    data = output_of_a_caption_run(tmp_path / "captions") / "data"
    older = pq.read_table(data).drop_columns(["row", "url"])
    first = (data / ("0" * 32 + ".parquet")).rename(data / ("1" * 32 + ".parquet")).with_name("0" * 32 + ".parquet")
    unit = older.schema.get_field_index("unit")
    pq.write_table(older.set_column(unit, "unit", pa.array([1] * len(older), pa.int32())), first)
    found = captions.found(load_as(ScoreRecipe, recipe(tmp_path, questions(tmp_path)), []), Storage())
    assert "row" in found.recipe.input.columns.drop
    columns = [name for one in plan_units(Access.of(found.recipe, images=False)) for name in one.columns.names]
    assert "url" in columns and "image_id" in columns and not {"row", "unit"} & set(columns)


def test_questions_about_one_image_never_go_to_captions_of_two(tmp_path: Path) -> None:
    table = pa.table({"key": ["a/1.png", "b/2.png", "b/1.png", "c/3.png", "d/3.png"], "caption": ["x"] * 5})
    pq.write_table(table, tmp_path / "captions.parquet")
    path = recipe(tmp_path, questions(tmp_path), column="key")
    found = captions.found(load_as(ScoreRecipe, path, [f"input.paths={tmp_path / 'captions.parquet'}"]), Storage())

    def asked(image: str) -> Questions:
        return Questions.of([Question(id="q", image=image, text="?", metric="exact", benchmark="b", answers=("x",))])

    captions.check_common(found, asked("2.png"), Storage())  # no question is about the names that two have
    with pytest.raises(RecipeError, match=r"^score.join: a/1\.png and b/1\.png in key have the same file name"):
        captions.check_common(found, asked("1.png"), Storage())


def test_an_output_where_captions_may_change_or_stand_twice_is_not_scored(tmp_path: Path) -> None:
    output, storage = output_of_a_caption_run(tmp_path / "captions"), Storage()
    given = load_as(ScoreRecipe, recipe(tmp_path, questions(tmp_path)), [])
    captions.found(given, storage)

    def refused() -> str:
        with pytest.raises(RecipeError, match=r"^input.paths: .*captions") as error:
            captions.found(given, storage)
        return str(error.value)

    held = replace(Holder.this_process(), boot="elsewhere", number=2).renewed(90)
    (output / lease.NAME).write_bytes(held.content)
    assert "a run is writing" in refused() and "wait for its end" in refused()
    (output / lease.NAME).write_bytes(held.renewed(0, FINISHED).content)
    again.requested(storage, str(output), "caption is null", "run", 3)
    assert "is not yet done with --again 'caption is null'; finish that first, or delete" in refused()
    shutil.rmtree(output / again.FOLDER)
    doubtful.keep(storage, str(output), 2, [(0, 3), (0, 4), (9, 9)])
    assert f"has 2 rows of a sick replica, such as {row_id(0, 3)}; run caption again" in refused()
    shutil.rmtree(output / doubtful.FOLDER)
    shutil.copy(output / "data" / ("0" * 32 + ".parquet"), output / "data" / ("1" * 32 + ".parquet"))
    assert f"has {IMAGES + 2} rows twice; caprl-ray verify --repair removes them" in refused()

    run = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(run | {"job": {"name": "curate", "done": "curated"}}))
    asked = given.score.model_copy(update={"questions": [QuestionFile(path=str(output))]})
    with pytest.raises(RecipeError, match=r"^score.questions: .*captions has .* rows twice"):
        curated.parts(storage, asked)
    (output / lease.NAME).write_bytes(held.renewed(90).content)
    with pytest.raises(RecipeError, match=r"^score.questions: a run is writing .*captions; wait for its end"):
        curated.parts(storage, asked)


@pytest.mark.usefixtures("ray_cluster")
def test_json_lines_are_scored_once_each_and_a_broken_one_is_a_failed_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `export --to jsonl` and CapRL-2M have them."""
    lines = [json.dumps({"id": f"n{n}", "image": f"train/{n}.png", "caption": caption(n)}) for n in range(IMAGES)]
    lines[7] = '{"id": "n7", "image" "train/7.png"}'
    (tmp_path / "captions.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    path = recipe(tmp_path, questions(tmp_path))
    paths = f"input.paths={tmp_path / 'captions.jsonl.gz'}"
    assert cli.main(["score", path, paths, "--limit", "20"]) == 0
    kept = pq.read_table(tmp_path / "scores" / "data").to_pylist()
    assert 0 < len(kept) < IMAGES - 1
    assert cli.main(["score", path, paths]) == 0
    rows = {row["image_id"]: row for row in pq.read_table(tmp_path / "scores" / "data").to_pylist()}
    assert len(rows) == IMAGES - 1 and all(rows[row["image_id"]] == row for row in kept)
    for n in {*range(IMAGES)} - {7}:
        row = rows[f"n{n}"]
        assert (row["image"], row["caption"], row["row"]) == (f"train/{n}.png", caption(n), n)
        assert row["score"] == (1 if n < 16 else 0)
    (failed,) = pq.read_table(tmp_path / "scores" / "failed").to_pylist()
    assert (failed["code"], failed["row"]) == ("bad_line", 7) and failed["detail"].startswith("line 8: not JSON")
    capsys.readouterr()
    assert cli.main(["verify", str(tmp_path / "scores")]) == 0
    assert "47 scored, 1 failed" in capsys.readouterr().out


def test_lines_of_an_export_are_captions_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make(tmp_path)
    for form in ("caprl", "llava"):
        export = ["export", str(made.path), "--to", "jsonl", "--form", form, "--out", str(tmp_path / form)]
        assert cli.main([*export, "--shard-rows", "40"]) == 0
    name, row = next((name, row) for name, row in made.finished.items() if row["key"].endswith(".png"))
    asked = {"question": "?", "metric": "exact", "answer": "x"}
    both = [{"path": row["key"], "id": name, **asked}, {"path": "absent.png", "id": "absent", **asked}]
    pq.write_table(pa.Table.from_pylist(both), tmp_path / "questions.parquet")
    for join, stored, column in (("path", "image", "image"), ("id", "id", "image_id")):
        path = recipe(tmp_path, str(tmp_path / "questions.parquet"), join=join)
        given = load_as(ScoreRecipe, path, [f"input.paths={tmp_path / 'caprl'}"])
        job, _ = score_job(given)
        found = captions.found(given, Storage())
        assert (found.stored, found.column) == (stored, column)
        units = list(plan_units(Access.of(job.recipe, images=False)))
        assert len(units) > 2 and sum(unit.rows or 0 for unit in units) == len(made.finished)
        job.check_columns(units[0].columns.names)
    assert cli.main(["score", path, f"input.paths={tmp_path / 'llava'}"]) == 2
    assert "no column caption; they have image_id, image, conversations; for captions alone, export" in (
        capsys.readouterr().err
    )


def test_scores_of_another_reader_or_of_other_questions_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_of_a_caption_run(tmp_path / "captions")
    path, other = recipe(tmp_path, questions(tmp_path)), tmp_path / "other"
    job, _ = score_job(load_as(ScoreRecipe, path, []))
    fields = plain(dict(job.fingerprint)) | {"score.caption": "caption_2", "score.blind": 0.0, "version.vllm": "0"}
    results.refuse_asked_otherwise("other", fields, job.fingerprint)
    results.refuse_asked_otherwise("older", {"score.seed": 0}, job.fingerprint)
    fields |= {"model.source": "another", "score.questions": "others", "score.prompt": "own instruction"}
    other.mkdir()
    told = {"fingerprint": fields | {"score.mode": "sampled"}, "job": {"name": "score", "done": "scored"}}
    (other / "run.json").write_text(json.dumps(told))
    assert cli.main(["score", path, "--against", str(other)]) == 2
    names = "model.source, score.mode, score.prompt, score.questions"
    said = capsys.readouterr().err
    assert f"--against: {other} was scored with another {names}; only scores of the same" in said
    assert not (tmp_path / "scores").exists()


def test_captions_in_any_parquet_are_joined_by_the_column_that_the_recipe_names(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", None, "b"], "text": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "captions.parquet")
    path = recipe(tmp_path, questions(tmp_path), column="id", caption="text")
    given = load_as(ScoreRecipe, path, [f"input.paths={tmp_path / 'captions.parquet'}", "input.rename={id: name}"])
    found = captions.found(given, Storage())
    assert (found.stored, found.column, found.recipe.input) == ("id", "name", given.input)
    captions.check_columns(found, ["name", "text"])
    with pytest.raises(RecipeError, match=r"score.caption: the captions have no column text; they have name\."):
        captions.check_columns(found, ["name"])
    asked = Questions.of([Question(id="q", image="b", text="?", metric="exact", benchmark="b", answers=("x",))])
    captions.check_common(found, asked, Storage())
    with pytest.raises(RecipeError, match=r"captions have a, b in id, questions are about c\."):
        captions.check_common(found, Questions.of([replace(next(iter(asked.about("b"))), image="c")]), Storage())
