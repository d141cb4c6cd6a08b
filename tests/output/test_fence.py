"""Objects that tasks of a lost run write after the next run has begun count for no reader."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyroaring import BitMap

from caprl_ray import cli, plan
from caprl_ray.caption.columns import CAPTION
from caprl_ray.errors import SystemFailure
from caprl_ray.output import fence, lease
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.committed import Committed, read_committed
from caprl_ray.output.lease import NAME, held
from caprl_ray.output.repair import repair
from caprl_ray.plan import Entry, Unit
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.rows.schema import row_id, row_schema
from caprl_ray.sources.samples import METADATA
from caprl_ray.storage import Storage, Stored, join
from tests.checkout import ROOT
from tests.s3_server import BUCKET, S3Server

Place = tuple[Storage, str]
SCHEMA = row_schema(METADATA, CAPTION)
ROWS = 6


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An output with a plan of one unit of six rows."""
    if request.param == "local":
        found: Place = Storage(), str(tmp_path / "out")
    else:
        server: S3Server = request.getfixturevalue("s3")
        found = Storage(StorageSettings(endpoint=server.endpoint, region="us-east-1")), f"s3://{BUCKET}/out"
    shard = Stored(path="0.tar", size=1, version="v")
    unit = Unit(kind="webdataset", rows=None, entries=[Entry(stored=shard, key="0.tar")], columns=METADATA)
    plan.store(*found, [unit])
    return found


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that expire after two seconds."""
    monkeypatch.setattr(lease, "RENEWAL_S", 0.2)
    monkeypatch.setattr(lease, "EXPIRY_S", 2.0)


def write(place: Place, number: int, *indices: int, failed: bool = False) -> None:
    """Rows as a write task of a run with this lease commits them."""
    rows = [
        {"id": row_id(0, n), "unit": 0, "index": n, "unit_rows": ROWS if n == ROWS - 1 else None, "attempts": 1}
        | ({"stage": "caption", "code": "caption_empty", "detail": ""} if failed else {"caption": f"of {number}"})
        for n in indices
    ]
    CommittedRows(*place, 1, CAPTION, number).write([pa.Table.from_pylist(rows, schema=SCHEMA)], None)


def lost(place: Place, *indices: int) -> int:
    """A run that commits these rows and stops early; returns the number of its lease."""
    with suppress(KeyboardInterrupt), held(*place) as own:
        write(place, own.number, *indices)
        raise KeyboardInterrupt
    return own.number


def unit(place: Place) -> Committed:
    return read_committed(*place)[0]


def captions(place: Place) -> dict[int, str]:
    """All captions that stand in the folder, as others see them; no row stands twice."""
    storage, output = place
    found: dict[int, str] = {}
    for stored in storage.objects(join(output, "data"), ".parquet"):
        with storage.open(stored) as stream:
            for row in pq.read_table(pa.BufferReader(stream.read())).to_pylist():
                assert row["index"] not in found
                found[row["index"]] = row["caption"]
    return found


def verify(place: Place, *options: str) -> int:
    storage, output = place
    endpoint = storage.settings.endpoint
    where = [f"storage.endpoint={endpoint}", "storage.region=us-east-1"] if endpoint else []
    return cli.main(["verify", *options, output, *where])


def test_a_late_write_of_a_lost_run_counts_for_no_reader(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    first = lost(place, 0, 1)
    with held(*place) as own:
        write(place, first, 2, 3)  # another node has not heard that its driver is gone
        write(place, first, 4, failed=True)
        assert unit(place).finished == BitMap([0, 1])
        assert not unit(place).failed and not read_committed(*place, ["caption_empty"])[0].retry
        write(place, own.number, 2, 3, 4, 5)
        assert repair(*place, read_committed(*place)) == 0
    assert unit(place).finished == BitMap(range(ROWS)) and not unit(place).extra
    assert verify(place) == 3
    said = capsys.readouterr().out
    assert "6 images: 6 captioned, 0 failed" in said and "duplicate" not in said
    assert "late objects of a lost run: 2, such as" in said
    assert verify(place, "--json") == 3
    assert len(json.loads(capsys.readouterr().out)["late_objects"]) == 2
    assert verify(place, "--repair") == 0
    assert captions(place) == {0: "of 1", 1: "of 1", 2: "of 2", 3: "of 2", 4: "of 2", 5: "of 2"}


def test_a_repair_keeps_no_row_of_a_late_object(place: Place) -> None:
    """Among equals it keeps the first by name."""
    first = lost(place, 0, 1)
    with held(*place) as own:
        write(place, own.number, 0, 2)
        for n in range(3, ROWS):
            write(place, first, 0, n)
        assert repair(*place, read_committed(*place)) == 1
        fence.sweep(*place)
    found = unit(place)
    assert found.finished == BitMap([0, 1, 2]) and not found.extra
    assert captions(place).keys() == {0, 1, 2}


def test_a_late_write_of_rows_that_nobody_has_written_again_is_no_lost_row(place: Place) -> None:
    """It is removed, its rows are missing, and a later run processes them."""
    first = lost(place, 0)
    with held(*place):
        write(place, first, 1, 2, 3, 4, 5)
    assert unit(place).done == BitMap([0])
    with held(*place) as own:
        fence.sweep(*place)
        write(place, own.number, 1, 2, 3, 4, 5)
    assert verify(place) == 0
    assert captions(place) == {0: "of 1"} | dict.fromkeys(range(1, ROWS), "of 3")


def test_what_stood_there_in_time_counts_after_every_later_run(place: Place) -> None:
    numbers = [lost(place, n) for n in range(4)]
    assert numbers == [1, 2, 3, 4]
    for number in numbers:
        write(place, number, 5)  # none of them was there when the fifth run began, but that of the fourth
    with held(*place) as own:
        assert own.number == 5
        write(place, 4, 4)
    found = unit(place)
    assert found.finished == BitMap([0, 1, 2, 3, 5]) and not found.extra
    storage, output = place
    assert len(storage.objects(join(output, fence.FOLDER), ".json")) <= 2


def test_a_run_that_was_overtaken_moves_no_fence(place: Place) -> None:
    """It was paused before it stored its own, and wakes when another run has stored a later one."""
    first = lost(place, 0)
    write(place, first, 1)
    with held(*place):
        write(place, first, 2)
        fence.close(*place, lease=5)
        write(place, first, 3)
        fence.close(*place, lease=2)
        assert unit(place).finished == BitMap([0, 1])


def test_runs_that_end_properly_need_no_fence(place: Place) -> None:
    for n in range(3):
        with held(*place) as own:
            write(place, own.number, 2 * n, 2 * n + 1)
    storage, output = place
    assert not storage.objects(join(output, fence.FOLDER), ".json")
    assert verify(place) == 0


@pytest.mark.usefixtures("short")
def test_objects_of_older_versions_go_on_to_count(place: Place) -> None:
    """Their names and their lease have no number."""
    storage, output = place
    write(place, 1, 0, 1)
    (numbered,) = storage.objects(join(output, "data"), ".parquet")
    storage.put(numbered.path.replace("000001-", ""), storage.read(numbered.path))
    storage.delete(numbered.path)
    older = {"run": "r", "host": "h", "boot": "b", "pid": 1, "started": 1.0, "until": "2026-01-01T00:00:00+00:00"}
    storage.put(join(output, NAME), json.dumps(older).encode())
    assert unit(place).finished == BitMap([0, 1])
    lost(place, 2)
    with held(*place) as own:
        write(place, own.number, 3, 4, 5)
    assert verify(place) == 0
    assert captions(place).keys() == set(range(ROWS))


def test_a_fence_that_is_broken_stops_every_reader(place: Place) -> None:
    storage, output = place
    storage.put(join(output, fence.FOLDER, "000002.json"), b"{}")
    with pytest.raises(SystemFailure, match=r"fence/000002\.json: is not the fence of a run"):
        read_committed(*place)


WRITER = """
import sys, threading, time
from caprl_ray.output import lease
from caprl_ray.storage import Storage
from tests.output.test_fence import write
lease.RENEWAL_S, lease.EXPIRY_S = 0.2, 2.0
place = Storage(), sys.argv[1]

def task(number):
    write(place, number, 0, 1)
    before, now = 0, time.monotonic()
    print("written", flush=True)
    while before == 0 or now - before < 1:  # until it has been paused
        time.sleep(0.01)
        before, now = now, time.monotonic()
    write(place, number, 2, 3)

with lease.held(*place) as own:
    threading.Thread(target=task, args=(own.number,)).start()
    time.sleep(30)
"""


@pytest.mark.usefixtures("short")
def test_a_paused_run_that_wakes_amid_its_writes_changes_nothing(tmp_path: Path) -> None:
    place = Storage(), str(tmp_path)
    environment, pipe = os.environ | {"PYTHONPATH": str(ROOT)}, subprocess.PIPE
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as paused:
        assert paused.stdout and paused.stderr
        assert paused.stdout.readline() == "written\n"
        paused.send_signal(signal.SIGSTOP)
        try:
            time.sleep(2.5)
            with held(*place) as own:
                assert unit(place).finished == BitMap([0, 1])
                paused.send_signal(signal.SIGCONT)
                assert paused.wait(30) == 1
                assert "another run has taken its lease" in paused.stderr.read()
                assert fence.late_objects(*place), "it wrote nothing after its pause"
                assert unit(place).finished == BitMap([0, 1])
                write(place, own.number, 2, 3, 4, 5)
                fence.sweep(*place)
        finally:
            paused.kill()
    assert captions(place) == {0: "of 1", 1: "of 1"} | dict.fromkeys(range(2, ROWS), "of 2")


def test_a_fence_of_many_objects_costs_no_request_for_each(s3: S3Server) -> None:
    place = Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1")), f"s3://{BUCKET}/out"
    s3.fill(f"out/data/{1:06d}-{n:032x}.parquet" for n in range(3000))
    s3.fill([f"out/data/{n:032x}.parquet" for n in range(10)])
    s3.requests.clear()
    fence.close(*place, lease=2)
    s3.fill([f"out/failed/{1:06d}-{0:032x}.parquet", f"out/failed/{2:06d}-{0:032x}.parquet"])
    found = fence.committed_objects(*place)
    assert {folder: len(objects) for folder, objects in found.items()} == {"data": 3010, "failed": 1}
    assert len(s3.requests) < 20


def test_a_name_that_is_not_ours_is_never_late(place: Place) -> None:
    storage, output = place
    fence.close(*place, lease=5)
    for name in ("train-00000-of-00001.parquet", "000001-notes.parquet", f"1-{'a' * 32}.parquet"):
        storage.put(join(output, "data", name), b"theirs")
    assert not fence.late_objects(*place) and fence.sweep(*place) == 0
    assert len(fence.committed_objects(*place)["data"]) == 3
