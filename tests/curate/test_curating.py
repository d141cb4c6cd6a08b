"""`caprl-ray curate` from end to end: questions about images, answered, chosen, resumed, and scored by."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from PIL import Image

from caprl_ray import cli
from caprl_ray.answer import curated
from caprl_ray.output.part import Part, part_of
from caprl_ray.recipe.score import Score
from caprl_ray.storage import Storage

IMAGES = 40


def recipe(folder: Path, **more) -> str:
    document = {
        "input": {"paths": [str(folder / "images")]},
        "model": {"source": "stub"},
        "replicas": {"gpus": 0},
        "curate": {"model": {"source": "stub"}, "replicas": {"gpus": 0}},
        "output": {"path": str(folder / "questions"), "rows_per_object": 8},
    }
    (folder / "curate.yaml").write_text(yaml.safe_dump(document | more))
    return str(folder / "curate.yaml")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for n in range(IMAGES):
        Image.new("RGB", (56 + 28 * (n % 3), 84), (6 * n, 255 - 6 * n, 90)).save(tmp_path / "images" / f"{n}.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    return tmp_path


@pytest.mark.usefixtures("ray_cluster")
def test_questions_are_kept_that_need_the_image_and_a_run_resumes(images: Path, capsys) -> None:
    path, out = recipe(images), images / "questions"
    assert cli.main(["curate", path, "--limit", "10"]) == 0
    before = pq.read_table(out / "data").to_pylist()
    assert 0 < len(before) < IMAGES
    named = Score(questions=[{"path": str(out)}])
    capsys.readouterr()
    assert len(curated.parts(Storage(), named)[str(out)]) == len(list((out / "data").iterdir()))
    assert f"score.questions: {out} is not finished, " in capsys.readouterr().err
    sums, last = out / "curated.json", part_of(0, 2)  # there is one unit
    sums.unlink()
    assert cli.main(["curate", path, "--part", str(Part(number=3 - last.number, of=2))]) == 0
    assert not sums.exists(), "who completes the output sums it up"
    assert cli.main(["curate", path, "--part", str(last)]) == 0
    assert sums.exists()
    said = capsys.readouterr().out

    rows = {row["key"]: row for row in pq.read_table(out / "data").to_pylist()}
    assert len(rows) == IMAGES and all(rows[row["key"]] == row for row in before)
    for key, row in rows.items():
        asked = row["reward_model"]["ground_truth"]
        assert [one["question"] for one in asked] == ["How many pixels has it?", "How much red has it?"]
        size = f"{row['width']}x{row['height']}"
        assert asked[0] == {"question": asked[0]["question"], "answer": "D",
                            "choices": [f"A) 0{size}", f"B) 1{size}", f"C) 2{size}", f"D) {size}"]}  # fmt: skip
        assert row["image"] == {"bytes": None, "path": key} and row["kept"] == 2
        assert row["prompt"] == [{"role": "user", "content": "<image>Please describe this image in detail."}]
        assert row["unusable"] == ["answer_outside"] and row["question_prompt"] == "image-questions-1"
        kept, guessed, wrong, _ = row["tried"]
        assert (kept["with_image"], kept["without_image"], kept["dropped"]) == (["D"] * 4, ["A"] * 4, None)
        assert (guessed["dropped"], guessed["accuracy_without_image"]) == ("answered_blind", 1)
        assert (wrong["dropped"], wrong["accuracy_with_image"]) == ("not_answered", 0)
    (failed,) = pq.read_table(out / "failed").to_pylist()
    assert (failed["key"], failed["code"]) == ("broken.png", "image_format")

    found = json.loads((out / "curated.json").read_text())
    assert found["questions"] == {"written": 5 * IMAGES, "usable": 4 * IMAGES, "kept": 2 * IMAGES}
    assert found["dropped"] == dict.fromkeys(("answer_outside", "not_answered", "answered_blind"), IMAGES)
    assert f"{2 * IMAGES} of {5 * IMAGES} questions were kept, 2.00 an image" in said
    assert cli.main(["verify", str(out)]) == 0
    assert curated.parts(Storage(), named) and "not finished" not in capsys.readouterr().err
    assert load_dataset("parquet", data_files=str(out / "data/*.parquet"), split="train").num_rows == IMAGES

    assert cli.main(["compact", str(out)]) == 0
    merged = pq.read_table(out / "data").to_pylist()
    assert len(list((out / "data").iterdir())) == 1 and {row["key"]: row for row in merged} == rows
    assert cli.main(["curate", path]) == 0 and json.loads((out / "curated.json").read_text()) == found

    captions = recipe_of_captions(images)
    assert cli.main(["caption", captions]) == 0
    assert cli.main(["score", recipe_of_scores(images)]) == 0
    scores = json.loads((images / "scores" / "scores.json").read_text())
    assert scores["benchmarks"]["questions"]["accuracy"]["value"] == 1  # the stub's captions tell what it is asked


def recipe_of_captions(folder: Path) -> str:
    document = yaml.safe_load((folder / "curate.yaml").read_text())
    del document["curate"]
    document |= {"output": {"path": str(folder / "captions")}, "failures": {"max_fraction": 1}}
    (folder / "caption.yaml").write_text(yaml.safe_dump(document))
    return str(folder / "caption.yaml")


def recipe_of_scores(folder: Path) -> str:
    document = {
        "input": {"paths": [str(folder / "captions")]},
        "model": {"source": "stub"},
        "replicas": {"gpus": 0},
        "score": {"questions": [str(folder / "questions")], "join": "path"},
        "output": {"path": str(folder / "scores")},
    }
    (folder / "score.yaml").write_text(yaml.safe_dump(document))
    return str(folder / "score.yaml")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_questioner_without_questions_ends_the_run_with_examples(images: Path, capsys) -> None:
    path = recipe(images, prompt={"user": "Describe it."}, failures={"min_rows": 8})
    assert cli.main(["curate", path]) == 3
    said = capsys.readouterr().err
    assert "no_question" in said and "no JSON object; it begins" in said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"quality": {"window": 64}}, "quality is for captioning"),
        ({"sampling": {"n": 2}}, "sampling.n"),
        ({"curate": {"times": 0}}, "curate.times"),
        ({"curate": {"model": {"source": "/no/such"}}}, "curate.model.source: /no/such is no folder"),
        ({"prompt": {"user": "{questions} about {nothing}"}}, "nothing"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_starts(images: Path, capsys, change, sentence) -> None:
    document = yaml.safe_load(Path(recipe(images)).read_text())
    for name, values in change.items():
        document[name] = document.get(name, {}) | values
    (images / "wrong.yaml").write_text(yaml.safe_dump(document))
    assert cli.main(["curate", str(images / "wrong.yaml")]) == 2
    assert sentence in capsys.readouterr().err
