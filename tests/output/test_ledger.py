"""From a unit's samples to committed rows and back: the reader reports a unit, and the ledger counts its rows."""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyroaring import BitMap

from caprl_ray import sources
from caprl_ray.caption.columns import CAPTION
from caprl_ray.errors import SystemFailure
from caprl_ray.output import committed, ledger, scan
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.committed import Committed, read_committed
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.objects import object_name
from caprl_ray.output.repair import repair
from caprl_ray.plan import Unit, UnitRef
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.read.datasource import remaining
from caprl_ray.read.unit import tables, unit_rows
from caprl_ray.recipe.input import Input
from caprl_ray.rows.schema import data_schema, failed_schema, row_schema
from caprl_ray.sources.samples import METADATA, Sample
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage, Stored

SCHEMA = row_schema(METADATA, CAPTION)
NOWHERE = Stored(path="", size=0, version="")  # the plan's object, which is not read here


def shard(path: Path, samples: int) -> bytes:
    """A tar of samples `0.jpg`, `0.txt` and so on; returns its bytes too."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(samples):
            for extension, content in (("jpg", b"j" * 600), ("txt", b"text %d" % number)):
                info = tarfile.TarInfo(f"{number}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def access(path: Path | str = "-") -> Access:
    return Access(storage=Storage(), input=Input(paths=[str(path)]), max_bytes=10_000)


def unit_of(path: Path) -> Unit:
    (unit,) = sources.plan_units(access(path))
    return unit


def images(folder: Path, count: int) -> Unit:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(b"%d" % number)
    return unit_of(folder)


def read(unit: Unit, done: Iterable[int] = (), rows: int | None = None) -> list[dict[str, Any]]:
    found = unit_rows(7, unit, schema=SCHEMA, access=access(), done=BitMap(done), rows=rows)
    return [row for table in tables(found, SCHEMA) for row in table.to_pylist()]


def told(rows: list[dict[str, Any]]) -> list[tuple[int, str | None, int | None]]:
    return [(row["index"], row["code"], row["unit_rows"]) for row in rows]


def test_the_units_of_a_ledger_are_never_all_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held, most = 0, 0

    class Counted(ledger.UnitLedger):
        def __init__(self, **fields: Any) -> None:
            nonlocal held, most
            super().__init__(**fields)
            held, most = held + 1, max(most, held + 1)

        def __del__(self) -> None:
            nonlocal held
            held -= 1

    monkeypatch.setattr(ledger, "UnitLedger", Counted)
    refs = [
        UnitRef(unit=number, kind="files", rows=3, bytes=0, object=NOWHERE, row_group=0, offset=0)
        for number in range(500)
    ]
    found = ledger.balance(refs, {number: Committed(finished=BitMap(range(3))) for number in range(1, 500)}, "done")
    assert (found.finished, found.planned, found.balanced) == (1497, 1500, False)
    assert found.summary().endswith("499 of 500 units balanced, 3 missing")
    told = json.loads("".join(found.lines({"more": 1})))
    assert [unit["missing"] for unit in told["units"]] == [3, *([0] * 499)] and told["more"] == 1
    assert 0 < most <= 3 and not held
    assert json.loads("".join(ledger.balance([], {}, "done").lines({})))["units"] == []


@pytest.fixture(params=["files", "webdataset"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Unit:
    """A unit of four good samples."""
    if request.param == "files":
        return images(tmp_path / "images", 4)
    shard(tmp_path / "0.tar", 4)
    return unit_of(tmp_path / "0.tar")


def test_the_last_row_and_no_other_says_how_long_the_unit_is(unit: Unit) -> None:
    rows = read(unit)
    assert told(rows) == [(0, None, None), (1, None, None), (2, None, None), (3, None, 4)]
    assert [row["id"] for row in rows] == [f"000007-{index:08d}" for index in range(4)]
    assert all(row["encoded"] and row["sha256"] for row in rows)


@pytest.mark.parametrize("done", [{0}, {1, 2}, {0, 1, 2}, {3}, {0, 3}, {0, 1, 2, 3}])
def test_done_rows_are_left_out_and_the_length_stays_the_units(unit: Unit, done: set[int]) -> None:
    assert told(read(unit, done)) == [(n, None, 4 if n == 3 else None) for n in range(4) if n not in done]


def test_done_files_are_not_opened(tmp_path: Path) -> None:
    unit = images(tmp_path / "images", 3)
    (tmp_path / "images/1.jpg").unlink()
    assert told(read(unit)) == [(0, None, None), (1, "source_missing", None), (2, None, 3)]
    assert told(read(unit, {1})) == [(0, None, None), (2, None, 3)]


def test_a_changed_or_large_file_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/3.jpg").write_bytes(b"x" * 10_001)
    unit = images(tmp_path / "images", 3)
    (tmp_path / "images/1.jpg").write_bytes(b"another size")
    os.utime(tmp_path / "images/2.jpg", ns=(0, 0))
    assert told(read(unit)) == [
        (0, None, None),
        (1, "source_changed", None),
        (2, "source_changed", None),
        (3, "image_too_large", 4),
    ]


def test_a_truncated_shard_ends_with_a_failed_row_that_counts_as_its_last(tmp_path: Path) -> None:
    content = shard(tmp_path / "whole.tar", 4)
    (tmp_path / "cut.tar").write_bytes(content[: content.rindex(b"2.txt") + 515])
    unit = unit_of(tmp_path / "cut.tar")
    assert told(read(unit)) == [(0, None, None), (1, None, None), (2, "truncated_unit", 3)]
    assert told(read(unit, {0, 1})) == [(2, "truncated_unit", 3)]


def test_an_empty_shard_is_one_failed_row(tmp_path: Path) -> None:
    shard(tmp_path / "empty.tar", 0)
    assert told(read(unit_of(tmp_path / "empty.tar"))) == [(0, "empty_unit", 1)]


@pytest.mark.parametrize("gone", [False, True])
def test_a_shard_that_changed_fails_as_a_whole_for_what_is_left_of_it(tmp_path: Path, gone: bool) -> None:
    shard(tmp_path / "0.tar", 4)
    unit = unit_of(tmp_path / "0.tar")
    shard(tmp_path / "0.tar", 9)
    code = "source_changed"
    if gone:
        (tmp_path / "0.tar").unlink()
        code = "source_missing"
    assert told(read(unit)) == [(0, code, 1)]
    assert told(read(unit, {0, 1})) == [(2, code, 3)]
    assert told(read(unit, {1, 3}, rows=4)) == [(0, code, None), (2, code, None)]
    assert told(read(unit, {1}, rows=4)) == [(0, code, None), (2, code, None), (3, code, 4)]


def outcome(rows: list[dict[str, Any]], failed: Iterable[int] = ()) -> pa.Table:
    """Rows as the caption stage hands them on: captioned, but for those at the indices `failed`."""
    failed = set(failed)
    caption = {"caption": "c", "finish_reason": "stop", "flags": [], "model": "m"}
    failure = {"stage": "caption", "code": "caption_empty", "detail": ""}
    return pa.Table.from_pylist(
        [row | {"encoded": None} | (failure if row["index"] in failed else caption) for row in rows], schema=SCHEMA
    )


def write(output: Path, *blocks: pa.Table) -> None:
    CommittedRows(Storage(), str(output), 1, CAPTION, 1).write(list(blocks), None)


def balance(output: Path, rows: int | None = None) -> Ledger:
    ref = UnitRef(unit=7, kind="webdataset", rows=rows, bytes=0, object=NOWHERE, row_group=0, offset=0)
    return ledger.balance([ref], read_committed(Storage(), str(output)), "captioned")


def objects(output: Path) -> set[str]:
    return {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}


def test_a_unit_balances_only_when_its_last_row_and_all_others_are_there(unit: Unit, tmp_path: Path) -> None:
    rows, out = read(unit), tmp_path / "out"
    write(out, outcome(rows[1:3], failed=[2]))
    assert not balance(out).balanced
    assert (balance(out).planned, balance(out).unknown, balance(out).units[0].missing) == (0, 1, None)
    assert balance(out).summary().startswith("at least 2 images: 1 captioned, 1 failed")
    assert balance(out, rows=4).units[0].missing == 2
    write(out, outcome(rows[3:]))
    (part,) = balance(out).units
    assert (part.planned, part.finished, part.failed, part.missing, part.balanced) == (4, 2, 1, 1, False)
    write(out, outcome(rows[:1]))
    whole = balance(out)
    assert whole.balanced and (whole.planned, whole.finished, whole.failed, whole.duplicate) == (4, 3, 1, 0)


@pytest.mark.parametrize("lost", range(4))
def test_any_row_that_is_lost_unbalances_the_ledger(unit: Unit, tmp_path: Path, lost: int) -> None:
    rows = read(unit)
    write(tmp_path / "out", outcome(rows[:lost] + rows[lost + 1 :]))
    assert not balance(tmp_path / "out").balanced
    work = remaining(
        [UnitRef(unit=7, kind=unit.kind, rows=unit.rows, bytes=0, object=NOWHERE, row_group=0, offset=0)],
        read_committed(Storage(), str(tmp_path / "out")),
    )
    assert told(read(unit, work[0].done, work[0].rows)) == [(lost, None, 4 if lost == 3 else None)]


@pytest.mark.parametrize("failed", [(), (0, 1, 2)])
def test_a_row_that_stands_twice_is_a_duplicate(unit: Unit, tmp_path: Path, failed: tuple[int, ...]) -> None:
    rows, out = read(unit), tmp_path / "out"
    write(out, outcome(rows, failed))
    write(out, outcome(rows[1:2], failed))
    (found,) = balance(out).units
    assert (found.duplicate, found.missing, found.balanced) == (1, 0, False)
    assert "1 duplicate" in balance(out).summary()


def test_a_row_in_data_and_failed_counts_as_captioned_and_repair_leaves_it_once(unit: Unit, tmp_path: Path) -> None:
    rows, out = read(unit), tmp_path / "out"
    write(out, outcome(rows, failed=[0, 3]))
    write(out, outcome(rows[3:]))
    found = balance(out)
    assert not found.balanced and (found.finished, found.failed, found.duplicate) == (3, 1, 1)
    assert repaired(out) == 1
    found = balance(out)
    assert found.balanced and (found.finished, found.failed, found.duplicate) == (3, 1, 0)
    assert pq.read_table(out / "failed")["index"].to_pylist() == [0]
    assert repaired(out) == 0


def test_repair_keeps_the_failed_row_with_most_attempts_and_one_of_two_captions(unit: Unit, tmp_path: Path) -> None:
    rows, out = read(unit), tmp_path / "out"
    write(out, outcome(rows[:2], failed=[0, 1]))
    write(out, outcome([rows[0] | {"attempts": 3}, rows[2]], failed=[0]))
    write(out, outcome([rows[0] | {"attempts": 2}], failed=[0]))
    write(out, outcome(rows[2:]))
    assert repaired(out) == 3
    assert balance(out).balanced
    failed = pq.read_table(out / "failed").sort_by("index").to_pylist()
    assert [(row["index"], row["attempts"]) for row in failed] == [(0, 3), (1, 1)]
    assert pq.read_table(out / "data").sort_by("index")["index"].to_pylist() == [2, 3]
    assert pq.read_table(out / "data").schema.names == data_schema(METADATA, CAPTION).names


def repaired(output: Path) -> int:
    return repair(Storage(), str(output), read_committed(Storage(), str(output)))


def test_a_finished_unit_is_not_read_again(tmp_path: Path) -> None:
    refs = [
        UnitRef(unit=n, kind="webdataset", rows=rows, bytes=0, object=NOWHERE, row_group=0, offset=0)
        for n, rows in enumerate([2, 2, None, None])
    ]
    committed = {
        0: Committed(finished=BitMap([0]), failed=BitMap([1])),
        1: Committed(finished=BitMap([1])),
        2: Committed(finished=BitMap([0, 1])),
        3: Committed(finished=BitMap([0, 1]), rows=2),
    }
    assert [work.ref.unit for work in remaining(refs, committed)] == [1, 2]


def test_an_objects_name_depends_on_identities_and_on_nothing_else() -> None:
    def named(*identities: tuple[int, int], **columns: str) -> str:
        return object_name(pa.Table.from_pylist([{"unit": u, "index": i} | columns for u, i in identities]))

    assert named((1, 2), (1, 3)) == named((1, 2), (1, 3), caption="other")
    others = [named((1, 2)), named((2, 1)), named((1, 3)), named((1, 2), (1, 3)), named((1, 3), (2, 2))]
    assert len(set(others)) == len(others)


def test_a_rewrite_with_another_outcome_overwrites_the_same_objects(unit: Unit, tmp_path: Path) -> None:
    rows, out = read(unit), tmp_path / "out"
    write(out, outcome(rows, failed=[1]))
    first = objects(out)
    assert len(first) == 2 and len({Path(name).name for name in first}) == 1
    write(out, outcome(rows[2:], failed=[2]), outcome(rows[:0]), outcome(rows[:2], failed=[2]))
    assert objects(out) == first
    assert pq.read_table(out / "data")["index"].to_pylist() == [0, 1, 3]
    assert pq.read_table(out / "failed")["index"].to_pylist() == [2]
    found = balance(out)
    assert found.balanced and (found.finished, found.failed) == (3, 1)


def test_other_rows_go_to_other_objects(unit: Unit, tmp_path: Path) -> None:
    rows = read(unit)
    write(tmp_path, outcome(rows[:2]))
    write(tmp_path, outcome(rows[2:]))
    assert len(Storage().objects(str(tmp_path / "data"), ".parquet")) == 2


def test_the_columns_are_exactly_those_of_the_schema(unit: Unit, tmp_path: Path) -> None:
    write(tmp_path, outcome(read(unit), failed=[0]))
    for folder, schema in (("data", data_schema(METADATA, CAPTION)), ("failed", failed_schema(METADATA))):
        (path,) = (tmp_path / folder).iterdir()
        written = pq.read_schema(path)
        assert written.equals(schema)
        assert [field.metadata[b"description"] for field in written] == [
            field.metadata[b"description"] for field in schema
        ]


def test_an_older_output_whose_source_has_columns_named_row_and_run_keeps_them(unit: Unit, tmp_path: Path) -> None:
    source = {"metadata": {"description": "The source's column."}}
    schema = row_schema(
        pa.schema([pa.field("row", pa.string(), **source), pa.field("run", pa.int8(), **source)]), CAPTION
    )
    rows = [row | {"meta:row": "x", "meta:run": 7} for row in unit_rows(7, unit, schema=schema, access=access())]
    for lease in (1, 2):
        table = pa.Table.from_pylist([row | {"code": "x" * (row["index"] > 1) or None} for row in rows], schema=schema)
        CommittedRows(Storage(), str(tmp_path), 1, CAPTION, lease, "f0").write([table], None)
    assert repaired(tmp_path) == 4
    for name in ("data", "failed"):
        kept = pq.read_table(tmp_path / name)
        assert kept.select(["row", "run"]).to_pylist() == [{"row": "x", "run": 7}] * 2
        assert len(set(kept.schema.names)) == len(kept.schema.names)


def test_the_output_opens_with_duckdb_and_pandas(unit: Unit, tmp_path: Path) -> None:
    rows = read(unit)
    write(tmp_path, outcome(rows[::-1], failed=[1]))
    (path,) = (tmp_path / "data").iterdir()
    query = f"select id, sha256, caption, flags, txt, unit_rows from '{tmp_path}/data/*.parquet' order by id"
    expected = [(r["id"], r["sha256"], "c", [], r["meta:txt"], r["unit_rows"]) for r in rows if r["index"] != 1]
    assert duckdb.sql(query).fetchall() == expected
    assert pd.read_parquet(path)["index"].tolist() == [0, 2, 3]


def test_an_output_that_cannot_be_written_stops_the_run(unit: Unit, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"a file")
    with pytest.raises(SystemFailure, match=r"^output\.path: .* cannot be written"):
        write(tmp_path / "out", outcome(read(unit)))


@pytest.mark.parametrize("done", [{0}, {0, 1, 2}])
def test_what_a_unit_left_out_travels_with_its_last_row(unit: Unit, tmp_path: Path, done: set[int]) -> None:
    def leaving_out(unit: Unit, done: BitMap, access: Access, left_out: LeftOut) -> Iterator[Sample | None]:
        for sample in sources.read_unit(unit, done, access, left_out):
            left_out.add("link", "a.jpg")
            yield sample

    rows = list(unit_rows(7, unit, schema=SCHEMA, access=access(), done=BitMap(done), read=leaving_out))
    assert [row["unit_left_out"] is not None for row in rows] == [row["index"] == 3 for row in rows]
    older = outcome([{"unit": 7, "index": n, "attempts": 1} for n in done]).select(["unit", "index"])
    (tmp_path / "data").mkdir()
    pq.write_table(older.append_column("unit_rows", pa.nulls(len(done), pa.int64())), tmp_path / "data/0.parquet")
    write(tmp_path, outcome(rows, failed=[3]))
    left_out = read_committed(Storage(), str(tmp_path))[7].left_out
    assert left_out and left_out.report() == {"link": {"count": 4, "example": "a.jpg"}}
    shorter = read(unit)[-1] | {"index": 2, "unit_rows": 3}  # an earlier run, which read less far
    write(tmp_path, outcome([shorter]))
    assert read_committed(Storage(), str(tmp_path))[7].left_out
    write(tmp_path, outcome([shorter | {"index": 9}]))
    assert read_committed(Storage(), str(tmp_path))[7].left_out is None


@pytest.mark.parametrize("most", [1, 3, 2**22])
def test_rows_are_the_same_in_however_many_parts_they_are_read(
    unit: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(committed, "ROWS_AT_ONCE", most)
    rows, other = read(unit), [row | {"unit": 70_000, "index": row["index"] + 2**31} for row in read(unit)]
    write(tmp_path, outcome(rows[:3], failed=[1]), outcome(other[:2]))
    write(tmp_path, outcome(rows[1:], failed=[2]), outcome(other[1:] + other[1:2]))
    found = read_committed(Storage(), str(tmp_path))
    assert found.keys() == {7, 70_000}
    assert (found[7].finished, found[7].failed, found[7].rows) == (BitMap([0, 1, 2, 3]), BitMap(), 4)
    assert found[7].extra == BitMap([1, 2])
    far = BitMap(range(2**31, 2**31 + 4))
    assert (found[70_000].finished, found[70_000].extra) == (far, BitMap([2**31 + 1]))


@pytest.mark.usefixtures("ray_cluster")
def test_many_objects_are_read_in_tasks_to_the_same_end(
    unit: Unit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = read(unit), str(tmp_path)
    for n in range(4):
        write(tmp_path, outcome(rows[n : n + 1], failed=[1]))
        write(tmp_path, outcome(rows[: n + 1], failed=[1]))
    here = read_committed(Storage(), out)
    monkeypatch.setattr(scan, "OBJECTS_PER_TASK", 2)
    assert read_committed(Storage(), out) == here
    assert (here[7].finished, here[7].failed, here[7].rows) == (BitMap([0, 2, 3]), BitMap([1]), 4)
    assert here[7].extra == BitMap(range(4))
    next((tmp_path / "data").iterdir()).write_bytes(b"no parquet")
    with pytest.raises(SystemFailure, match="the committed object cannot be read") as caught:
        read_committed(Storage(), out)
    assert "\n" not in str(caught.value)


def counted(finished: BitMap, failed: BitMap, rows: int) -> Ledger:
    committed = Committed(finished=finished, failed=failed, rows=rows)
    committed.settle()
    ref = UnitRef(unit=7, kind="webdataset", rows=None, bytes=0, object=NOWHERE, row_group=0, offset=0)
    return ledger.balance([ref], {7: committed}, "captioned")


def test_as_many_rows_as_planned_do_not_balance_if_one_of_them_is_another() -> None:
    """The rows 0 to 8 and 42 are ten, and so are the first ten of a unit of eleven with a failed row."""
    found = counted(BitMap([*range(9), 42]), BitMap([10]), 11)
    assert not found.balanced
    assert counted(BitMap(range(10)), BitMap([10]), 11).balanced


def test_rows_beyond_the_end_of_a_planned_unit_are_told() -> None:
    ref = UnitRef(unit=7, kind="files", rows=3, bytes=0, object=NOWHERE, row_group=0, offset=0)
    found = ledger.balance([ref], {7: Committed(finished=BitMap([0, 1, 42]))}, "captioned")
    assert not found.balanced and (found.beyond, found.units[0].missing) == (1, 1)
    assert "1 missing, 1 beyond their unit's end" in found.summary()


def test_a_length_that_is_smaller_than_an_index_is_no_length() -> None:
    """A retry was killed after it had committed rows behind the place where an earlier run could not read on."""
    committed = Committed(finished=BitMap([*range(10), *range(42, 74)]), failed=BitMap([10]), rows=11)
    committed.settle()
    ref = UnitRef(unit=7, kind="webdataset", rows=None, bytes=0, object=NOWHERE, row_group=0, offset=0)
    (work,) = remaining([ref], {7: committed})
    assert work.rows is None and 11 not in work.done
