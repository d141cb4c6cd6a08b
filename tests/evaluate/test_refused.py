"""What an evaluation cannot do, in one sentence each, before anything starts; and what it asks."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from caprl_ray import cli
from caprl_ray.commands import evaluate as commands
from caprl_ray.errors import RecipeError, TooManyFailures
from caprl_ray.evaluate import judged, questions
from caprl_ray.evaluate.answers import Image
from caprl_ray.evaluate.captions import Captions
from caprl_ray.evaluate.folder import Place, reader
from caprl_ray.evaluate.pictures import Pictures, refuse_gone
from caprl_ray.evaluate.run import evaluate
from caprl_ray.evaluate.sample import Drawn
from caprl_ray.evaluate.told import Request
from caprl_ray.job import Job
from caprl_ray.recipe.judge import as_judge, judge
from caprl_ray.score.question import Question
from caprl_ray.score.questions import Questions
from caprl_ray.storage import Storage
from tests.checkout import ROOT
from tests.evaluate.outputs import full, key, picture, size, write
from tests.evaluate.test_evaluate import JUDGE
from tests.s3_server import BUCKET, S3Server


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write(tmp_path, "out", range(8), full)


def asked(folder: Path, join: str = "key", **more: Any) -> str:
    """Questions about the images' sizes."""
    rows = []
    for number in range(8):
        path = picture(folder, number)
        named = {"key": f"{path.parent.name}/{path.name}", "path": f"/elsewhere/{path.name}", "sha256": key(path)}
        right = f"{size(number)[0]}x84"
        sizes = ["56x84", "84x84", "112x84"]
        rows.append({join: named[join], "question": "Size?", "choices": sizes, "answer": right, **more})
    pq.write_table(pa.Table.from_pylist(rows), folder / "asked.parquet")
    return str(folder / "asked.parquet")


def refused(capsys: pytest.CaptureFixture[str], *command: str, code: int = 2) -> str:
    assert cli.main(["evaluate", *command]) == code
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1, said
    return said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"input": {"paths": ["x"]}}, "input: a judge's recipe has only prepare, model,"),
        ({"score": {"join": "id"}}, "score.join: an evaluation decides it; leave it out"),
        ({"score": {"questions": ["x"]}}, "score.questions: an evaluation decides it"),
        ({"score": {"mode": "prism"}}, "score.mode: prism is for the files of CapRL's evaluation"),
        ({"score": {"rotations": 0}}, "score.rotations: 0 is not allowed"),
        ({"score": {"model": {"engine": {"no_such": 1}}}}, "score.model: "),
        ({"score": 1}, "score: it should be a section"),
    ],
)
def test_a_judge_that_is_none(
    out: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], sentence: str
) -> None:
    (out.parent / "judge.yaml").write_text(yaml.safe_dump(change))
    assert sentence in refused(capsys, str(out), "--judge", str(out.parent / "judge.yaml"))


def test_outputs_images_and_questions_that_will_not_do(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = out.parent
    (folder / "judge.yaml").write_text(yaml.safe_dump(JUDGE))
    own = ("--judge", str(folder / "judge.yaml"))
    other = write(folder, "other", range(20, 24), full)
    assert "have no captioned image in common, by the SHA-256" in refused(capsys, str(out), str(other), *own)
    assert f"{out} is named twice" in refused(capsys, str(out), f"{out}/", *own)
    assert "no such folder" in refused(capsys, str(folder / "nothing"), *own)
    assert "nothing is not there" in refused(capsys, str(out), *own, "--questions", str(folder / "nothing"))
    assert f"{other} has no questions" in refused(capsys, str(out), *own, "--questions", str(other))
    said = refused(capsys, str(other), *own, "--questions", asked(folder))
    assert "has no question about a captioned image; it joins by key, asks about " in said and "even/020.png" in said
    pq.write_table(pa.Table.from_pylist([{"question": "Q?", "answer": "a"}]), folder / "unnamed.parquet")
    said = refused(capsys, str(out), *own, "--questions", str(folder / "unnamed.parquet"))
    assert "names no images; give it one of the columns sha256, id, key, path" in said
    shutil.rmtree(folder / "images" / "odd")
    said = refused(capsys, str(out), *own)
    assert (
        f"{out}: 4 of 8 images of the sample cannot be read, such as " in said and "--questions of an earlier" in said
    )
    assert not list(out.glob("evaluations/questions-*"))


def test_a_judge_whose_rows_fail_is_named_with_what_can_be_done(out: Path) -> None:
    def fails(job: Job) -> NoReturn:
        raise TooManyFailures(
            "failures.max_fraction: 8 of 8 rows failed, more than 0.25 allows (answer_unclear 8); no."
        )

    request = Request(outputs=[str(out)], judge=as_judge(dict(JUDGE)), questions=asked(out.parent))
    with pytest.raises(TooManyFailures, match=r"\(answer_unclear 8\); the reader answers so few questions; give the"):
        evaluate(request, fails)
    request = Request(outputs=[str(out)], judge=as_judge(dict(JUDGE)))
    with pytest.raises(TooManyFailures, match="the questioner makes no question that can be used about so many images"):
        evaluate(request, fails)


@pytest.mark.parametrize("join", ["key", "path", "sha256"])
def test_given_questions_are_those_of_the_image(out: Path, join: str) -> None:
    found = questions.given(Storage(), asked(out.parent, join, kind="dimensions"))
    assert found.join == join and found.images == 8

    def stops(job: Job) -> NoReturn:
        assert job.recipe.input.paths[0].endswith("captions.parquet")
        raise RecipeError("enough.")

    request = Request(outputs=[str(out)], judge=as_judge(dict(JUDGE)), questions=found.path)
    with pytest.raises(RecipeError, match="enough"):
        evaluate(request, stops)
    (stored,) = out.glob("evaluations/answers-*/questions.parquet")
    sizes = {key(picture(out.parent, number)): f"{size(number)[0]}x84" for number in range(8)}
    by_image = questions.by_image(Storage(), str(stored))
    assert by_image.keys() == sizes.keys()
    for image, (question,) in by_image.items():
        assert question.choices[question.right or 0] == sizes[image] and question.kind == "dimensions"
    rows = pq.read_table(stored.parent / "captions.parquet").to_pylist()
    assert {way for row in rows for way in row["ways"]} == {"A", "empty", "swapped", "alt text"}
    assert sum("A" in row["ways"] for row in rows) == 8


def question(*choices: str, right: int) -> Question:
    return Question(
        id="q", image="a" * 64, text="Which letter?", metric="choice", benchmark="b", choices=choices, right=right
    )


def test_options_that_look_like_letters_are_stored_as_they_are(tmp_path: Path) -> None:
    given = {"a" * 64: [question("B", "A", "C. Lee", "D", right=1)]}
    (tmp_path / "questions.parquet").write_bytes(questions.table(given))
    (found,) = questions.by_image(Storage(), str(tmp_path / "questions.parquet"))["a" * 64]
    assert (found.choices, found.right) == (("B", "A", "C. Lee", "D"), 1)


def test_what_is_answered_names_the_evaluation_and_how_many_replicas_does_not() -> None:
    captions = Captions(outputs=("A: /x",), references=("empty",), texts={("A: /x", "1"): "a", ("empty", "1"): ""})
    place = Place(storage=Storage(), path="/work")

    def name(texts: Captions = captions, asked: str = "q", **score: Any) -> str:
        recipe = as_judge({"score": {"model": {"source": "stub"}, **score}}).reader("-", "-", "-")
        return place.answers(asked, texts, recipe)

    moved = Captions(outputs=("A: /y",), references=("empty",), texts={("A: /y", "1"): "a", ("empty", "1"): ""})
    assert name() == name(moved) == name(replicas={"max": 7}, engine={"stall_timeout_s": 9.0})
    other = Captions(outputs=("A: /x",), references=("empty",), texts={("A: /x", "1"): "b", ("empty", "1"): ""})
    assert len({name(), name(other), name(asked="r"), name(seed=1), name(rotations=1), name(mode="sampled")}) == 6


def test_equal_captions_of_an_image_are_read_once() -> None:
    texts = {("A: /x", "1"): "", ("B: /y", "1"): "text", ("empty", "1"): "", ("A: /x", "2"): "no questions"}
    captions = Captions(outputs=("A: /x", "B: /y"), references=("empty",), texts=texts)
    table = pq.read_table(pa.BufferReader(judged.table(captions, {"1": [question("x", "y", right=0)]})))
    assert table.to_pylist() == [
        {"image": "1", "caption": "", "ways": ["A", "empty"]},
        {"image": "1", "caption": "text", "ways": ["B"]},
    ]


def test_answers_in_all_orders_of_the_options_are_one() -> None:
    def row(*options: str, parsed: str | None, correct: float | None, refused: bool = False) -> dict[str, Any]:
        return {"options": list(options), "parsed": parsed, "correct": correct, "can_not_answer": refused}

    asked = question("red", "blue", right=0)
    rows = [
        row("red", "blue", "no", parsed="A", correct=1.0),
        row("blue", "red", "no", parsed="A", correct=0.0),
        row("red", "blue", "no", parsed="C", correct=0.0, refused=True),
        row("blue", "red", "no", parsed="A", correct=0.0),
    ]
    found = judged.answer("A: x", asked, rows)
    assert (found.given, found.right, found.correct, found.cannot) == ("blue", "red", 0.25, 0.25)
    nothing = judged.answer("A: x", asked, [row("red", "blue", parsed=None, correct=None)])
    assert (nothing.given, nothing.correct, nothing.cannot) == (None, None, 0.0)


def test_what_a_judge_leaves_out_is_as_without_it() -> None:
    some = as_judge({"failures": {"max_fraction": 0.9}})
    for recipe in (some.questioner("-", "-"), some.reader("-", "-", "-")):
        assert (recipe.failures.max_fraction, recipe.failures.min_rows) == (0.9, 50)
    for gpus, parallel in ((2, 2), (0.5, 1), (0, 1), (8, 8)):
        recipe = as_judge({"replicas": {"gpus": gpus}}).questioner("-", "-")
        assert (recipe.replicas.gpus, recipe.model.engine["tensor_parallel_size"]) == (gpus, parallel)
    with pytest.raises(RecipeError, match=r"replicas\.gpus"):
        as_judge({"replicas": {"gpus": "many"}}).questioner("-", "-")


def test_names_of_images_are_said_without_control_characters() -> None:
    name = "\x1b[31m\x07red.png"
    seen = Image(key="1", source=f"/in/{name}", kind="png", width=1, height=1)
    asked = questions.Given(path="q", join="key", questions=Questions.of([question("x", "y", right=0)]))
    assert str(asked.refuse([{"key": name}])).endswith("the images are [31mred.png.")
    gone = Pictures(storage=Storage(), folder="/nothing", places={}, gone={"1": "no such file"})
    with pytest.raises(RecipeError) as error:
        refuse_gone(gone, [Drawn(image=seen, rows=())], "out")
    assert "such as /in/[31mred.png (no such file)" in str(error.value)


def test_cores_are_reserved_for_a_reader_on_the_cpu_whichever_job_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    reserved: list[bool] = []
    monkeypatch.setattr(commands.session, "lasting", lambda debug, on_cpu: reserved.append(on_cpu) or nullcontext())
    monkeypatch.setattr(commands.session, "connected", lambda debug: nullcontext())
    monkeypatch.setattr(commands, "run", lambda job, **more: [][job.name])
    job = SimpleNamespace(name=0, codes={}, engine_on_cpu=False)
    monkeypatch.setattr(commands, "evaluate", lambda request, run, tell: run(job))
    for source in ("stub", "embedded-answerer"):
        with pytest.raises(IndexError):
            next(commands.evaluation(Request(outputs=["-"], judge=as_judge({"score": {"model": {"source": source}}}))))
    assert reserved == [False, True]


def test_the_recipe_that_ships_is_the_default() -> None:
    shipped, default = judge(str(ROOT / "recipes" / "evaluate.yaml")), judge(None)
    assert shipped.questioner("-", "-").model == default.questioner("-", "-").model
    assert shipped.questioner("-", "-").curate.model == default.questioner("-", "-").curate.model
    assert reader(shipped.reader("-", "-", "-")) == reader(default.reader("-", "-", "-"))
    assert json.dumps(default.content)


def test_a_reader_that_is_not_there_is_found_before_questions_are_made(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {**JUDGE, "score": {"model": {"source": "/no/such"}, "replicas": {"gpus": 0}}}
    (out.parent / "judge.yaml").write_text(yaml.safe_dump(content))
    said = refused(capsys, str(out), "--judge", str(out.parent / "judge.yaml"))
    assert "score.model.source: /no/such is no folder" in said and not list(out.glob("evaluations/questions-*"))


def test_an_evaluation_of_an_output_on_s3_is_kept_there(out: Path, s3: S3Server) -> None:
    for path in filter(Path.is_file, out.rglob("*")):
        s3.put(f"out/{path.relative_to(out)}", path.read_bytes())
    remote = as_judge({**JUDGE, "storage": {"endpoint": s3.endpoint, "region": "us-east-1"}})
    jobs: list[Job] = []

    def stops(job: Job) -> NoReturn:
        jobs.append(job)
        raise RecipeError("enough.")

    for given in (asked(out.parent), None):
        with pytest.raises(RecipeError, match="enough"):
            evaluate(Request(outputs=[f"s3://{BUCKET}/out"], judge=remote, questions=given), stops)
    place = f"s3://{BUCKET}/out/evaluations/"
    assert [job.name for job in jobs] == ["score", "curate"]
    assert all(path.startswith(place) for job in jobs for path in (*job.recipe.input.paths, job.recipe.output.path))
    names = [one.path.removeprefix(place).partition("/")[2] for one in Storage(remote.storage).walk(place)]
    assert sorted(names) == ["00000.parquet", "captions.parquet", "images.json", "questions.parquet"]
