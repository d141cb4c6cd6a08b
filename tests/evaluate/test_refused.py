"""What an evaluation cannot do, in one sentence each, before anything starts; and what it asks."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from caprl_ray import cli, sources
from caprl_ray.commands import evaluate as commands
from caprl_ray.errors import RecipeError, TooManyFailures
from caprl_ray.evaluate import folder, judged, questions
from caprl_ray.evaluate.answers import Image
from caprl_ray.evaluate.captions import Captions
from caprl_ray.evaluate.folder import Place
from caprl_ray.evaluate.pictures import Pictures, refuse_gone
from caprl_ray.evaluate.run import evaluate
from caprl_ray.evaluate.sample import Drawn, Sample, sample
from caprl_ray.evaluate.told import Request, told
from caprl_ray.job import Job
from caprl_ray.recipe.judge import as_judge, judge
from caprl_ray.report.facts import facts
from caprl_ray.rows.schema import row_id
from caprl_ray.score.question import Question
from caprl_ray.score.questions import Questions
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage
from tests.checkout import ROOT
from tests.evaluate.evaluations import evaluation
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
        ({"input": {"paths": ["x"]}}, "input: a judge's recipe can have only prepare, model,"),
        ({"score": {"join": "id"}}, "score.join: the evaluation sets it; leave it out"),
        ({"score": {"questions": ["x"]}}, "score.questions: the evaluation sets it"),
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
    assert "names no images; give it one of the columns sha256, key, path, id" in said
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
    with pytest.raises(TooManyFailures, match=r"\(answer_unclear 8\); the reader did not answer them; give the"):
        evaluate(request, fails)
    request = Request(outputs=[str(out)], judge=as_judge(dict(JUDGE)))
    with pytest.raises(TooManyFailures, match="the questioner wrote no usable question about these images"):
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
    with pytest.raises(RecipeError, match="enough"):  # other kinds are no other questions
        evaluate(replace(request, questions=asked(out.parent, join, kind="sizes")), stops)
    assert [stored] == list(out.glob("evaluations/answers-*/questions.parquet"))
    assert {one.kind for of in questions.by_image(Storage(), str(stored)).values() for one in of} == {"sizes"}
    (out / "evaluation.json").write_text(json.dumps({"evaluation": {"questions": str(stored.relative_to(out))}}))
    assert questions.given(Storage(), str(out)).path == str(stored)


@pytest.mark.parametrize("join", ["path", "sha256"])
def test_questions_in_the_form_of_qa_75k_are_found_by_bytes_or_name_and_never_by_the_ids_of_rows(
    out: Path, join: str
) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(8):
        path, choices = picture(out.parent, number), ["A) 56x84", "B) 84x84", "C) 112x84"]
        truth = [{"question": "Size?", "choices": choices, "answer": "ABC"[number % 3]}]
        row = {"id": row_id(0, 7 - number), "image": {"path": f"x/{path.name}"}, "sha256": key(path)}
        rows.append({**row, "reward_model": {"ground_truth": truth}})
        if join == "path":
            del rows[-1]["sha256"]
    pq.write_table(pa.Table.from_pylist(rows), out.parent / "qa.parquet")
    found = questions.given(Storage(), str(out.parent / "qa.parquet"))
    drawn = sample([facts(Storage(), str(out))], 8, 0, wanted=found.wanted()).drawn
    assert found.join == join and len(drawn) == 8
    for one in drawn:
        (about,) = found.about(drawn)[one.image.key]
        assert about.choices[about.right or 0] == f"{one.image.width}x84"


def test_the_notes_say_what_of_the_outputs_was_looked_at(out: Path) -> None:
    drawn = sample([facts(Storage(), str(out))], 3, 0).drawn
    gone = drawn[0].image
    seen = Pictures(storage=Storage(), folder="", places={}, gone={gone.key: "no such file."})
    shown = evaluation({"A": {one.image.key: {"q": 1.0} for one in drawn[1:]}})

    def notes(common: int, every: int, *unfinished: str, **more: Any) -> list[str]:
        request = Request(outputs=[str(out)], judge=as_judge(dict(JUDGE)), **more)
        found = Sample(drawn=drawn, common=common, every=every)
        said = told(request, shown, found, seen, f"{out}/evaluations/answers-x", unfinished, made=False)
        assert said["questions"] == "evaluations/answers-x/questions.parquet"
        return list(said["notes"][1:])

    left_out = "1 of the 3 images drawn have no question, and are left out"
    unread = f"1 images cannot be read and are not shown, such as {gone.source} (no such file)"
    assert notes(8, 1) == [left_out, unread]
    assert notes(3, 2, "/x") == [
        "3 images of the part that was looked at are captioned; all of them are in the sample",
        "only one of 2 images of the outputs was looked at, the same ones in each",
        left_out,
        unread,
        "/x is not complete; only what it has so far was looked at",
    ]
    assert notes(8, 1, questions="q")[0] == (
        "8 images are captioned and have questions; 3 of them are in the sample, and --sample takes more"
    )


def test_an_output_may_have_a_name_like_a_pattern(tmp_path: Path) -> None:
    out, jobs = write(tmp_path, "out[1]*", range(8), full), list[Job]()

    def stops(job: Job) -> NoReturn:
        jobs.append(job)
        raise RecipeError("enough.")

    with pytest.raises(RecipeError, match="enough"):
        evaluate(Request(outputs=[str(out)], judge=as_judge(dict(JUDGE))), stops)
    found = sources.objects(Access.of(jobs[0].recipe, images=False))
    assert [one.stored.path.rpartition("/")[2] for _, one in found] == ["00000.parquet"]


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

    def name(texts: Captions = captions, right: int = 0, **score: Any) -> str:
        recipe = as_judge({"score": {"model": {"source": "stub"}, **score}}).reader("-", "-", "-")
        return place.answers({"1": [question("x", "y", right=right)]}, texts, recipe)

    moved = Captions(outputs=("A: /y",), references=("empty",), texts={("A: /y", "1"): "a", ("empty", "1"): ""})
    assert name() == name(moved) == name(replicas={"max": 7}, engine={"stall_timeout_s": 9.0})
    other = Captions(outputs=("A: /x",), references=("empty",), texts={("A: /x", "1"): "b", ("empty", "1"): ""})
    assert len({name(), name(other), name(right=1), name(seed=1), name(rotations=1), name(mode="sampled")}) == 6


def test_other_models_and_versions_are_other_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    place, who = Place(storage=Storage(), path="/work"), as_judge(dict(JUDGE))
    captions = Captions(outputs=("A: /x",), references=(), texts={("A: /x", "1"): "a"})

    def name() -> tuple[str, str]:
        asked = {"1": [question("x", "y", right=0)]}
        return place.questions(who.questioner("-", "-")), place.answers(asked, captions, who.reader("-", "-", "-"))

    names, found = [name()], folder.resolve
    with monkeypatch.context() as patch:  # the branch has moved, or the files are others
        patch.setattr(folder, "resolve", lambda recipe: replace(found(recipe), label="stub@other"))
        names.append(name())
    monkeypatch.setattr(folder, "installed", {"caprl_ray": "99.0"}.get)
    names.append(name())
    assert [len(set(of)) for of in zip(*names, strict=True)] == [3, 3]


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
    found = judged.answer("A: x", asked, judged.together(rows))
    assert (found.given, found.right, found.correct, found.cannot) == ("blue", "red", 0.25, 0.25)
    nothing = judged.answer("A: x", asked, judged.together([row("red", "blue", parsed=None, correct=None)]))
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
    assert str(asked.refuse([{"key": name}])).endswith("the images are [31mred.png; give questions about these images.")
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
    assert shipped.reader("-", "-", "-").model == default.reader("-", "-", "-").model
    assert shipped.reader("-", "-", "-").score == default.reader("-", "-", "-").score
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
