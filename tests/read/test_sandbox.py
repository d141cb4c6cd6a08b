"""Units are read in a child that really crashes, is killed and runs out of memory. The other rows are unchanged."""

import io
import tarfile
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyroaring import BitMap

from caprl_ray import plan, sources
from caprl_ray.errors import SystemFailure
from caprl_ray.plan import Unit
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.read import datasource, search
from caprl_ray.read import sandbox as module
from caprl_ray.read.sandbox import ReadSandbox
from caprl_ray.read.unit import tables, unit_rows
from caprl_ray.recipe.input import Input
from caprl_ray.rows.schema import row_schema
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage
from tests.deadly import DeadlyStorage
from tests.sources.test_parquet import ALL_TYPES

ROWS, GROUP = 40, 10


def access_to(path: Path, notes: Path | None = None, **settings: Any) -> Access:
    storage = DeadlyStorage.noting(Storage(), str(notes)) if notes else Storage()
    return Access(storage=storage, input=Input(paths=[str(path)], **settings), max_bytes=2**20)


def image(number: int, words: bytes = b"", size: int = 5000) -> bytes:
    return b"%04d" % number + bytes(size) + (words + b"!" if words else b"")


def table(path: Path, words: dict[int, bytes] | None = None, size: int = 5000, group: int = GROUP) -> Path:
    """A file whose first 27 rows are not in its last 64 KiB, which are read first."""
    images = [image(n, (words or {}).get(n, b""), size) for n in range(ROWS)]
    columns = {"image": images, "n": list(range(ROWS))}
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table(columns), path, row_group_size=group, data_page_size=1, write_batch_size=1, **options)
    return path


def shard(path: Path, words: dict[int, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in range(ROWS):
            for extension, content in (("jpg", image(number, words.get(number, b""))), ("txt", b"text")):
                member = tarfile.TarInfo(f"{number:03d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def folder(path: Path, words: dict[int, bytes]) -> Path:
    path.mkdir()
    for number in range(ROWS):
        (path / f"{number:03d}.jpg").write_bytes(image(number, words.get(number, b"")))
    return path


def unit_of(path: Path) -> tuple[Unit, pa.Schema]:
    units = list(sources.plan_units(access_to(path)))
    return units[0], row_schema(plan.unified(pa.schema([]), units))


def read(path: Path, access: Access, done: BitMap | None = None) -> list[pa.Table]:
    """The tables of a unit, as the second attempt of a read task makes them."""
    unit, schema = unit_of(path)
    with ReadSandbox() as sandbox:
        rows = unit_rows(0, unit, schema=schema, access=access, done=done, rows=unit.rows, read=sandbox)
        return list(tables(rows, schema))


def outcomes(made: list[pa.Table]) -> dict[int, bytes | str]:
    rows = [row for part in made for row in part.to_pylist()]
    found = {row["index"]: row["code"] or row["encoded"] for row in rows}
    assert len(found) == len(rows)
    assert all(row["row"] == (0 if row["source"].endswith(".jpg") else row["index"]) for row in rows)
    assert [row["unit_rows"] for row in rows if row["unit_rows"]] == [len(found)]
    assert {(row["stage"], row["detail"]) for row in rows if row["code"]} <= {
        ("read", "SIGSEGV"),
        ("read", "SIGKILL"),
        ("read", "out of memory"),
    }
    return found


def expected(lost: set[int], rows: int = ROWS) -> dict[int, bytes | str]:
    return {n: "read_crash" if n in lost else image(n) for n in range(rows)}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    (tmp_path / "notes").touch()
    return tmp_path / "notes"


def deaths(notes: Path) -> list[str]:
    pids = [line.split()[-1] for line in notes.read_text().splitlines()]
    assert len(set(pids)) == len(pids) and str(psutil.Process().pid) not in pids
    return pids


def test_what_a_child_reads_is_what_reading_gives(tmp_path: Path) -> None:
    images = [bytes([n]) * 100 for n in range(3)]
    pq.write_table(pa.table({**ALL_TYPES, "image": images}), tmp_path / "all.parquet")
    pq.write_table(pa.table({"image": [b"x", None, b""], "s": [[{"a": None}], None, []]}), tmp_path / "nulls.parquet")
    (tmp_path / "damaged.parquet").write_bytes(table(tmp_path / "whole.parquet").read_bytes()[:20_000])
    shard(tmp_path / "s.tar", {})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:90_000])
    with ReadSandbox() as sandbox:
        for path in [*tmp_path.iterdir(), folder(tmp_path / "files", {})]:
            unit, schema = unit_of(path)
            for done in (BitMap(), BitMap([0, 2]), BitMap(range(30))):
                settings: dict[str, Any] = {"schema": schema, "access": access_to(path), "done": done}
                plain = list(tables(unit_rows(0, unit, **settings, rows=unit.rows), schema))
                made = list(tables(unit_rows(0, unit, **settings, rows=unit.rows, read=sandbox), schema))
                assert made == plain, path.name
                assert [part.nbytes for part in made] == [part.nbytes for part in plain], path.name


def test_tables_are_cut_as_without_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caprl_ray.read.unit.TABLE_BYTES", 5000)
    texts = [None if n % 3 else "x" * n for n in range(ROWS)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [image(n, size=300 + n) for n in range(ROWS)], "t": texts}), path)
    unit, schema = unit_of(path)
    plain = list(tables(unit_rows(0, unit, schema=schema, access=access_to(path), rows=ROWS), schema))
    assert len(plain) > 2 and [part.num_rows for part in read(path, access_to(path))] == [
        part.num_rows for part in plain
    ]


@pytest.mark.parametrize("words", [b"<segfault>", b"<kill>", b"<no memory>"])
def test_a_page_that_kills_fails_its_row_group_and_no_other(tmp_path: Path, notes: Path, words: bytes) -> None:
    path = table(tmp_path / "a.parquet", {13: words})
    found = outcomes(read(path, access_to(path, notes)))
    assert found == expected(set(range(10, 20)))
    assert len(deaths(notes)) == 2


def test_rows_before_the_page_in_its_row_group_are_read(tmp_path: Path, notes: Path) -> None:
    """The reader fetches up to four MiB at a time, so it dies up to four MiB before the page."""
    path = table(tmp_path / "a.parquet", {35: b"<segfault>"}, size=500_000, group=ROWS)
    found = outcomes(read(path, access_to(path, notes)))
    lost = {index for index, outcome in found.items() if outcome == "read_crash"}
    assert lost == set(range(min(lost), ROWS)) and 20 < min(lost) <= 35
    assert all(found[index] == image(index, size=500_000) for index in range(min(lost)))


def test_a_finished_row_is_not_failed_again(tmp_path: Path, notes: Path) -> None:
    path = table(tmp_path / "a.parquet", {13: b"<segfault>"})
    made = read(path, access_to(path, notes), BitMap([11, 12, 25]))
    codes = {row["index"]: row["code"] for part in made for row in part.to_pylist()}
    assert codes == {n: "read_crash" if 10 <= n < 20 else None for n in range(ROWS) if n not in (11, 12, 25)}


def test_a_kill_from_outside_costs_no_row(tmp_path: Path, notes: Path) -> None:
    path = table(tmp_path / "a.parquet", {13: b"<once>"})
    (found,) = [
        row["code"] for part in read(path, access_to(path, notes)) for row in part.to_pylist() if row["code"]
    ] or [None]
    assert found is None and Path(f"{notes}.once").exists()


def test_of_a_shard_only_the_sample_is_lost(tmp_path: Path, notes: Path) -> None:
    path = shard(tmp_path / "a.tar", {0: b"<segfault>", 7: b"<kill>", 8: b"<segfault>"})
    assert outcomes(read(path, access_to(path, notes))) == expected({0, 7, 8})


def test_of_loose_files_only_the_file_is_lost(tmp_path: Path, notes: Path) -> None:
    path = folder(tmp_path / "in", {7: b"<segfault>", 8: b"<kill>"})
    made = read(path, access_to(path, notes))
    assert outcomes(made) == expected({7, 8})
    keys = [row["key"] for part in made for row in part.to_pylist()]
    assert keys == [f"{n:03d}.jpg" for n in range(ROWS)]


def test_a_unit_that_cannot_even_be_opened_fails_as_a_whole(tmp_path: Path, notes: Path) -> None:
    path = table(tmp_path / "a.parquet", {39: b"<segfault>"})
    assert outcomes(read(path, access_to(path, notes))) == dict.fromkeys(range(ROWS), "read_crash")


@pytest.mark.slow
def test_many_places_that_kill_end_the_unit_in_bounded_time(
    tmp_path: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MOST_PLACES", 2)
    path = table(tmp_path / "a.parquet", {n: b"<segfault>" for n in range(4, 27) if n % 2}, group=2)
    found = outcomes(read(path, access_to(path, notes)))
    assert found == expected(set(range(4, ROWS)))
    assert len(deaths(notes)) == 2 * (search.MOST_PLACES + 1)


def test_a_worker_without_memory_goes_on_in_a_child(tmp_path: Path, notes: Path) -> None:
    path = table(tmp_path / "a.parquet", {13: b"<no memory>"})
    unit, _ = unit_of(path)
    with ReadSandbox() as sandbox:
        samples = list(sandbox.plain(unit, BitMap([3]), access_to(path, notes), LeftOut()))
    assert [sample and (sample.failure.code if sample.failure else sample.image) for sample in samples] == [
        None if n == 3 else outcome for n, outcome in expected(set(range(10, 20))).items()
    ]
    pids = [int(line.split()[-1]) for line in notes.read_text().splitlines()]
    assert pids[0] == psutil.Process().pid and len(set(pids)) == 3


def test_a_task_whose_worker_ends_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasource, "current_task", lambda: "task")
    monkeypatch.setattr(datasource, "earlier_attempts", lambda *_: datasource.MOST_ATTEMPTS)
    with pytest.raises(SystemFailure, match="ended 20 times, though its units were read in a process of their own"):
        list(datasource.read_units([], pa.schema([]), datasource.Reading(access=access_to(Path("-")))))


def test_one_child_reads_many_units_and_ends_with_the_block(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet")
    unit, _ = unit_of(path)
    with ReadSandbox() as sandbox:
        pids = set()
        for _ in range(3):
            assert len(list(sandbox(unit, BitMap(), access_to(path), LeftOut()))) == ROWS
            assert sandbox._child
            pids.add(sandbox._child._process.pid)
        next(left := sandbox(unit, BitMap(), access_to(path), LeftOut()))
        left.close()
        assert sandbox._child is None  # it was ended, because it had more samples to send
        assert len(list(sandbox(unit, BitMap(), access_to(path), LeftOut()))) == ROWS
    assert len(pids) == 1
    assert not [child for child in psutil.Process().children() if "caprl_ray.read.sandbox" in child.cmdline()]


def test_what_is_no_rows_fault_comes_through_as_it_is(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet")
    unit, schema = unit_of(path)
    path.unlink()
    rows = list(unit_rows(0, unit, schema=schema, access=access_to(path), rows=ROWS, read=ReadSandbox()))
    assert {row["code"] for row in rows} == {"source_missing"}
    root, named = tmp_path / "root", tmp_path / "set" / "a.parquet"
    for folder in (root, named.parent):
        folder.mkdir()
    (root / "a.jpg").write_bytes(b"a")
    pq.write_table(pa.table({"path": [str(root / "a.jpg")]}), named)
    access = access_to(named, image_roots=[str(root)])
    (unit,) = sources.plan_units(access)
    (root / "a.jpg").unlink()
    with ReadSandbox() as sandbox, pytest.raises(SystemFailure, match="no image below it can be read"):
        list(unit_rows(0, unit, schema=row_schema(unit.columns), access=access, rows=1, read=sandbox))


def test_an_answer_with_an_extension_type_is_refused() -> None:
    child = module._Child()
    schema = pa.schema([pa.field("x", pa.int8(), metadata={"ARROW:extension:name": "evil"})])
    try:
        assert child.receive() == b"ready"
        child.receive = lambda: schema.serialize().to_pybytes()  # type: ignore[method-assign]
        with pytest.raises(SystemFailure, match="extension type"):
            child._arrays()
    finally:
        child.end()
