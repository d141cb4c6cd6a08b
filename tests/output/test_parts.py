"""Several drivers on one output: each unit is one part's, who may write is never in doubt, and a part that is lost
spoils nothing of its neighbours."""

import json
import signal
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pyroaring import BitMap

from caprl_ray import cli, divided, pipeline, plan
from caprl_ray.caption.columns import CAPTION
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.commands.status import look
from caprl_ray.errors import LedgerUnbalanced, RecipeError, SystemFailure, TooManyFailures
from caprl_ray.job import Job
from caprl_ray.output import doubtful, fence, lease, ledger, parts
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.committed import read_committed
from caprl_ray.output.folder import SUCCESS, Output
from caprl_ray.output.holder import HELD, Holder
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.part import Part, part_of
from caprl_ray.plan import Entry, Plan, Unit, UnitRef
from caprl_ray.read.datasource import Work
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.rows.schema import row_id, row_schema
from caprl_ray.sources.samples import METADATA
from caprl_ray.storage import Storage, Stored, join
from caprl_ray.watch import all_parts
from caprl_ray.watch.start import Start
from caprl_ray.watch.status import Run, place
from caprl_ray.watch.status_file import content
from tests.s3_server import BUCKET, S3Server
from tests.watch.test_status import changed

Place = tuple[Storage, str]
SCHEMA = row_schema(METADATA, CAPTION)
ONE, TWO, THREE = (Part(number=number, of=3) for number in (1, 2, 3))
UNITS = 6


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An output with a plan of six units, each of one row."""
    if request.param == "local":
        found: Place = Storage(), str(tmp_path / "out")
    else:
        server: S3Server = request.getfixturevalue("s3")
        found = Storage(StorageSettings(endpoint=server.endpoint, region="us-east-1")), f"s3://{BUCKET}/out"
    shards = (Stored(path=f"{number}.tar", size=1, version="v") for number in range(UNITS))
    plan.store(*found, [Unit(kind="files", rows=1, entries=[Entry(stored=s, key=s.path)]) for s in shards])
    return found


def units_of(part: Part) -> list[int]:
    return [unit for unit in range(UNITS) if part_of(unit, part.of) == part]


def write(output: Place, lease: int, part: Part | None, *units: int) -> None:
    """The rows of some units, as a write task commits them."""
    rows = [
        {"id": row_id(unit, 0), "unit": unit, "index": 0, "unit_rows": 1, "attempts": 1, "caption": "c"}
        for unit in units
    ]
    name = part.name if part else ""
    CommittedRows(*output, 1, CAPTION, lease, None, name).write([pa.Table.from_pylist(rows, schema=SCHEMA)], None)


def lost(output: Place, part: Part, *units: int) -> int:
    """A driver of a part that writes some units and stops early; returns the number of its lease."""
    with suppress(KeyboardInterrupt), parts.held(*output, part) as own:
        write(output, own.number, part, *units)
        raise KeyboardInterrupt
    return own.number


def done(output: Place) -> BitMap:
    return BitMap(unit for unit, rows in read_committed(*output).items() if rows.finished)


def test_every_unit_is_one_parts_and_parts_have_as_many_whatever_the_input_repeats() -> None:
    for of in (1, 2, 3, 7, 12):
        shares = Counter(part_of(unit, of) for unit in range(600))
        assert len(shares) == of and max(shares.values()) - min(shares.values()) <= 1
        for period in (2, 3, 4, 12):  # of each file's units the last is a short one
            large = Counter(part_of(unit, of) for unit in range(0, 6000, period))
            assert max(large.values()) < 1.35 * 6000 / period / of


def test_lost_parts_are_settled_by_one_listing_and_ctrl_c_ends_the_wait_for_them(
    output: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in (ONE, TWO, THREE):
        number = lost(output, part, units_of(part)[0])
    listed, listings = fence._listed, [0]

    def counted(*args: Any) -> dict[str, list[Stored]]:
        listings[0] += 1
        return listed(*args)

    monkeypatch.setattr(fence, "_listed", counted)
    lease.settle(*output, lease.holders(*output))
    assert listings == [1]
    for part in (ONE, TWO, THREE):
        write(output, number, part, units_of(part)[1])
    assert done(output) == BitMap(units_of(part)[0] for part in (ONE, TWO, THREE))
    for part in (ONE, TWO):  # their drivers may live: nobody knows
        path = lease.path_of(output[1], part)
        told = json.loads(output[0].read(path)) | {"state": "held", "boot": "elsewhere", "run": part.name}
        output[0].put(path, json.dumps(told).encode())
    main = threading.main_thread().ident
    threading.Timer(0.5, signal.pthread_kill, [main, signal.SIGINT]).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        lease.settle(*output, lease.holders(*output))
    assert time.monotonic() - began < 30
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("settle")]


def test_the_ledgers_of_parts_hold_no_balances_of_units() -> None:
    units, shard = 20_000, Stored(path="0.tar", size=1, version="v")
    ref = UnitRef(unit=7, kind="files", rows=1, bytes=1, object=shard, row_group=0, offset=0)
    whole = ledger.balance([ref] * units, {}, "captioned")
    tracemalloc.start()
    found = parts.shares({ONE: None}, whole)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(share.planned for share in found) == units and peak < 100_000


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "-1/3", "1/3/3", "a/b", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="is not a part; give K/N with K from 1 to N, such as 1/3"):
        Part.parse(text)
    assert str(Part.parse("3/12")) == "3/12" and Part.named("3of12") == Part.parse("3/12")


@pytest.mark.parametrize("option", ["--extend", "--limit=3", "--again=true"])
def test_what_does_not_go_with_parts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(demo_recipe([tmp_path], tmp_path / "out")))
    assert cli.main(["caption", str(tmp_path / "recipe.yaml"), "--part", "1/3", option]) == 2
    name = option.partition("=")[0]
    said = f"--part: cannot be given with {name}; run {name} without --part when no part runs."
    assert capsys.readouterr().err == f"caprl-ray: {said}\n"


def test_a_late_write_of_a_lost_part_does_not_count_and_those_of_neighbours_do(output: Place) -> None:
    (first, second), (other, last) = units_of(ONE), units_of(TWO)
    with parts.held(*output, TWO) as neighbour:
        write(output, neighbour.number, TWO, other)
        number = lost(output, ONE, first)
        with parts.held(*output, ONE) as again:
            assert (number, again.number, neighbour.number) == (1, 2, 1)
            write(output, number, ONE, second)
            write(output, neighbour.number, TWO, last)
            assert done(output) == BitMap([first, other, last])
            assert not fence.sweep(*output, TWO.name)
            assert fence.sweep(*output, ONE.name) == 1
            write(output, again.number, ONE, second)
    assert done(output) == BitMap([first, second, other, last])


def test_a_part_reads_no_object_of_its_neighbours(output: Place) -> None:
    with lease.held(*output) as own:
        write(output, own.number, None, *units_of(TWO))
    for part in (ONE, THREE):
        with parts.held(*output, part) as held:
            write(output, held.number, part, *units_of(part))
    assert {*read_committed(*output)} == {*range(UNITS)}
    assert {*read_committed(*output, part=ONE)} == {*units_of(ONE), *units_of(TWO)}
    assert {*read_committed(*output, part=Part(number=1, of=2))} == {*range(UNITS)}, "of another division"


def test_a_run_of_the_whole_output_waits_for_no_part_and_takes_over_lost_ones(output: Place) -> None:
    number = lost(output, ONE, units_of(ONE)[0])
    with parts.held(*output, TWO) as own:
        with pytest.raises(RecipeError, match=r"process \d+ on .* is writing part 2/3 here and holds it until"):
            lease.held(*output).__enter__()
        with pytest.raises(RecipeError, match="is writing part 2/3 here"):
            lease.refuse_held(*output)
        write(output, own.number, TWO, *units_of(TWO))
    with suppress(KeyboardInterrupt), lease.held(*output) as whole:
        write(output, number, ONE, units_of(ONE)[1])
        assert units_of(ONE)[1] not in done(output)
        with pytest.raises(RecipeError, match="is writing here and holds the output until"), turn(output, ONE):
            pytest.fail("two drivers would write")
        with pytest.raises(RecipeError, match="another run has just begun or ended"), parts.held(*output, ONE):
            pytest.fail("two drivers would write")
        raise KeyboardInterrupt
    with turn(output, ONE):
        write(output, whole.number, None, units_of(THREE)[0])
        assert units_of(THREE)[0] not in done(output)


@contextmanager
def turn(output: Place, part: Part) -> Iterator[lease.Lease]:
    with parts.turn(*output, part) as own:
        parts.divide(*output, part, own)
        yield own


def test_another_number_of_parts_is_refused_while_one_is_written(output: Place) -> None:
    other, number = Part(number=2, of=4), lost(output, ONE, units_of(ONE)[0])
    with parts.held(*output, TWO):
        with pytest.raises(
            RecipeError, match=r"--part: .* is written in 3 parts, of which process \d+ on .* writes 2/3"
        ):
            turn(output, other).__enter__()
        with pytest.raises(RecipeError, match="give a part K/3 instead of 2/4"), parts.held(*output, other):
            pytest.fail("two drivers would write the same units")
    with turn(output, other):
        write(output, number, ONE, units_of(ONE)[1])
    with parts.held(*output, other):
        assert done(output) == BitMap(units_of(ONE)[:1])
        assert {*lease.holders(*output)} == {other}
    lost(output, other)
    with pytest.raises(RecipeError, match="the run of 2/4 has not finished; run 1/3 again"), parts.held(*output, ONE):
        pytest.fail("what the lost driver writes late would count")


def test_of_drivers_that_begin_at_once_only_those_write_that_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of the whole output, and of two different numbers of parts."""
    monkeypatch.setattr(parts, "POLL_S", 0.01)
    output, writing, wrote, lock = (Storage(), str(tmp_path)), Counter[int](), Counter[int](), threading.Lock()

    def drive(of: int, number: int) -> None:
        while not wrote[of]:
            with suppress(RecipeError), begun(output, Part(number=number, of=of)):
                with lock:
                    writing[of] += 1
                    wrote[of] += 1
                    assert [*+writing] == [of] and writing[1] <= 1
                time.sleep(0.05)
                with lock:
                    writing[of] -= 1

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(drive, (1, 2, 3, 1, 2, 3), (1, 1, 1, 1, 2, 2)))
    assert {*wrote} == {1, 2, 3}


@contextmanager
def begun(output: Place, part: Part) -> Iterator[None]:
    """A driver of a part has its turn first. Here one of one part is a run of the whole output."""
    if part.of == 1:
        with lease.held(*output):
            yield
    else:
        with turn(output, part):
            pass
        with parts.held(*output, part):
            yield


def test_a_part_waits_for_the_plan_and_says_so(output: Place, capsys: pytest.CaptureFixture[str]) -> None:
    plan.discard(*output, 0)
    begun, over = threading.Event(), []

    def plans() -> None:
        with turn(output, TWO):
            begun.set()
            time.sleep(2)
            over.append(time.monotonic())

    thread = threading.Thread(target=plans)
    thread.start()
    assert begun.wait(30)
    assert "plans the input or looks at it" in look(*output).sentence

    def comes_after(driver: AbstractContextManager[lease.Lease]) -> bool:
        with driver:
            return bool(over)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(comes_after, (turn(output, ONE), parts.held(*output, THREE)))), "two would write"
    thread.join()
    said = capsys.readouterr().err
    assert "part 1/3 waits for the plan, which process" in said and "part 3/3 waits for" in said


def test_a_driver_whose_lease_another_division_removes_writes_nothing(
    output: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had its turn before, and took its lease after the other one had looked."""
    settle, late, other = lease.settle, list[Future[None]](), Part(number=1, of=4)
    with parts.held(*output, ONE):
        pass

    def writes() -> None:
        with parts.held(*output, ONE):
            pytest.fail("two divisions would write")

    def settled(*arguments: object) -> None:
        late.append(pool.submit(writes))
        until = time.monotonic() + 30
        while lease.holders(*output)[ONE].state != HELD and time.monotonic() < until:  # type: ignore[union-attr]
            time.sleep(0.01)
        settle(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(lease, "settle", settled)
    with ThreadPoolExecutor(1) as pool, turn(output, other):
        assert not late[0].done()
    with pytest.raises(SystemFailure, match="another run has taken its lease"):
        late[0].result()
    with parts.held(*output, other):
        assert {*lease.holders(*output)} == {other}


def test_a_planner_that_died_elsewhere_is_followed(
    output: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 0.2)
    monkeypatch.setattr(lease, "EXPIRY_S", 2.0)
    told = json.loads(Holder.this_process().renewed(2).content)
    told |= {"boot": "elsewhere", "host": "head-7", "pid": 4711, "number": 7, "part": "2/3"}
    output[0].put(join(output[1], lease.NAME), json.dumps(told).encode())
    with turn(output, ONE) as own:
        assert own.number == 8
    assert "part 1/3 waits for process 4711 on head-7 (part 2/3)" in capsys.readouterr().err


def test_parts_that_are_being_written_agree_with_their_number() -> None:
    five = [Part(number=number, of=5) for number in range(1, 6)]
    assert parts.being_written([TWO]) == "part 2/3 is being written; verify again when it has ended."
    assert parts.being_written([ONE, TWO]) == (
        "parts 1/3 and 2/3 are being written; verify again when they have ended."
    )
    assert parts.some(five) == "1/5, 2/5, 3/5 and 2 more"


def test_status_and_verify_show_all_parts(output: Place, capsys: pytest.CaptureFixture[str]) -> None:
    storage, path = output
    for part, rows in ((ONE, 2), (TWO, 1)):
        status = changed(run=Run(output=path, part=str(part), lease=1), before=0, failed_before=0, rows=rows, failed={})
        storage.put(place(path, part), content(status, ()))
    with parts.held(*output, ONE) as own:
        write(output, own.number, ONE, *units_of(ONE))
    with parts.held(*output, TWO) as own:
        write(output, own.number, TWO, units_of(TWO)[0])
        seen = look(*output)
        assert [(str(one.part), one.state) for one in seen.parts] == [
            ("1/3", "finished"),
            ("2/3", "running"),
            ("3/3", "not begun"),
        ]
        assert (seen.state, seen.status.done, seen.over) == ("running", 3, False)
        assert seen.sentence == "Of 3 parts, 1 finished, 1 running, 1 not begun. Run the others, from anywhere."
        assert [part["state"] for part in seen.report()["parts"]] == ["finished", "running", "not begun"]
        settings = storage.settings
        where = [f"storage.endpoint={settings.endpoint}", "storage.region=us-east-1"] if settings.endpoint else []
        assert cli.main(["verify", path, *where]) == 3
        said = capsys.readouterr().out
        assert "part 1/3: 2 images: 2 captioned, 0 failed" in said
        assert "part 2/3: 2 images: 1 captioned, 0 failed; 1 of 2 units balanced, 1 missing" in said
        assert "part 2/3 is being written; verify again when it has ended." in said
        assert cli.main(["status", path, *where]) == 0
        assert capsys.readouterr().out.startswith("part 1/3  finished  2 ")
    lost(output, TWO)
    with lease.held(*output):  # as verify --repair does, which tells no status
        seen = look(*output)
        assert (seen.state, seen.status.done) == ("running", 3)
        assert "holds the whole output: verify --repair, compact, or a run without --part" in seen.sentence
    assert [one.state for one in look(*output).parts] == ["finished", "taken over", "not begun"]
    storage.put(place(path), content(changed(run=Run(output=path), at="2999-01-01T00:00:00+00:00"), ()))
    assert not look(*output).parts, "a run of the whole output came after them"
    storage.put(join(path, SUCCESS), b"")
    for part in (TWO, THREE):
        with parts.held(*output, part):
            storage.put(place(path, part), content(changed(run=Run(part=str(part), lease=1)), ()))
    assert len(look(*output).parts) == 3, "they have done all of it"
    extended = changed(run=Run(output=path, run="0123456789abcdef"), at="2999-01-01T00:00:00+00:00")
    storage.put(place(path), content(extended, ()))
    assert not look(*output).parts, "a run of the whole output has done more since"
    with turn(output, Part(number=1, of=4)):
        pass
    with parts.held(*output, Part(number=1, of=4)):  # has nothing to do
        pass
    seen = look(*output)
    assert (seen.state, seen.status.done, seen.parts) == ("complete", 10_018, ())


FILES, ROWS = 7, 2  # each file is a unit


@dataclass
class Written:
    """Instead of Ray and engines: writes the rows to be done, except units in `never`. Those in `failing` fail."""

    failing: set[int] = field(default_factory=set)
    never: set[int] = field(default_factory=set)
    by: list[str] = field(default_factory=list)

    def __call__(self, output: Output, units: Plan, start: Start, work: list[Work], *_: object) -> set[object]:
        assert {part_of(one.ref.unit, output.part.of) for one in work} == {output.part} if output.part else True
        self.by.append(output.part_name)
        rows = [self.row(one.ref.unit, index) for one in work for index in range(ROWS) if index not in one.done]
        sink = CommittedRows(
            output.storage, output.path, 1, output.job.adds, output.lease_number, output.run, output.part_name
        )
        sink.write([pa.Table.from_pylist([*filter(None, rows)], schema=output.job.row_schema(units.columns))], None)
        return set()

    def row(self, unit: int, index: int) -> dict[str, object] | None:
        failed = {"stage": "read", "code": "source_missing", "detail": "", "attempts": 1 + (unit not in self.failing)}
        told = failed if unit in self.failing else {"caption": "c", "attempts": 2}
        row = {
            "id": row_id(unit, index),
            "unit": unit,
            "index": index,
            "unit_rows": ROWS if index == ROWS - 1 else None,
        }
        return None if unit in self.never else row | told


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    found = Written()
    monkeypatch.setattr(pipeline, "_finish", found)
    monkeypatch.setattr(parts, "POLL_S", 0.05)
    return found


def job(folder: Path, **more: object) -> Job:
    for number in range(FILES):
        (folder / "in").mkdir(exist_ok=True)
        if not (folder / "in" / f"{number}.parquet").exists():
            pq.write_table(pa.table({"image": [b"x"] * ROWS}), folder / "in" / f"{number}.parquet")
    return caption_job(parse(demo_recipe([folder / "in"], folder / "out") | {"model": {"source": "stub"}} | more))


def test_drivers_that_begin_at_once_plan_once_and_the_last_one_completes_the_output(
    tmp_path: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, stored, finished = [], plan.store, []
    monkeypatch.setattr(plan, "store", lambda *arguments: (planned.append(1), stored(*arguments)))
    monkeypatch.setattr(
        Output,
        "finish",
        lambda output, *arguments, of=Output.finish, **more: (finished.append(1), of(output, *arguments, **more)),
    )
    made = job(tmp_path)
    with ThreadPoolExecutor(3) as pool:
        ledgers = list(pool.map(lambda part: pipeline.run(made, part=part), (ONE, TWO, THREE)))
    assert (len(planned), len(finished), sorted(written.by)) == (1, 1, ["1of3", "2of3", "3of3"])
    assert (tmp_path / "out" / "_SUCCESS").exists()
    whole = [ledger for ledger in ledgers if not ledger.part]
    assert [(ledger.finished, ledger.balanced) for ledger in whole] == [(FILES * ROWS, True)]
    assert sum(ledger.finished for ledger in ledgers if ledger.part) < FILES * ROWS
    assert cli.main(["verify", str(tmp_path / "out")]) == 0
    again = pipeline.run(made, part=TWO)
    assert again.notes[-1] == "part 2/3 is finished, and so is the whole output" and len(finished) == 1
    assert pipeline.run(made).balanced and len(written.by) == 3, "nothing is left for a run of the whole output"


def test_a_part_says_which_others_are_left_and_a_run_of_all_units_finishes_them(
    tmp_path: Path, written: Written, capsys: pytest.CaptureFixture[str]
) -> None:
    made = job(tmp_path)
    ledger = pipeline.run(made, part=ONE, opening="the opening\n")
    assert capsys.readouterr().err.startswith("the opening\n")
    assert ledger.notes[-1] == "part 1/3 is finished; 2 others are not: 2/3 and 3/3"
    assert ledger.summary().startswith("part 1/3: ")
    written.never = {unit for unit in range(FILES) if part_of(unit, 3) == TWO}
    with pytest.raises(LedgerUnbalanced, match=r"part 2/3: .* missing"):
        pipeline.run(made, part=TWO)
    ledger = pipeline.run(made, part=THREE)
    assert ledger.notes[-1] == "part 3/3 is finished; 1 other is not: 2/3"
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    written.never = set()
    assert pipeline.run(made).finished == FILES * ROWS
    assert written.by == ["1of3", "2of3", "3of3", ""]
    other = job(tmp_path, prompt={"user": "What is it?"})
    with pytest.raises(RecipeError, match=r"belongs to another recipe: prompt\.user was"):
        pipeline.run(other, part=TWO)


def test_retried_rows_of_a_part_stand_once_when_all_parts_are_finished(tmp_path: Path, written: Written) -> None:
    made = job(tmp_path)
    written.failing = {*range(FILES)}
    pipeline.run(made, part=ONE)
    pipeline.run(made, part=TWO)
    with pytest.raises(TooManyFailures, match=r"failures\.max_fraction: 14 of 14 images failed"):
        pipeline.run(made, part=THREE)
    said = "Of 3 parts, 3 finished. The output is not complete: failures.max_fraction: 14 of 14 images failed"
    assert look(Storage(), str(tmp_path / "out")).sentence.startswith(said)
    written.failing = set()
    retry = partial(pipeline.run, made, retry=["source_missing"])
    for part in (ONE, TWO):
        with pytest.raises(TooManyFailures):
            retry(part=part)
    ledger = retry(part=THREE)
    assert not ledger.part and (ledger.finished, ledger.failed, ledger.duplicate) == (FILES * ROWS, 0, 0)
    assert (tmp_path / "out" / "_SUCCESS").exists() and cli.main(["verify", str(tmp_path / "out")]) == 0


def test_the_last_part_waits_for_who_holds_the_whole_output_and_a_failing_store_undoes_nothing(
    tmp_path: Path, written: Written, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, place, of, begun = job(tmp_path), (Storage(), str(tmp_path / "out")), divided.complete, threading.Event()

    def fails(*_: object) -> NoReturn:
        raise OSError(5, "the store fails")

    def complete(*arguments: object) -> Ledger:
        pool.submit(repairs)
        assert begun.wait(30)
        return of(*arguments)  # type: ignore[arg-type]

    def repairs() -> None:
        with lease.held(*place):  # as verify --repair or compact, which has just begun
            begun.set()
            time.sleep(0.3)

    for part in (ONE, TWO):
        pipeline.run(made, part=part)
    monkeypatch.setattr(divided, "complete", complete)
    monkeypatch.setattr(all_parts, "statuses", fails)
    with ThreadPoolExecutor(1) as pool:
        assert pipeline.run(made, part=THREE).balanced and (tmp_path / "out" / "_SUCCESS").exists()
    assert "part 3/3 waits for process" in capsys.readouterr().err


def test_what_others_have_done_of_a_part_is_in_the_sum_of_all_parts(tmp_path: Path, written: Written) -> None:
    made, out, units = job(tmp_path), str(tmp_path / "out"), Counter(part_of(unit, 3) for unit in range(FILES))
    written.never = {next(unit for unit in range(FILES) if part_of(unit, 3) == THREE)}
    with pytest.raises(LedgerUnbalanced):
        pipeline.run(made)
    stopped = changed(run=Run(part="2/3", lease=1), before=0, failed_before=0, rows=1, failed={}, ended="stopped")
    Storage().put(place(out, TWO), content(stopped, ()))
    for part in (ONE, TWO):
        pipeline.run(made, part=part)
    seen = look(Storage(), out)
    assert [one.status and one.status.done for one in seen.parts] == [units[ONE] * ROWS, units[TWO] * ROWS, None]
    assert seen.status.done == (units[ONE] + units[TWO]) * ROWS


def test_a_driver_that_ends_after_another_has_accepted_another_recipe_says_that_it_is_finished(
    tmp_path: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, other, of = job(tmp_path), job(tmp_path, prompt={"user": "What is it?"}), divided.complete

    def complete(*arguments: Any) -> Ledger:
        if arguments[2] == THREE:
            pool.submit(pipeline.run, other, part=TWO, adopt=["prompt.user"]).result()
        return of(*arguments)

    pipeline.run(made, part=ONE)
    monkeypatch.setattr(divided, "complete", complete)
    with ThreadPoolExecutor(1) as pool, pytest.raises(RecipeError) as refused:
        pipeline.run(made, part=THREE)
    assert str(refused.value).startswith("part 3/3 is finished. output.path: ")
    assert "belongs to another recipe: prompt.user was" in str(refused.value)
    assert (tmp_path / "out" / "_SUCCESS").exists(), "2/3 was the last one, and has the rows of all"


def test_a_retry_that_begins_in_the_last_turn_of_another_part_waits_for_its_end(
    tmp_path: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, finish, late, turn_over = job(tmp_path, failures={"max_fraction": 1.0}), Output.finish, [], []
    written.failing = {*range(FILES)}
    for part in (ONE, TWO, THREE):
        pipeline.run(made, part=part)
    written.failing = set()
    monkeypatch.setattr(divided, "plan_once", lambda *_: None)  # both had their first turn before

    def finished(output: Output, *arguments: Any, **more: Any) -> None:
        if not late:
            late.append(pool.submit(pipeline.run, made, part=TWO, retry=["source_missing"]))
            time.sleep(0.5)
        finish(output, *arguments, **more)
        turn_over.append(len(written.by))

    monkeypatch.setattr(Output, "finish", finished)
    with ThreadPoolExecutor(1) as pool:
        pipeline.run(made, part=ONE, retry=["source_missing"])
    assert late[0].result().duplicate == 0 and turn_over == [4, 5], "2/3 wrote after the turn of 1/3, and had one more"
    assert (tmp_path / "out" / "_SUCCESS").exists() and cli.main(["verify", str(tmp_path / "out")]) == 0


def test_a_late_list_of_sick_rows_of_another_division_is_no_part_of_a_complete_output(
    tmp_path: Path, written: Written
) -> None:
    made, half, sick = job(tmp_path), Part(number=1, of=2), (0, 1)
    half = part_of(sick[0], half.of)
    for part in (half, *(part for part in (ONE, TWO, THREE) if part != part_of(sick[0], 3))):
        pipeline.run(made, part=part)
    doubtful.keep(Storage(), str(tmp_path / "out"), 1, [sick], half.name)
    own = part_of(sick[0], 3)
    with pytest.raises(LedgerUnbalanced, match="1 missing; run the same command again"):
        pipeline.run(made, part=own)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert pipeline.run(made, part=own).finished == FILES * ROWS
    doubtful.keep(Storage(), str(tmp_path / "out"), 1, [(0, 0)], half.name)
    other = next(part for part in (ONE, TWO, THREE) if part != own)
    assert pipeline.run(made, part=other).notes[-1] == f"part {other} is finished; 1 other is not: {own}"
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert pipeline.run(made, part=own).finished == FILES * ROWS


def test_fewer_units_than_parts_leave_some_parts_without_work(tmp_path: Path, written: Written) -> None:
    made = job(tmp_path)
    shares = [Part(number=number, of=20) for number in range(1, 21)]
    empty = next(part for part in shares if not any(part_of(unit, 20) == part for unit in range(FILES)))
    assert pipeline.run(made, part=empty).finished == 0
    seen = look(Storage(), str(tmp_path / "out")).parts[empty.number - 1]
    assert seen.status and (seen.state, seen.status.done, seen.status.rates.planned) == ("finished", 0, 0)
    full = sorted({part_of(unit, 20) for unit in range(FILES)})
    ledgers = [pipeline.run(made, part=part) for part in full]
    assert ledgers[-1].balanced and not ledgers[-1].part
