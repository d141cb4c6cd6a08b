"""Compacting: an object for each finished unit, and every row once at any moment, wherever it stops."""

import io
import os
import random
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray import cli, plan
from caprl_ray.caption.columns import CAPTION
from caprl_ray.errors import SystemFailure
from caprl_ray.output import again, compact, doubtful, fence, grouping, ledger, parts
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.committed import opened, read_committed
from caprl_ray.output.counts import Counts
from caprl_ray.output.lease import held, path_of
from caprl_ray.output.objects import WRITTEN, Written
from caprl_ray.output.part import Part, part_of
from caprl_ray.output.repair import repair
from caprl_ray.plan import Entry, Unit
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.rows.schema import row_id, row_schema
from caprl_ray.sources.samples import METADATA
from caprl_ray.storage import Storage, Stored
from tests.s3_server import BUCKET

SCHEMA = row_schema(METADATA, CAPTION)
UNITS, ROWS, OBJECT_ROWS = 6, 12, 3
LAST = UNITS - 1  # is not finished
FIRST = 12  # writes of compacting, at each of which it is stopped; after them at each third, before it and after it
PARTS = (Part(number=1, of=2), Part(number=2, of=2))
Row = dict[str, Any]
where = StorageSettings()  # of the store of the output


# Limits with which a small output has several rounds of several batches.
LIMITS = ((grouping, "LEAST_ROWS", 6), (grouping, "BATCH_OBJECTS", 12), (compact, "ROUND_OBJECTS", 24))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in LIMITS:
        monkeypatch.setattr(*limit)


def there() -> Storage:
    return Storage(where)


@pytest.fixture(params=["local"])
def out(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An output of a run and of the drivers of two parts, whose objects mix units as they are read at the same time;
    one unit lacks rows, and one row of the run was done again by a driver. It may lie in a bucket."""
    path, chance = str(tmp_path / "out"), random.Random(1)
    if request.param == "s3":
        path, server = f"s3://{BUCKET}/out", request.getfixturevalue("s3")
        monkeypatch.setitem(globals(), "where", StorageSettings(endpoint=server.endpoint, region="us-east-1"))
    shard = Stored(path="0.tar", size=1, version="v")
    unit = Unit(kind="webdataset", rows=None, entries=[Entry(stored=shard, key="0.tar")], columns=METADATA)
    plan.store(there(), path, [unit] * UNITS)
    rows = [(unit, n) for unit in range(UNITS) for n in range(ROWS) if (unit, n) != (LAST, 3)]
    rows.sort(key=lambda row: 3 * row[0] + row[1] + chance.uniform(0, 9))  # some three units are open at a time
    with held(there(), path) as own:
        write_all(path, Written(number=own.number), rows[: len(rows) // 2])
    for part in PARTS:
        with parts.held(there(), path, part) as own:
            of_part = [row for row in [(0, 0), *rows[len(rows) // 2 :]] if part_of(row[0], 2) == part]
            write_all(path, Written(number=own.number, part=part.name), of_part)
    with held(there(), path):
        repair(there(), path, read_committed(there(), path))
    return path


def command(name: str, out: str, *options: str) -> int:
    settings = [f"storage.endpoint={where.endpoint}", "storage.region=us-east-1"] if where.endpoint else []
    return cli.main([name, out, *settings, *options])


def write_all(out: str, under: Written, rows: list[tuple[int, int]]) -> None:
    """Commit rows in small objects."""
    for start in range(0, len(rows), OBJECT_ROWS):
        write(out, under, rows[start : start + OBJECT_ROWS])


def write(out: str, under: Written, rows: list[tuple[int, int]], attempts: int = 1, **more: Any) -> None:
    """Commit rows as a run does. One in seven has failed."""
    table = [
        {"id": row_id(unit, n), "unit": unit, "index": n, "unit_rows": ROWS if n == ROWS - 1 else None}
        | {"attempts": attempts, "caption_tokens": 4, "model": "m"}
        | (
            {"stage": "caption", "code": "caption_empty", "detail": ""}
            if (unit + n) % 7 == 2 and not more
            else {"caption": f"{unit} {n}", "flags": ["loop"] * (n % 2), **more}
        )
        for unit, n in rows
    ]
    place = (there(), out, 1, CAPTION, under.number, "r", under.part)
    CommittedRows(*place).write([pa.Table.from_pylist(table, schema=SCHEMA)], None)


def objects(out: str) -> dict[str, list[list[Row]]]:
    """The rows of each object that counts, by folder."""
    found = fence.committed_objects(there(), out)
    return {
        folder: [pq.read_table(io.BytesIO(there().read(stored.path))).to_pylist() for stored in some]
        for folder, some in found.items()
    }


def rows(out: str) -> dict[tuple[str, str], Row]:
    """All rows, each of which stands once."""
    some = [(folder, row) for folder, each in objects(out).items() for rows in each for row in rows]
    assert max(Counter(row["id"] for _, row in some).values()) == 1
    return {(folder, row["id"]): {k: v for k, v in row.items() if v is not None} for folder, row in some}


def sums(out: str) -> Counts:
    """What the footers say in sum."""
    return read_committed(there(), out).counts


def assert_exact(out: str, before: dict[tuple[str, str], Row]) -> None:
    """Every row is there once, as it was, and the ledger counts each once."""
    assert rows(out) == before
    found = ledger.balance(plan.load(there(), out).units, read_committed(there(), out), "captioned")
    assert [unit.balanced for unit in found.units] == [unit != LAST for unit in range(UNITS)]
    assert found.finished + found.failed == len(before) and not found.duplicate


def assert_compact(out: str) -> None:
    """Finished units are whole and sorted, in one object each, and the other one is left as it was."""
    for folder, each in objects(out).items():
        of = [sorted({row["unit"] for row in rows}) for rows in each]
        assert all(
            [(row["unit"], row["index"]) for row in rows] == sorted((row["unit"], row["index"]) for row in rows)
            for rows in each
        )
        assert all(count == 1 for unit, count in Counter(chain.from_iterable(of)).items() if unit != LAST), folder
        assert folder == "failed" or all(len(units) == 1 for units in of if units != [LAST])
    assert not fence.late_objects(there(), out)


def test_each_finished_unit_gets_an_object_and_nothing_else_changes(
    out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, told, names = rows(out), sums(out), sorted(Path(out).rglob("*.parquet"))
    newest = max(float(pq.read_metadata(path).metadata[WRITTEN]) for path in names if path.parent.name == "data")
    assert command("compact", out, "--dry-run") == 0
    planned = capsys.readouterr().out
    assert names == sorted(Path(out).rglob("*.parquet"))
    assert command("compact", out) == 0
    said = capsys.readouterr().out
    assert_exact(out, before)
    assert_compact(out)
    now = sums(out)
    assert (now.flags, now.codes, now.runs) == (told.flags, told.codes, told.runs)
    assert now.tallies["tokens"] == told.tallies["tokens"] and now.tallies["model"] == told.tallies["model"]
    made = {folder: sorted((Path(out) / folder).glob("*.parquet")) for folder in ("data", "failed")}
    for folder, paths in made.items():
        assert f"objects in {folder}/ are {len(paths)}" in said
        about = int(planned.partition(f"objects in {folder}/ would be about ")[2].split(";")[0])
        assert abs(about - len(paths)) <= 1
    assert max(float(pq.read_metadata(path).metadata[WRITTEN]) for path in made["data"]) == newest
    files = {path: path.stat().st_ino for path in Path(out).glob("[df]*/*.parquet")}
    assert command("compact", out) == 0
    assert files == {path: path.stat().st_ino for path in Path(out).glob("[df]*/*.parquet")}, "nothing was left to do"


def test_a_row_that_comes_later_is_merged_into_its_unit(out: str) -> None:
    assert command("compact", out) == 0
    with held(there(), out) as own:
        write(out, Written(number=own.number), [(LAST, 3), (0, 2)], attempts=2, caption="Done at last.")
        repair(there(), out, read_committed(there(), out))
    before = rows(out)
    assert command("compact", out) == 0
    assert rows(out) == before and before["data", row_id(0, 2)]["caption"] == "Done at last."
    assert len(objects(out)["data"]) == UNITS
    assert command("verify", out) == 0


@dataclass(frozen=True)
class Failing(Storage):
    """Storage that ends the command at one of its writes, before it or after it."""

    left: list[int] = field(default_factory=lambda: [-1])
    after: bool = False
    how: int = signal.SIGINT

    def put(self, path: str, content: bytes) -> None:
        self._count(path)
        super().put(path, content)
        self._count(path, after=True)

    def delete(self, path: str) -> None:
        self._count(path)
        super().delete(path)
        self._count(path, after=True)

    def _count(self, path: str, *, after: bool = False) -> None:
        if after == self.after and any(f"/{folder}/" in path for folder in ("data", "failed", "fence")):
            self.left[0] -= 1
            if self.left[0] == 0 and self.how == signal.SIGKILL:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.left[0] == 0:
                raise KeyboardInterrupt


def stops(out: str) -> Iterator[int]:
    """Compact with a storage that ends it at its first write, then at a later one, and so on, until it finishes."""
    numbers = range(1, 1000, 11) if where.endpoint else chain(range(1, FIRST), range(FIRST, 1000, 3))
    for number in numbers:
        storage = Failing(where, left=[number], after=number % 2 == 0)
        try:
            with held(storage, out) as own:
                compact.compact(storage, out, plan.load(storage, out), own)
            return
        except KeyboardInterrupt:
            yield number


@pytest.mark.parametrize("out", ["local", pytest.param("s3", marks=pytest.mark.slow)], indirect=True)
def test_wherever_it_stops_every_row_counts_once_and_a_second_one_finishes(out: str) -> None:
    before, late = rows(out), []
    for _ in stops(out):  # each goes on from where the one before was stopped
        assert_exact(out, before)
        late.append(bool(fence.late_objects(there(), out)))
    assert len(late) >= (FIRST if not where.endpoint else 3) and {*late} == {False, True}
    assert_exact(out, before)
    assert_compact(out)


def test_a_unit_that_is_the_rest_of_another_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit 1 is all that the first round leaves of the objects that it shares with unit 0."""
    monkeypatch.setattr(grouping, "BATCH_GROUPS", 1)
    monkeypatch.setattr(grouping, "LEAST_ROWS", ROWS)
    monkeypatch.setattr(compact, "ROUND_OBJECTS", 1)
    path, half = str(tmp_path / "out"), ROWS // 2
    shard = Stored(path="0.tar", size=1, version="v")
    unit = Unit(kind="webdataset", rows=None, entries=[Entry(stored=shard, key="0.tar")], columns=METADATA)
    plan.store(there(), path, [unit] * 2)
    with held(there(), path) as own:
        for n in range(half):
            write(path, Written(number=own.number), [(0, n)], caption="c")
        for n in range(half):
            write(path, Written(number=own.number), [(0, half + n), (1, 2 * n), (1, 2 * n + 1)], caption="c")
    before = rows(path)
    assert command("compact", path) == 0
    assert rows(path) == before and command("verify", path) == 0


@pytest.mark.parametrize("out", ["local", "s3"], indirect=True)
def test_who_reads_without_a_lease_sees_one_moment(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The objects and the fence are read by several requests, between which compacting goes on."""
    listed, ends, before, found = fence._listed, [0], rows(out), fence.committed_objects(there(), out)

    def compacting(storage: Storage, output: str, folders: Iterable[str]) -> dict[str, list[Stored]]:
        found = listed(storage, output, folders)
        if not ends[0]:
            ends[0] = 1
            assert command("compact", out) == 0
        return found

    monkeypatch.setattr(fence, "_listed", compacting)
    assert_exact(out, before)
    assert ends == [1]
    with (
        pytest.raises(SystemFailure, match="replaced meanwhile, by a run, by verify --repair or by compact; run the"),
        opened(there(), found["data"][0]),
    ):
        pytest.fail("it was merged")


def test_doubtful_rows_of_a_part_are_found_where_compacting_has_put_them(out: str) -> None:
    """A lost driver of the part names them late."""
    unit = next(unit for unit in range(UNITS) if part_of(unit, 2) == PARTS[0])
    rows_of = {(0, 0)} if part_of(0, 2) == PARTS[0] else {(unit, ROWS - 1)}
    assert command("compact", out) == 0
    doubtful.keep(there(), out, 1, rows_of, PARTS[0].name)
    assert not doubtful.settle(there(), out, PARTS[0].name), "drivers of two parts would rewrite one object"
    assert doubtful.settle(there(), out, "") == rows_of
    found = read_committed(there(), out)
    assert not any(index in found[unit].done for unit, index in rows_of)


def test_a_process_that_is_killed_leaves_every_row_once(out: str) -> None:
    before = rows(out)
    for number in (4, 12):  # among the new objects, and among those that are deleted
        child = os.fork()
        if not child:
            try:
                storage = Failing(where, left=[number], how=signal.SIGKILL)
                with held(storage, out) as own:
                    compact.compact(storage, out, plan.load(storage, out), own)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert_exact(out, before)
    assert command("compact", out) == 0
    assert_exact(out, before)
    assert_compact(out)


def test_what_a_lost_driver_of_a_part_writes_afterwards_does_not_count_and_what_the_next_one_writes_does(
    out: str,
) -> None:
    before, part = rows(out), part_of(LAST, 2)
    with pytest.raises(KeyboardInterrupt), parts.held(there(), out, part) as lost:
        raise KeyboardInterrupt
    assert command("compact", out) == 0
    late = Written(number=lost.number, part=part.name)
    write(out, late, [(LAST, 3)], caption="late")
    assert_exact(out, before)
    with parts.held(there(), out, part) as own:
        assert own.number > lost.number
        write(out, late, [(LAST, 3)], caption="late")
        write(out, Written(number=own.number, part=part.name), [(LAST, 3)], caption="in time")
    assert rows(out)["data", row_id(LAST, 3)]["caption"] == "in time"
    with pytest.raises(KeyboardInterrupt), held(there(), out):
        raise KeyboardInterrupt
    with held(there(), out):  # stores what of earlier leases counts, and what counts of parts
        assert len(rows(out)) == len(before) + 1
    assert command("compact", out) == 0
    assert len(rows(out)) == len(before) + 1


def test_a_part_of_a_division_that_is_forgotten_begins_behind_what_was_compacted(out: str) -> None:
    assert command("compact", out) == 0
    for part in PARTS:
        there().delete(path_of(out, part))
    with parts.held(there(), out, PARTS[0]) as own:
        assert own.number > 1


@pytest.mark.parametrize("how", ["run", "repair"])
def test_what_a_stopped_one_leaves_is_removed_by_the_next_run_and_by_repair(out: str, how: str) -> None:
    before, storage = rows(out), Failing(where, left=[8])
    with pytest.raises(KeyboardInterrupt), held(storage, out) as own:
        compact.compact(storage, out, plan.load(storage, out), own)
    late = fence.late_objects(there(), out)
    assert late and command("verify", out) == 3
    if how == "repair":
        command("verify", out, "--repair")
    else:
        with held(there(), out):
            fence.sweep(there(), out)
    assert not fence.late_objects(there(), out)
    assert_exact(out, before)


def test_a_task_that_writes_late_changes_nothing(out: str) -> None:
    """Ray may run a task twice: the first one writes on after the end."""
    before = rows(out)
    merged = dict[str, bytes]()

    class Kept(Storage):
        def put(self, path: str, content: bytes) -> None:
            merged[path] = content
            super().put(path, content)

    with held(Kept(), out) as own:
        compact.compact(Kept(), out, plan.load(there(), out), own)
    for path, content in merged.items():
        if "/fence/" not in path:
            there().put(path, content)
    assert_exact(out, before)
    fence.sweep(there(), out)
    assert_compact(out)


def test_it_waits_for_no_run_and_for_no_rows_that_are_to_be_done_again(
    out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(there(), out):
        assert command("compact", out) == 2
    assert "is writing here" in capsys.readouterr().err
    with held(there(), out) as own:
        again.requested(there(), out, "flags has 'loop'", "other", own.number)
    assert command("compact", out) == 2
    assert "is not yet done with --again" in capsys.readouterr().err


@pytest.mark.usefixtures("ray_cluster")
def test_in_tasks_too(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "OBJECTS_PER_TASK", 1)
    before = rows(out)
    assert command("compact", out) == 0
    assert_exact(out, before)
    assert_compact(out)
