"""Question files: each format read to the letter, and a file that is wrong refused with its row."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray.errors import RecipeError
from caprl_ray.recipe.score import Metric, Score
from caprl_ray.score.metrics import METRICS
from caprl_ray.score.question import Question, options
from caprl_ray.score.questions import Questions
from caprl_ray.score.read import read
from caprl_ray.storage import Storage

QA = {
    "id": "img-1",
    "image": {"bytes": b"no image", "path": "photos/1.jpg"},
    "prompt": [{"role": "user", "content": "Describe."}],
    "data_source": "image_caption_rl",
    "reward_model": {
        "ground_truth": [
            {"question": "What color?", "choices": ["A) red", "B) blue", "C) a dog: brown"], "answer": "C"},
            {"question": "图中有几只狗?", "choices": ["A) 一", "B) 二"], "answer": "A"},
        ]
    },
}
CHATML = (
    "<|im_start|>system\nThink first.<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
    "How many bars?<|im_end|>\n<|im_start|>assistant\n"
)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows))
    return str(path)


def questions(path: str, join: str = "id", **more: Any) -> Questions:
    return read(Storage(), Score.model_validate({"questions": [{"path": path, **more}], "join": join}))


def test_qa_75k_is_read_without_its_images(tmp_path: Path) -> None:
    path = write(tmp_path / "qa.parquet", [QA, {**QA, "id": "img-2"}])
    found = questions(path)
    assert (len(found), sorted(found.images())) == (4, ["img-1", "img-2"])
    color, dogs = found.about("img-1")
    assert (color.id, color.text, color.right) == ("img-1#0", "What color?", 2)
    assert color.choices == ("red", "blue", "a dog: brown") and (color.metric, color.benchmark) == ("choice", "qa")
    assert (dogs.choices, dogs.right, found.about("img-3")) == (("一", "二"), 0, [])
    by_path = questions(write(tmp_path / "one.parquet", [QA]), join="path")
    assert "1.jpg" in by_path and len(by_path.about("1.jpg")) == 2


def test_an_evaluation_file_keeps_its_prompt_and_the_recipe_names_its_metric(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "/data/chart/7.png", "prompt": CHATML, "answer": "14"},
        {
            "image": [{"role": "user", "content": [{"type": "image", "image": "8.png"}]}],
            "prompt": CHATML,
            "answer": ["3", "three"],
        },
    ]
    rows.append(rows[0])  # benchmarks have several questions about an image, and the same one twice
    path = write(tmp_path / "char_by_folder.json", rows)
    found = questions(path, "path", benchmark="ChartQA")
    (one, twin), (other,) = found.about("7.png"), found.about("8.png")
    assert (one.id, twin.id, other.id) == ("row 0", "row 2", "row 1")
    assert (one.system, one.text, one.begin) == ("Think first.", "How many bars?", "")
    assert (one.metric, one.answers, other.answers, one.choices) == ("relaxed", ("14",), ("3", "three"), ())
    assert questions(path, "path", benchmark="mine", metric="exact").about("7.png")[0].metric == "exact"
    with pytest.raises(RecipeError, match="row 0: this kind of file does not say its metric"):
        questions(path, "path")  # never by the name of a file


def test_a_table_names_its_metrics_and_the_right_option_by_letter_or_text(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "question": "Color?", "choices": ["red", "blue"], "answer": "blue", "metric": None},
        {"id": "a", "question": "Letter?", "choices": ["red", "blue"], "answer": "A", "metric": "choice"},
        {"id": "b", "question": "Sum?", "choices": None, "answer": "12 %", "metric": "relaxed"},
    ]
    for name in ("table.parquet", "table.jsonl", "table.json"):
        path = Path(write(tmp_path / name, rows))
        if path.suffix != ".parquet":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as Windows marks its files
        found = questions(str(path))
        assert [one.right for one in found.about("a")] == [1, 0]
        assert found.about("b")[0].answers == ("12 %",) and found.metrics() == ["choice", "relaxed"]


TABLE = {"id": "a", "question": "Q?", "choices": ["red", "blue"], "answer": "red", "metric": "choice"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({**TABLE, "answer": "green"}, "its answer 'green' is none of its options, A\\) red, B\\) blue"),
    (
        {**TABLE, "choices": ["B", "A"], "answer": "A"},
        "its answer 'A' is the letter of one option and the text of another",
    ),
    ({**TABLE, "answer": "A cat"}, "its answer 'A cat' is none of its options"),
    ({**TABLE, "choices": ["A) red", "A) blue"], "answer": "A"}, "two of its options have the letter A"),
    ({**TABLE, "choices": ["red", "Red "]}, "two of its options are 'red'"),
    ({**TABLE, "choices": ["red"]}, "it has 1 options"),
    ({**TABLE, "choices": None}, "choices is no list of texts"),
    ({**TABLE, "metric": "bleu"}, "its metric 'bleu' is unknown; the metrics are choice, relaxed"),
    ({**TABLE, "metric": "math", "answer": "???"}, r"its answer '\?\?\?' is no formula that can be read"),
    ({**TABLE, "answer": ""}, "it has no text in answer"),
    ({**TABLE, "id": None}, "it has no text in id"),
    ({**TABLE, "question": " "}, "it has no text in question"),
    ({**QA, "image": None, "reward_model": "x"}, "reward_model.ground_truth is no list of questions"),
    (
        {**QA, "image": None, "reward_model": {"ground_truth": ["x"]}},
        "question 0: it is no object with question, choices and answer",
    ),
    ({**TABLE, "metric": ["exact"]}, r"its metric \"\['exact'\]\" is unknown"),
    ({**TABLE, "metric": {"a": 1}}, r"its metric \"\{'a': 1\}\" is unknown"),
    ({**TABLE, "answer": "[{[]: 1}]"}, r"its answer '\[\{\[\]: 1\}\]' is none of its options"),
    *(({**TABLE, name: "\ud800"}, "it has text that is not Unicode") for name in ("id", "question", "question_id")),
    ({**TABLE, "choices": ["red", "\ud800"]}, "it has text that is not Unicode"),
]


@pytest.mark.parametrize(("row", "sentence"), WRONG)
def test_a_wrong_row_is_an_error_of_its_file_with_its_number(
    tmp_path: Path, row: dict[str, Any], sentence: str
) -> None:
    path = write(tmp_path / "table.json", [{**TABLE, "id": "first"}, row])
    with pytest.raises(RecipeError, match=f"table.json: row 1: {sentence}"):
        questions(path)


def test_files_that_cannot_be_questions_are_refused(tmp_path: Path) -> None:
    parquet = Path(write(tmp_path / "table.parquet", [TABLE])).read_bytes()
    for name, content, sentence in (
        ("a.json", b'[{"id": 1},\n{', "a.json: line 2 is not valid JSON"),
        (
            "a.jsonl",
            b'{"id": "a", "question": "Q?", "answer": "1", "metric": "exact"}\n\n{',
            "line 3 is not valid JSON",
        ),
        ("b.jsonl", b'{"question": "Q?"}\nnonsense', "joined by none of id, key, path, sha256"),
        ("c.json", b"[1]", "row 0: it is no JSON object"),
        ("d.json", b"[]", "there are no questions"),
        ("e.json", b'[{"x": 1}]', "has x, and questions need question and answer"),
        ("f.parquet", b"PAR1 nothing", "is not a parquet file"),
        ("g.parquet", parquet[: len(parquet) // 2], "is not a parquet file"),
        ("h.parquet", parquet[:8] + b"\xff" * 32 + parquet[40:], "is not a parquet file"),
        ("i.jsonl", gzip.compress(b"{}"), r"is compressed \(gzip\); unpack it"),
        ("j.json", "[]".encode("utf-16"), "is UTF-16; write it as UTF-8"),
        ("k.json", b"", "there are no questions"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RecipeError, match=sentence):
            questions(str(tmp_path / name))
    with pytest.raises(RecipeError, match="is no file"):
        questions(str(tmp_path / "absent.json"))
    twice = write(tmp_path / "twice.json", [TABLE, TABLE])
    with pytest.raises(RecipeError, match=r"row 1: the question 'a#Q\?' occurs twice, here and before, in this file"):
        questions(twice)
    rows = [{"image": path, "prompt": CHATML, "answer": "1"} for path in ("x/1.png", "y/1.png")]
    with pytest.raises(RecipeError, match=r"y/1\.png and x/1\.png have the same file name"):
        questions(write(tmp_path / "same.json", rows), "path", metric="exact")
    with pytest.raises(RecipeError, match=r"score.join: sha256 is not in .*, whose questions are joined by id"):
        questions(write(tmp_path / "joined.json", [TABLE]), "sha256")


def test_a_way_out_that_a_file_has_already_is_no_option() -> None:
    found = options(["A) red", "B) blue", "E) Can not answer based on the caption"], "B")
    assert found == (("red", "blue"), 1)


@pytest.mark.parametrize("answer", ["A cat", "a cat ", "A cat.", "B", "B) A cat", "(B)"])
def test_an_answer_is_the_text_of_an_option_before_it_is_a_letter(answer: str) -> None:
    assert options(["A dog", "A cat", "Option C"], answer) == (("A dog", "A cat", "Option C"), 1)
    assert options(["One", "Option A"], "Option A")[1] == 1


def test_many_questions_are_found_by_image_and_their_hash_knows_no_order() -> None:
    every = [Question(id=f"q{n}", image=f"i{n % 1000}", text="?" * (n % 7), metric="exact", benchmark="b",
                      answers=("x",)) for n in range(20_000)]  # fmt: skip
    found = Questions.of(iter(every))
    for image in ("i0", "i7", "i999"):
        assert found.about(image) == [one for one in every if one.image == image]
    assert len(found.about("i7")) == 20 and sorted(found.images()) == sorted(f"i{n}" for n in range(1000))
    assert found.name == Questions.of(reversed(every)).name != Questions.of(every[1:]).name


def test_the_recipe_knows_the_metrics() -> None:
    assert set(METRICS) == set(Metric.__args__)
