"""A report holds the right rows, each with its own picture or the reason why there is none."""

import json
import os
import re
import shutil
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray import plan, sources
from caprl_ray.caption.columns import CAPTION
from caprl_ray.cli import main
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.counts import Counts
from caprl_ray.output.objects import DATA
from caprl_ray.read.unit import tables, unit_rows
from caprl_ray.recipe.load import parse
from caprl_ray.report import pictures as module
from caprl_ray.report.facts import Facts, facts
from caprl_ray.report.objects import Footer, _footer, _written, chosen
from caprl_ray.report.pictures import Picture, pictures
from caprl_ray.report.report import report
from caprl_ray.report.sample import sample
from caprl_ray.report.strata import ANY, FAILED, FLAG
from caprl_ray.report.timeline import course, timeline
from caprl_ray.rows.schema import row_schema
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage, Stored
from caprl_ray.watch.history import Point, plain
from tests.report.outputs import picture, write, write_run


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def found(output: Path) -> Facts:
    return facts(Storage(), str(output))


def test_few_rows_stand_for_all_kinds_and_are_the_same_each_time(found: Facts) -> None:
    few = sample(found, 20, "alt_text")
    names = [name for name, _ in few.shown]
    assert len(few.shown) == len({row["id"] for _, row in few.shown}) == 20
    assert {which for kind, which in names if kind == FAILED} == {"image_corrupt", "engine_timeout", "quality"}
    flags = {flag.partition(":")[0] for _, row in few.shown for flag in row.get("flags", ())}
    assert flags == {"loop", "truncated", "opener", "metadata_too_large"}
    assert {kind for kind, _ in names} >= {"repaired", "length", "size", ANY}
    for (kind, which), row in few.shown:
        assert row.get("code") == which if kind == FAILED else "code" not in row
        assert kind != FLAG or which in {flag.partition(":")[0] for flag in row["flags"]}
    assert sample(found, 20, "alt_text").shown == few.shown
    assert few.whole and few.rows == 60 and len(few.numbers["width"]) == 50


def test_a_rare_flag_is_found_among_objects_that_are_not_all_read(tmp_path: Path) -> None:
    storage, schema = Storage(), row_schema(pa.schema([]), CAPTION)
    sink = CommittedRows(storage, str(tmp_path), 1, CAPTION, 1)
    for number in range(40):
        row = {"id": str(number), "unit": 0, "index": number, "caption": "A cup.", "flags": ["loop"] * (number == 33)}
        sink.write([pa.Table.from_pylist([row], schema=schema)], None)
    objects = storage.objects(str(tmp_path / DATA), ".parquet")
    few = chosen(storage, objects, most_rows=5)
    assert len(few.objects) == 5 and not few.all
    assert [
        row["index"] for stored in few.objects for row in pq.read_table(stored.path).to_pylist() if row["flags"]
    ] == [33]


def test_rows_that_are_superseded_are_not_shown(tmp_path: Path) -> None:
    out = write(tmp_path, 30)
    row = next(row for _, row in sample(facts(Storage(), str(out)), 99).shown if row.get("flags") == ["loop"])
    again = row | {"caption": "A cup, done again.", "flags": [], "attempts": 2}
    sink = CommittedRows(Storage(), str(out), 1, CAPTION, 2)
    sink.write([pa.Table.from_pylist([again], schema=row_schema(pa.schema([]), CAPTION))], None)
    now = sample(facts(Storage(), str(out)), 99)
    assert now.rows == len(now.shown) == len(now.numbers["characters"]) + 5 == 30  # five have failed
    (found,) = (one for _, one in now.shown if one["id"] == row["id"])
    assert found["caption"] == "A cup, done again." and found["flags"] == []


def captioned(folder: Path, out: Path) -> list[dict[str, object]]:
    """Caption what lies in a folder, as the job reads it."""
    recipe = parse({"input": {"paths": [str(folder)]}, "output": {"path": str(out)}})
    access, storage, schema = Access.of(recipe), Storage(), row_schema(pa.schema([]), CAPTION)
    units = list(sources.plan_units(access))
    plan.store(storage, str(out), units)
    sink, rows = CommittedRows(storage, str(out), 1, CAPTION, 1), []
    for number, unit in enumerate(units):
        read = unit_rows(number, unit, schema=schema, access=access)
        rows += [{**row, "caption": "A cup.", "flags": []} for row in read]
        sink.write(list(tables(iter(rows[-len(unit.entries) :] if unit.kind == "files" else rows), schema)), None)
    write_run(out, [folder])
    return rows


def test_a_picture_is_found_in_every_kind_of_input_and_is_the_rows_own(tmp_path: Path) -> None:
    files = [picture(tmp_path, number, (200 + 10 * number, 100)) for number in range(6)]
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "0.tar", "w") as tar:
        for path in files:
            tar.add(path, path.name)
    (tmp_path / "parquet").mkdir()
    table = pa.table({"image": [path.read_bytes() for path in files]})
    pq.write_table(table, tmp_path / "parquet" / "0.parquet", row_group_size=2)
    for kind in ("tar", "parquet"):
        rows = captioned(tmp_path / kind, tmp_path / f"out-{kind}")
        assert len(rows) == 6
        wanted = [rows[number] for number in (1, 4)]
        seen = pictures(facts(Storage(), str(tmp_path / f"out-{kind}")), wanted, 60)
        shapes = [seen[str(row["id"])].width / seen[str(row["id"])].height for row in wanted]
        assert shapes == pytest.approx([2.1, 2.4], abs=0.03)  # as wide as the files of these numbers


def test_a_row_without_its_picture_says_why(tmp_path: Path) -> None:
    out = write(tmp_path, 8)
    rows = {row["index"]: row for _, row in sample(facts(Storage(), str(out)), 99).shown}
    gone, changed, touched = (Path(rows[number]["source"]) for number in (1, 2, 0))
    gone.unlink()
    changed.write_bytes(Path(rows[3]["source"]).read_bytes())
    os.utime(touched, ns=(0, 0))
    rows[3] = rows[3] | {"sha256": "0" * 64}  # the version of the plan, and other bytes than those that were captioned
    rows[5] = rows[5] | {"unit": 7}
    seen = pictures(facts(Storage(), str(out)), list(rows.values()), 60)
    said = {index: seen[row["id"]].missing for index, row in rows.items()}
    assert said[0] == "" and seen[rows[0]["id"]].uri.startswith("data:image/webp;base64,")
    assert said[1] == "The file is in the plan but no longer exists."
    assert said[2] == said[3] == "The source changed: it holds another image than the one that was captioned."
    assert said[4] == "The image could not be decoded."  # failed as image_corrupt
    assert said[5] == "The plan does not hold this row's unit."
    late = pictures(facts(Storage(), str(out)), [rows[0]], 0)[rows[0]["id"]].missing
    assert late == "Reading took longer than 0 s; --images-s gives more time."
    (out / "run.json").unlink()
    assert "run.json has no recipe" in pictures(facts(Storage(), str(out)), [rows[0]], 60)[rows[0]["id"]].missing


def test_no_thumbnail_is_large() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 3 * module.SIDE**2, dtype=np.uint8).tobytes()
    thumbnail = module._thumbnail(noise, (module.SIDE, module.SIDE))
    assert isinstance(thumbnail, Picture) and len(thumbnail.uri) < 1.4 * module.MOST_BYTES


def test_a_page_is_the_same_each_time_and_is_written_where_it_is_wanted(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (output / "status.json").write_text('{"schema": 1, "gpu_ho')  # half written
    pages = [re.sub(r"on \S+ \S+ UTC", "", report(Storage(), str(output))) for _ in range(2)]
    assert pages[0] == pages[1] and "status.json is not whole" in pages[0]
    assert "60 images: 50 captioned" in pages[0] and "with what usually causes them" in pages[0]
    history = plain(tuple(HISTORY))
    told = {"schema": 1, "gpu_hours": 12.5, "cost": 31.25, "ended": "", "history": history}
    (output / "status.json").write_text(json.dumps(told))
    assert main(["report", str(output), "--to", str(tmp_path / "page.html"), "--images", "5"]) == 0
    assert str(tmp_path / "page.html") in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert page.count('<li class="card"') == 5 and "$31.25" in page
    assert "Rate and replicas over time" in page and "4.67 replicas on average while any ran, at most 6" in page
    (output / "status.json").unlink()


def test_what_is_no_output_is_refused_in_one_sentence(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        said = capsys.readouterr().err
        assert said.startswith("caprl-ray: ") and said.count("\n") == 1
        return said

    assert "there is no such folder" in refused("report", str(tmp_path / "none"))
    assert "there is no plan in this folder" in refused("report", str(tmp_path))
    assert "this is a file" in refused("report", str(output / "run.json"))
    assert "has no column title of its source; it has alt_text" in refused(
        "report", str(output), "--old-column", "title"
    )
    shutil.copytree(output, tmp_path / "other")
    (tmp_path / "other" / "run.json").write_text("{")
    assert "is not the run.json of a run" in refused("report", str(tmp_path / "other"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'caprl_ray[report]'" in refused("report", str(output))


def test_rows_over_time_come_from_the_times_of_objects() -> None:
    def footer(seconds: float, rows: int) -> Footer:
        return Footer(stored=Stored(path="", size=1, version=""), rows=rows, counts=Counts(), written=seconds)

    times = timeline([footer(1000 + 10 * n, 100) for n in range(1, 41)], 4000)
    assert times is not None and times.rows.sum() == pytest.approx(4000)
    assert times.start == pytest.approx(1000) and times.edges[-1] == pytest.approx(400)
    assert times.per_second.mean() == pytest.approx(10)
    pause = timeline([footer(10 * n + 10_000 * (n > 20), 100) for n in range(1, 41)], 4000)
    assert pause is not None and np.count_nonzero(pause.rows) < 5 and pause.rows.sum() == pytest.approx(4000)
    assert timeline([footer(1, 100), footer(2, 100)], 200) is None  # too short
    assert timeline([replace(footer(n * 10, 100), written=None) for n in range(9)], 900) is None


HISTORY = [
    Point(at=1000 + at, lease=lease, done=done, failed=0, replicas=replicas)
    for at, lease, done, replicas in (
        (0, 1, 0, 0), (30, 1, 300, 4), (60, 1, 600, 4), (360, 2, 590, 1), (390, 2, 1190, 6), (420, 2, 1180, 0),
    )
]  # fmt: skip


def test_rate_and_replicas_over_time_come_from_the_history() -> None:
    found = course(HISTORY)
    assert found is not None and found.runs == 2
    assert found.edges.tolist() == [0, 30, 60, 360, 390, 420]
    assert found.per_second.tolist() == [10, 10, 0, 20, 0], "nothing between two runs, and never less than nothing"
    assert found.replicas.tolist() == [4, 4, 0, 6, 0]
    assert found.mean_replicas == pytest.approx((4 + 4 + 6) / 3)
    assert course(HISTORY[:3]) is None and course([]) is None


def test_objects_tell_when_they_were_written_whatever_their_store_does(output: Path, tmp_path: Path) -> None:
    (stored, *_) = Storage().objects(str(output / DATA), ".parquet")
    moved = replace(stored, version="etag")
    assert abs(_footer(Storage(), stored).written - Path(stored.path).stat().st_mtime) < 60
    bare = tmp_path / "bare.parquet"
    pq.write_table(pq.read_table(stored.path).replace_schema_metadata(None), bare)
    older = Storage().lookup(str(bare))
    assert _footer(Storage(), older).written == pytest.approx(bare.stat().st_mtime)
    assert _written(moved, {}) is None
