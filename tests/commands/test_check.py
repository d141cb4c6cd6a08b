"""`caprl-ray check`: captions of files and of outputs are flagged in order, in bounded memory, and faults are named."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray.cli import main
from caprl_ray.commands import check as command
from tests.s3_server import S3Server

GOOD = "A black dog runs through deep snow in a park, and two people watch it from a bench."
LOOP = GOOD + " The dog runs in the snow." * 20
REFUSAL = "I'm sorry, but I can't assist with that."
ROWS = [
    {"caption": GOOD, "alt": "dog"},
    {"caption": LOOP, "alt": None},
    {"caption": REFUSAL, "alt": ""},
    {"caption": None, "alt": "x"},
    {"caption": "Dog running through snow in the park", "alt": "dog running through snow in the park"},
]
FLAGS = [[], ["loop"], ["refusal"], ["empty"], []]


def lines(capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], str]:
    printed = capsys.readouterr()
    return [json.loads(line) for line in printed.out.splitlines()], printed.err


def json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def output(folder: Path, captions: list[list[str]]) -> None:
    """An output folder as a run leaves it, with an object for each list of captions."""
    (folder / "data").mkdir(parents=True)
    recipe = {"prompt": {"user": "Please describe this image in detail."}}
    (folder / "run.json").write_text(json.dumps({"recipe": recipe, "fingerprint": {}}))
    for number, texts in enumerate(captions):
        ids = [f"{number:06d}-{index:06d}" for index in range(len(texts))]
        columns = {"id": ids, "caption": texts, "finish_reason": ["length"] * len(texts)}
        pq.write_table(pa.table(columns), folder / "data" / f"000001-{number:032x}.parquet")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_rows_of_a_file_are_flagged_in_order(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = json_lines(tmp_path / "captions.jsonl", ROWS)
    if kind == "parquet":
        path = tmp_path / "captions.parquet"
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)
    assert main(["check", str(path)]) == 0
    found, said = lines(capsys)
    assert found == [{"row": number, "flags": flags} for number, flags in enumerate(FLAGS)]
    assert "5 captions, 2 without a flag; loop 1 (20.0%)" in said


def test_options_choose_checks_columns_and_language(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = json_lines(
        tmp_path / "c.jsonl", [{"id": f"i{n}", "text": row["caption"], **row} for n, row in enumerate(ROWS)]
    )
    assert (
        main(["check", str(path), "--column", "text", "--alt-column", "alt", "--checks", "copies_alt_text,loop"]) == 0
    )
    found, _ = lines(capsys)
    assert found[4] == {"id": "i4", "flags": ["copies_alt_text"]}
    assert [line["flags"] for line in found[:4]] == [[], ["loop"], [], []]
    long = " ".join([GOOD, "The sky is grey, and the trees have lost their leaves."])
    assert main(["check", str(json_lines(path, [{"caption": long}])), "--language", "de"]) == 0
    assert lines(capsys)[0] == [{"row": 0, "flags": ["language"]}]
    recipe = tmp_path / "recipe.yaml"
    quality = "{language: de, checks: {too_long: off}, thresholds: {too_short.words: 40}}"
    recipe.write_text(f"input: {{paths: [a]}}\noutput: {{path: b}}\nquality: {quality}\n")
    assert main(["check", str(path), "--recipe", str(recipe)]) == 0
    assert lines(capsys)[0] == [{"row": 0, "flags": ["language", "too_short"]}]


def test_an_output_is_read_in_order_with_what_it_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output(tmp_path / "out", [[GOOD, LOOP], [f"Please describe this image in detail. {GOOD}"]])
    assert main(["check", str(tmp_path / "out")]) == 0
    found, _ = lines(capsys)
    assert [line["id"] for line in found] == ["000000-000000", "000000-000001", "000001-000000"]
    assert [line["flags"] for line in found] == [["truncated"], ["loop", "truncated"], ["truncated", "prompt_echo"]]


def test_a_check_of_ones_own_that_fails_is_the_flag_of_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "failing_checks.py").write_text("def first_word(caption):\n    return caption.text.split()[0] == 'I'\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = json_lines(tmp_path / "c.jsonl", [{"caption": " "}, {"caption": "I see a dog."}])
    assert main(["check", str(path), "--checks", "failing_checks:first_word"]) == 0
    found, _ = lines(capsys)
    detail = "the check first_word raised IndexError"
    assert found == [{"row": 0, "flags": ["check_error"], "detail": detail}, {"row": 1, "flags": ["first_word"]}]


def test_it_reads_from_s3(s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output(tmp_path / "out", [[GOOD], [LOOP]])
    s3.client.create_bucket(Bucket="captions")
    for path in sorted((tmp_path / "out").rglob("*.*")):
        s3.client.put_object(Bucket="captions", Key=f"o/{path.relative_to(tmp_path / 'out')}", Body=path.read_bytes())
    assert main(["check", "s3://captions/o", f"storage.endpoint={s3.endpoint}", "--checks", "loop"]) == 0
    assert [line["flags"] for line in lines(capsys)[0]] == [[], ["loop"]]


def test_a_file_is_read_a_batch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caprl_ray.quality.checks import Checks
    from caprl_ray.storage import Storage

    path = tmp_path / "large.parquet"
    pq.write_table(pa.table({"caption": [f"{GOOD} {number}" for number in range(40_000)]}), path)
    before, held = pa.total_allocated_bytes(), 0

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            nonlocal held
            held = max(held, pa.total_allocated_bytes() - before)
            return 0

    tally = command.check(Storage(), str(path), Checks.of(), command.Columns(), Out())
    assert tally.captions == 40_000
    assert held < 3 * 2**20  # the column is 4 MB


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (b'{"caption": "a"}\n[1]\n', (), "captions: line 2 is not a JSON object; mend it or take it out."),
        (b'{"caption": "a"}\n\xff\n', (), "captions: line 2 is not a JSON object"),
        (
            b'{"text": "a", "n": 1}\n',
            (),
            "captions: line 1: there is no column caption; name one of text, n with --col",
        ),
        (b'{"caption": 7}\n', (), "captions: row 0 has no text in caption; name another column."),
        (b"PAR1 and no more", (), "captions: is not a parquet file that can be read"),
        (b'{"caption": "a"}\n', ("--checks", "lop"), "'lop' is not a check; they are empty"),
        (b'{"caption": "a"}\n', ("--checks", ","), "--checks: it names no check; leave it out"),
        (
            b'{"caption": "a"}\n',
            ("--recipe", "r.yaml", "--checks", "loop"),
            "--recipe: it sets the checks and the language",
        ),
        (b'{"caption": "a"}\n', ("--checks", "json"), "the check json needs a JSON schema, as sampling.structured_"),
        (b'{"caption": "a"}\n', ("--language", "klingon"), "'klingon' is not known; give a code such as en"),
        (
            b'{"caption": "a"}\n',
            ("--alt-column", "alt"),
            "there is no column alt; name one of caption with --alt-column",
        ),
        (None, (), "captions: there is no such file or folder."),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, options: tuple[str, ...], sentence: str
) -> None:
    path = tmp_path / "captions"
    if content is not None:
        path.write_bytes(content)
    assert main(["check", str(path), *options]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_a_folder_without_captions_and_a_column_of_numbers_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert "there are no captions in this folder" in capsys.readouterr().err
    pq.write_table(pa.table({"caption": [1, 2]}), tmp_path / "n.parquet")
    assert main(["check", str(tmp_path / "n.parquet")]) == 2
    assert "the column caption holds int64, not text" in capsys.readouterr().err
