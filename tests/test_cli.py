"""The command line without a cluster: exit codes and messages."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray import cli, plan
from caprl_ray.caption.columns import CAPTION
from caprl_ray.cluster import reachable
from caprl_ray.cluster.begun import begun
from caprl_ray.cluster.reachable import check_address
from caprl_ray.errors import SystemFailure
from caprl_ray.output.commit import CommittedRows
from caprl_ray.plan import Entry, Unit
from caprl_ray.rows.schema import row_schema
from caprl_ray.storage import Storage, Stored
from caprl_ray.version import __version__
from tests.checkout import ROOT
from tests.s3_server import BUCKET, Request, S3Server

HELP = """
import sys
from caprl_ray.cli import main
try:
    main({arguments})
except SystemExit as end:
    assert not end.code
heavy = {{"vllm", "torch", "ray", "pyarrow", "transformers"}} & sys.modules.keys()
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""


def output(folder: Path, indices: list[int], rows: int = 3) -> str:
    """An output whose one unit has `rows` rows. Those at `indices` are committed."""
    entries = [Entry(stored=Stored(path=f"/{n}.jpg", size=1, version="v"), key=f"{n}") for n in range(rows)]
    plan.store(Storage(), str(folder), [Unit(kind="files", rows=rows, entries=entries)])
    committed = [
        {"id": str(n), "unit": 0, "index": n, "unit_rows": rows if n == rows - 1 else None, "caption": "c"}
        for n in indices
    ]
    if committed:
        schema = row_schema(pa.schema([]), CAPTION)
        CommittedRows(Storage(), str(folder), 1, CAPTION, 1).write(
            [pa.Table.from_pylist(committed, schema=schema)], None
        )
    return str(folder)


@pytest.mark.parametrize("arguments", [["--help"], ["caption", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP.format(arguments=arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (__version__ if arguments == ["--version"] else "usage: caprl-ray") in done.stdout


def test_reading_an_output_does_not_import_ray(tmp_path: Path) -> None:
    look = "import sys\nfrom caprl_ray.cli import main\nfolder = sys.argv[1]\nmain(['verify', folder])\n"
    look += "main(['status', folder])\nsys.exit('ray' in sys.modules)"
    command = [sys.executable, "-c", look, output(tmp_path, [0, 1, 2])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "3 captioned, 0 failed" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["capton"], ["caption"], ["caption", "r.yaml", "--limit", "0"], ["caption", "r.yaml", "--limit", "1.5"]),
        *(["verify", ""], ["report", "out", "--to", ""], ["export", "out", "--to", "jsonl", "--out="]),
        *(
            ["evaluate", ""],
            ["export", "out", "--to", "jsonl", "--out", "to", "--where", ""],
            ["tune", "r", "--out", ""],
        ),
    ],
)
def test_a_wrong_command_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: caprl-ray" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["caption", "preflight"])
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("replicas.gpu=1", "replicas.gpu"),
        ("prepare.max_bytes=none", "prepare.max_bytes"),
        ("model.source=./no/such/model", "./no/such/model"),
        ("model.source=stub", "CAPRL_RAY_ALLOW_STUB"),
        ("input.paths=/no/such/images", "/no/such/images"),
        ("input.paths=ftp://host/images", "ftp://"),
        ("input.paths=S3://bucket/images", "the kind S3://"),
        ("input.paths=s3:///images", "s3:///images names no bucket"),
        ("input.paths=file://images", "file://images names the machine 'images'"),
        ("input.paths=in/{0..999999999}.tar", "names more than"),
        (r'input.paths="a\0b"', "a path holds no NUL"),
        ("input.paths=file:///a%00b", "a path holds no NUL"),
        ("input.paths=file://localhost", "file://localhost has no path"),
        ("output.path=/dev/null/captions", "/dev/null is in the way of the folder /dev/null/captions"),
    ],
)
def test_a_wrong_recipe_exits_2_with_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    override: str,
    said: str,
) -> None:
    monkeypatch.delenv("CAPRL_RAY_ALLOW_STUB", raising=False)
    (tmp_path / "image.jpg").write_bytes(b"x")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "input": {"paths": [str(tmp_path)]},
                "model": {"source": "embedded"},
                "replicas": {"gpus": 0},
                "output": {"path": str(tmp_path / "out")},
            }
        )
    )
    assert cli.main([command, str(recipe), override]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("caprl-ray: ") and stderr.count("\n") == 1
    assert said in stderr


@pytest.mark.parametrize("to", ["", "/gone/page.html", "/pipe"])
def test_a_place_where_no_file_can_be_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    (tmp_path / "gone").touch()
    os.mkfifo(tmp_path / "pipe")
    assert cli.main(["report", output(tmp_path, [0]), "--to", f"{tmp_path}{to}"]) == 2
    assert " is in the way of the file " in capsys.readouterr().err


def test_a_command_in_a_folder_that_was_removed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    assert cli.main(["verify", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("caprl-ray: the working folder was removed; ")


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"PYTHONIOENCODING": "ascii"}, 0, r"\u5199.txt"),
        ({"PYTHONUTF8": "0", "LC_ALL": "POSIX"}, 2, "names of files are read as ascii here, not as UTF-8"),
    ],
)
def test_a_name_that_the_process_cannot_write_is_no_fault(
    tmp_path: Path, settings: dict[str, str], code: int, said: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").touch()
    (tmp_path / "in" / "写.txt").touch()
    (tmp_path / "r.yaml").write_text(f"input: {{paths: [{tmp_path}/in]}}\noutput: {{path: {tmp_path}/out}}\n")
    command = [sys.executable, "-m", "caprl_ray", "plan", str(tmp_path / "r.yaml"), "model.source=embedded"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings, cwd=ROOT, check=False)
    assert done.returncode == code and said in done.stdout + done.stderr


def test_overrides_and_options_may_come_in_any_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"input": {"paths": [str(tmp_path)]}, "output": {"path": str(tmp_path / "out")}}))
    (tmp_path / "a.jpg").touch()
    assert cli.main(["plan", "--json", str(recipe), "input.kind=files", "--debug", "output.path=/tmp/x"]) == 0
    assert "kinds" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["plan", str(recipe), "--jsn", "output.path=x"])
    assert "unrecognized arguments: --jsn" in capsys.readouterr().err


def test_a_store_or_a_cluster_that_does_not_answer_is_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        assert cli.main(["verify", "s3://bucket/out", f"storage.endpoint=http://127.0.0.1:{port}"]) == 1
        assert f"storage.endpoint: nothing can be reached at 127.0.0.1:{port} (" in capsys.readouterr().err
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(SystemFailure, match=rf"RAY_ADDRESS: nothing can be reached at 127.0.0.1:{port} \("):
                check_address("RAY_ADDRESS", address)
    check_address("RAY_ADDRESS", "auto")


def test_a_store_that_accepts_and_never_answers_is_named_in_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reachable, "ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        for given, seconds in ([], "0.3"), (["storage.timeout_s=0.2"], "0.2"):
            began = time.monotonic()
            assert cli.main(["verify", "s3://bucket/out", f"storage.endpoint=http://{where}", *given]) == 1
            assert time.monotonic() - began < 10
            said = f"storage.endpoint: {where} accepts connections, but answers nothing within {seconds} s.\n"
            assert capsys.readouterr().err == f"caprl-ray: {said}"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_ends_a_command_whose_store_has_stopped_answering(
    s3: S3Server, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    s3.fill([f"in/{n}/a.jpg" for n in range(20)])
    asked, ended = threading.Event(), threading.Event()

    def silent(request: Request) -> None:
        if "prefix=in%2F1" in request.query:  # a folder that threads list
            asked.set()
            ended.wait(100)

    s3.fault = silent
    paths = [f"input.paths=[s3://{BUCKET}/in]", f"output.path={tmp_path / 'out'}"]
    (tmp_path / "recipe.yaml").write_text("{}")
    store = [f"storage.endpoint={s3.endpoint}", "storage.region=us-east-1"]
    command = [sys.executable, "-m", "caprl_ray", "plan", str(tmp_path / "recipe.yaml"), *paths, *store]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert asked.wait(60)
            process.send_signal(number)
            _, said = process.communicate(timeout=40)  # the store is silent for 100
        finally:
            process.kill()
            ended.set()
    assert (process.returncode, said) == (code, "caprl-ray: interrupted; run the same command again to resume.\n")


def test_a_recipe_that_is_not_there_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["caption", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml: the recipe cannot be read" in capsys.readouterr().err


def test_an_unforeseen_error_exits_1_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> list[object]:
        raise RuntimeError("first line\n  last line")

    monkeypatch.setattr(plan, "load", broken)
    assert cli.main(["verify", "out"]) == 1
    assert capsys.readouterr().err == "caprl-ray: RuntimeError: last line (--debug shows where)\n"
    with pytest.raises(RuntimeError):
        cli.main(["verify", "out", "--debug"])


def test_an_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "load", interrupted)
    assert cli.main(["verify", "out"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


def test_verify_exits_0_only_for_a_balanced_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", output(tmp_path / "whole", [0, 1, 2])]) == 0
    assert "3 images: 3 captioned, 0 failed\n" in capsys.readouterr().out
    assert cli.main(["verify", output(tmp_path / "short", [0, 2])]) == 3
    assert "3 images: 2 captioned, 0 failed; 0 of 1 unit balanced, 1 missing" in capsys.readouterr().out


def test_verify_prints_the_whole_ledger_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "--json", output(tmp_path, [1])]) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["balanced"], report["planned"], report["captioned"]) == (False, 3, 1)
    assert report["units"][0]["missing"] == 2


def test_verify_of_a_damaged_object_exits_1_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = output(tmp_path, [0, 1, 2])
    (damaged,) = (tmp_path / "data").iterdir()
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert cli.main(["verify", folder]) == 1
    assert damaged.name in capsys.readouterr().err


def test_a_parquet_file_in_an_output_that_no_run_wrote_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = output(tmp_path, [0, 1, 2])
    pq.write_table(pa.table({"caption": ["all of them"]}), tmp_path / "data" / "merged.parquet")
    for command in (["verify", folder], ["report", folder], ["duplicates", folder]):
        assert cli.main(command) == 1
        assert "data/merged.parquet: no run has written this file; move it out" in capsys.readouterr().err


def test_plan_shows_what_a_run_would_do_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(b"x" * 1000)
    (tmp_path / "images" / "notes.txt").touch()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps({"input": {"paths": [str(tmp_path / "images")]}, "output": {"path": str(tmp_path / "out")}})
    )
    assert cli.main(["plan", str(recipe), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    files = {"units": 1, "images": 3, "unknown": 0, "bytes": 3000}
    left_out = {"unknown_ending": {"count": 1, "example": str(tmp_path / "images" / "notes.txt")}}
    assert found == {
        "stored": False,
        "complete": True,
        "kinds": {"files": files},
        "left_out": left_out,
        "differences": [],
        "warnings": [],
    }
    assert not (tmp_path / "out").exists()
    assert cli.main(["plan", str(recipe), "quality.thresholds={loop.ratio: 1}"]) == 2
    assert "loop.ratio: 1 is not allowed; it should be a number from 3 to 100." in capsys.readouterr().err
    assert cli.main(["plan", str(recipe), "input.kind=webdataset"]) == 2
    assert "no image was found in" in (said := capsys.readouterr().err) and "4 files of other kinds" in said
    output(tmp_path / "out", [0], rows=7)
    assert cli.main(["plan", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "the output holds" in said and "1 units, 7 images" in said
    assert "new in the input: 1 units of files with 3 images; caption --extend adds them" in said


def test_verify_of_a_folder_without_a_plan_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(tmp_path)]) == 2
    assert "no plan" in capsys.readouterr().err


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["required"] == ["input", "output"]


def test_storage_that_refuses_exits_2_where_nothing_was_started(
    s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun.clear()
    store = [f"storage.endpoint={s3.endpoint}", "storage.region=us-east-1"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("input: {paths: ['s3://elsewhere/in/']}\nmodel: {source: stub}\nreplicas: {gpus: 0}\n")
    assert cli.main(["plan", str(recipe), f"output.path={tmp_path / 'out'}", *store]) == 2
    assert capsys.readouterr().err.endswith("cannot be listed (the bucket does not exist).\n")
    assert cli.main(["caption", str(recipe), "output.path=s3://elsewhere/out", *store]) == 2
    assert "the bucket does not exist" in capsys.readouterr().err
    begun.set()  # as in a run whose bucket is deleted
    assert cli.main(["plan", str(recipe), f"output.path={tmp_path / 'out'}", *store]) == 1
    begun.clear()
