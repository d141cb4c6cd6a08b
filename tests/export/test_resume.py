"""An export is finished by the same command, follows its output, and says what it could not read."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyroaring import BitMap

from caprl_ray import cli
from caprl_ray.caption.columns import CAPTION, CAPTIONS
from caprl_ray.errors import SystemFailure
from caprl_ray.export import rows, work
from caprl_ray.export.parts import Part
from caprl_ray.export.rows import HELD, Reader, UnitRows
from caprl_ray.export.source import Source
from caprl_ray.output import doubtful
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.places import Place
from caprl_ray.output.scan import silent
from caprl_ray.plan import UnitRef
from caprl_ray.read.sandbox import ReadSandbox
from caprl_ray.storage import Storage, Stored
from tests.export.outputs import Made, make, write_shard

# These columns turn a failed row into a finished one.
DONE: dict[str, Any] = {"code": None, "caption": "Done at last.", "flags": [], "attempts": 2}


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path)


def export(made: Made, out: Path | str, *arguments: str) -> int:
    return cli.main(["export", str(made.path), "--out", str(out), "--to", *arguments])


def written(out: Path) -> dict[str, int]:
    """The files of an export with their inodes: a file that is written again has another one."""
    return {str(path.relative_to(out)): path.stat().st_ino for path in out.rglob("*.*") if "_export" not in path.parts}


@contextmanager
def stopped_after(parts: int) -> Iterator[None]:
    """Exports stop after so many parts."""

    def stopped(write: Any, todo: list[Part]) -> Any:
        yield from map(write, todo[:parts])
        raise SystemFailure("the disk is full.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "_written", stopped)
        yield


def test_a_stopped_export_goes_on_and_follows_its_output(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out-tars"
    with stopped_after(2):
        assert export(made, out, "webdataset", "--shard-rows", "40") == 1
    first = written(out)
    assert len(first) == 2 and not (out / "_SUCCESS").exists()
    assert export(made, out, "webdataset", "--shard-rows", "40") == 0
    whole = written(out)
    mended = [row | DONE for row in made.rows.values() if row["code"] and row["source"].endswith("00000.tar")]
    assert first.items() < whole.items() and len(whole) == 5
    counts = json.loads((out / "_SUCCESS").read_text())
    assert counts["exported"] == len(made.finished) and counts["rows"] == len(made.rows)

    assert export(made, out, "webdataset", "--shard-rows", "40") == 0
    assert written(out) == whole  # nothing is written again
    objects = len(list(Path(made.path, "data").iterdir()))
    assert cli.main(["compact", str(made.path)]) == 0 and len(list(Path(made.path, "data").iterdir())) < objects
    assert export(made, out, "webdataset", "--shard-rows", "40") == 0
    assert written(out) == whole  # the same rows stand in other objects
    (out / "00001.tar").unlink()
    os.truncate(out / "000001.tar", 1000)
    assert export(made, out, "webdataset", "--shard-rows", "40") == 0
    again = written(out)
    assert {name for name in whole if again[name] != whole[name]} == {"00001.tar", "000001.tar"}

    # A killed command has recorded nothing: its files are written again, over themselves.
    content = {name: (out / name).read_bytes() for name in again}
    shutil.rmtree(out / "_export" / "done")
    assert export(made, out, "webdataset", "--shard-rows", "40") == 0
    assert not again.items() & written(out).items()
    assert content == {name: (out / name).read_bytes() for name in written(out)}

    again = written(out)
    add(made, mended[0] | {"caption": "Mended."}, CAPTION)
    assert export(made, out, "webdataset", "--shard-rows", "40") == 0
    assert {name for name, inode in written(out).items() if inode != again[name]} == {"00000.tar"}
    assert b"Mended." in (out / "00000.tar").read_bytes()
    assert f"{len(made.finished) + 1} rows exported to 5 files" in capsys.readouterr().out

    # A shard that is gone is not written again, and what is there of it stays until its rows may be missing.
    add(made, mended[1], CAPTION)
    shutil.move(made.folder / "shards" / "00000.tar", tmp_path / "kept.tar")
    assert export(made, out, "webdataset", "--shard-rows", "40") == 3
    assert b"Mended." in (out / "00000.tar").read_bytes() and not (out / "_SUCCESS").exists()
    assert export(made, out, "webdataset", "--shard-rows", "40", "--allow-missing") == 0
    assert not (out / "00000.tar").exists()


def add(made: Made, row: dict[str, Any], adds: tuple[pa.Field, ...]) -> None:
    """Add a row to the output in an object of its own, with the columns that a job adds."""
    schema = pa.schema([*made.schema, *(field for field in adds if field.name not in made.schema.names)])
    sink = CommittedRows(Storage(), str(made.path), 1, adds, 9)
    sink.write([pa.Table.from_pylist([row], schema=schema)], None)


def test_a_folder_has_only_files_of_its_own_rows(made: Made, tmp_path: Path) -> None:
    out, hf = tmp_path / "out-hf", ["hf", "--license", "other", "--shard-rows", "40"]
    assert export(made, out, *hf) == 0 and (out / "data" / "test-000000.parquet").exists()
    tests = [i for i, row in made.finished.items() if row["key"].startswith("test/")]
    pq.write_table(pa.table({"id": tests, "keep": [False] * len(tests)}), tmp_path / "list.parquet")
    without = [*hf, "--without", str(tmp_path / "list.parquet")]
    with stopped_after(1):
        assert export(made, out, *without) == 1
    killed = out / "data" / "train-000099.parquet"  # written, but not recorded
    shutil.copy(out / "data" / "train-000000.parquet", killed)
    theirs = [out / "LICENSE", out / ".cache" / "data" / "x.parquet", out / "more" / "x.parquet"]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert export(made, out, *without) == 0
    ids = [i for path in (out / "data").iterdir() for i in pq.read_table(path)["id"].to_pylist()]
    assert sorted(ids) == sorted(made.finished.keys() - set(tests)) and not killed.exists()
    assert json.loads((out / "_SUCCESS").read_text())["exported"] == len(ids)
    assert all(path.exists() for path in theirs)


@pytest.mark.parametrize("form", [["parquet"], ["hf", "--license", "other", "--shard-rows", "40"]])
def test_all_files_have_a_column_that_came_later(made: Made, tmp_path: Path, form: list[str]) -> None:
    out = tmp_path / "exported"
    assert export(made, out, *form) == 0
    before = written(out)
    mended = next(row for row in made.rows.values() if row["code"])
    add(made, mended | DONE | {"captions": []}, (*CAPTION, CAPTIONS))
    assert export(made, out, *form) == 0
    schemas = {pq.read_schema(path).remove_metadata() for path in out.rglob("*.parquet")}
    assert len(before) > 2 and len(schemas) == 1 and "captions" in schemas.pop().names
    again = written(out)
    assert export(made, out, *form) == 0
    assert {name: inode for name, inode in written(out).items() if name != "README.md"} == {
        name: inode for name, inode in again.items() if name != "README.md"
    }


def test_few_objects_are_held_and_one_that_is_too_large_for_memory_lies_on_disk(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, disk = Source.open(Storage(), str(made.path)), tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    units = source.units(None, None, silent)
    for limit, most, on_disk in ((2**30, HELD, False), (6_000, 1, False), (1, HELD, True)):
        monkeypatch.setattr(rows, "HELD_BYTES", limit)
        held = None
        before, held = pa.total_allocated_bytes(), Reader(Storage())
        found = [row for unit in units for table in held.rows(unit, source.schema) for row in table.to_pylist()]
        assert [row["id"] for row in found] == sorted(made.finished) and len(held._held) == most
        assert [row["caption"] for row in found] == [row["caption"] for _, row in sorted(made.finished.items())]
        assert {one.in_memory for one in held._held.values()} == {not on_disk}
        assert (pa.total_allocated_bytes() <= before) == on_disk
        assert not list(disk.iterdir())
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **_: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(SystemFailure, match=rf"^{disk}: No space left on device; .* name another folder in TMPDIR"):
        list(Reader(Storage()).rows(units[0], source.schema))


def test_an_object_is_forgotten_when_its_rows_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = pa.schema({**dict.fromkeys(["unit", "index", "attempts"], pa.int64()), "caption": pa.string()})
    count, each, size = 40, 10, 10_000

    def read(_: Reader, stored: Stored, schema: pa.Schema) -> rows._Object:
        first = each * int(stored.path)
        table = pa.table([[0] * each, range(first, first + each), [1] * each, ["x" * size] * each], schema=schema)
        return rows._Object.of(stored.path, table)

    monkeypatch.setattr(Reader, "_read", read)
    places = [Place(stored=Stored(path=str(n), size=1, version=""), first=each * n) for n in range(count)]
    ref = UnitRef(unit=0, kind="files", rows=None, bytes=0, object=places[0].stored, row_group=0, offset=0)
    unit = UnitRows(ref=ref, kept=BitMap(range(count * each)), places=places, rows=count * each, finished=0, failed=0)
    before, most = pa.total_allocated_bytes(), 0
    for table in Reader(Storage()).rows(unit, schema):
        del table
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < (HELD + 4) * each * size * 1.5, "as many as are held, not all of a unit"


@pytest.mark.parametrize("form", [["webdataset"], ["hf", "--images", "--license", "other"]])
def test_sources_that_are_gone_or_changed_are_counted_and_everything_else_goes_out(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    files = [row for row in made.finished.values() if row["source"].endswith(".png")]
    gone, touched = Path(files[0]["source"]), Path(files[1]["source"])
    shutil.move(gone, tmp_path / "kept.png")
    for path in (touched, made.folder / "shards" / "00000.tar", made.folder / "table" / "train-00000-of-00001.parquet"):
        os.utime(path, (1, 1))  # another version, of the same images
    write_shard(made.folder / "shards" / "00001.tar", range(20, 40))
    lost = 1 + sum(row["source"].endswith("00001.tar") for row in made.finished.values())
    out = tmp_path / "exported"
    assert export(made, out, *form) == 3
    said = capsys.readouterr().err
    assert f"{lost} missing (source_changed {lost - 1}, source_missing 1): {len(made.rows)} rows" in said
    assert "--allow-missing" in said and not (out / "_SUCCESS").exists() and len(said.splitlines()) == 1
    assert export(made, out, *form, "--allow-missing") == 0
    counts = json.loads((out / "_SUCCESS").read_text())
    assert (counts["exported"], sum(counts["missing"].values())) == (len(made.finished) - lost, lost)
    shutil.move(tmp_path / "kept.png", gone)
    assert export(made, out, *form) == 3
    assert f"{len(made.finished) - lost + 1} rows exported" in capsys.readouterr().err


def test_a_source_that_may_kill_its_reader_is_read_in_a_child(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed = next(row for row in made.rows.values() if row["code"]) | {
        "code": "read_crash",
        "stage": "read",
        "attempts": 2,
    }
    sink = CommittedRows(Storage(), str(made.path), 1, CAPTION, 9)
    sink.write([pa.Table.from_pylist([crashed], schema=made.schema)], None)
    monkeypatch.setattr(ReadSandbox, "plain", lambda *_: pytest.fail("read in the process itself"))
    assert export(made, tmp_path / "out-hf", "hf", "--images", "--license", "other") == 0
    images = pq.read_table(tmp_path / "out-hf" / "data")
    assert images.num_rows == len(made.finished)
    hashes = [hashlib.sha256(image["bytes"]).hexdigest() for image in images["image"].to_pylist()]
    assert hashes == images["sha256"].to_pylist()


@pytest.mark.parametrize("form", ["jsonl", "parquet", "webdataset"])
def test_a_shard_without_a_caption_does_not_stop_an_export(tmp_path: Path, form: str) -> None:
    """No row of a damaged shard is in any object of data/, nor is one of a shard that no run has begun."""
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "00000.tar").write_bytes(b"<html>")
    write_shard(tmp_path / "shards" / "00001.tar", range(3))
    made = make(tmp_path, paths=[str(tmp_path / "shards")])
    assert export(made, tmp_path / "to", form) == 0
    done = json.loads((tmp_path / "to" / "_SUCCESS").read_text())
    assert (done["exported"], done["failed"], done["rows"]) == (3, 1, 4)


def test_repeated_rows_are_left_out_by_a_list_and_those_of_a_sick_replica_always(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = sorted(made.finished)[:20]
    rows = [{"id": i, "group": "x", "keep": i == first} for i in (first, *others)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    out = tmp_path / "lines"
    assert export(made, out, "jsonl", "--without", str(tmp_path / "list.parquet")) == 0
    ids = [json.loads(line)["id"] for path in out.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert ids == sorted(made.finished.keys() - set(others))
    assert json.loads((out / "_SUCCESS").read_text())["left_out"] == 19
    unit, _, index = max(made.finished).partition("-")
    doubtful.keep(Storage(), str(made.path), 1, [(int(unit), int(index)), (0, 10**6)])
    capsys.readouterr()
    assert export(made, out, "jsonl", "--without", str(tmp_path / "list.parquet")) == 0
    assert f"has 1 row of a sick replica, such as {max(made.finished)}; they are left out" in capsys.readouterr().err
    assert json.loads((out / "_SUCCESS").read_text())["left_out"] == 20
    assert cli.main(["verify", str(made.path)]) == 3
    said = capsys.readouterr().out
    assert f"1 row of a sick replica, such as {max(made.finished)}, whose captions cannot be trusted" in said
    assert cli.main(["verify", str(made.path), "--repair", "--json"]) == 3
    balance = json.loads(capsys.readouterr().out)
    assert balance["doubtful_rows"] == [] and balance["captioned"] == len(made.finished) - 1


def test_a_list_of_another_output_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its ids are in this output too, and mean other rows."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "00000.tar", range(3))
    one, two = (make(tmp_path / name, paths=[str(tmp_path / name / "00000.tar")]) for name in ("one", "two"))
    listed = str(tmp_path / "list.parquet")
    assert cli.main(["duplicates", str(one.path), "--list", listed]) == 0
    assert export(two, tmp_path / "to", "jsonl", "--without", listed) == 2
    assert "list.parquet lists rows of another output; " in capsys.readouterr().err
    shutil.copytree(one.path, tmp_path / "moved")
    assert (
        cli.main(
            ["export", str(tmp_path / "moved"), "--to", "jsonl", "--out", str(tmp_path / "to"), "--without", listed]
        )
        == 0
    )


def test_each_wrong_export_is_one_sentence(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(says: str, *arguments: str, output: Path | None = None) -> None:
        assert cli.main(["export", str(output or made.path), *arguments]) == 2
        said = capsys.readouterr().err
        assert says in said and len(said.splitlines()) == 1, said

    out = tmp_path / "out-lines"
    lines = ("--to", "jsonl", "--out", str(out))
    refused("there is no plan in this folder", *lines, output=tmp_path / "nowhere")
    refused("there is no plan in this folder", *lines, output=tmp_path / "files")
    refused("--where: 'flags has 1' is no SQL condition", *lines, "--where", "flags has 1")
    refused("lies in the output", "--to", "jsonl", "--out", str(made.path / "report"))
    refused("holds the output", "--to", "jsonl", "--out", str(made.path.parent))
    refused("has files of something else, such as test/", "--to", "jsonl", "--out", str(tmp_path / "files"))
    refused(
        "is in the way of the folder", "--to", "jsonl", "--out", str(made.path / "run.json") + "/../../shards/00000.tar"
    )
    refused("--without: there is no file", *lines, "--without", str(tmp_path / "none"))
    refused("is no list of rows", *lines, "--without", str(tmp_path / "table" / "train-00000-of-00001.parquet"))
    refused("--form: it is for --to jsonl", "--to", "hf", "--out", str(out), "--form", "llava", "--license", "other")
    refused("have one caption each, and a pair needs two", *lines, "--form", "dpo")
    refused("--member: 'A.B' cannot be part", "--to", "webdataset", "--out", str(out), "--member", "A.B")
    assert not list(out.glob("*.jsonl"))
    assert export(made, out, "jsonl") == 0
    refused("holds another export: --where was None and is 'true'", *lines, "--where", "true")
    refused("holds another export: --to was", "--to", "parquet", "--out", str(out))
    (made.path / "run.json").write_text(json.dumps({"fingerprint": {}, "job": {"name": "score", "done": "scored"}}))
    refused("holds the rows of the job score", *lines)


def test_several_captions_without_scores_give_no_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make(tmp_path, several=2)
    assert export(made, tmp_path / "pairs", "jsonl", "--form", "dpo") == 2
    assert "several captions of each image, but no scores that say which one is better" in capsys.readouterr().err
