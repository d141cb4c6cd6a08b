"""One writer at a time: a second driver is refused, a dead one is succeeded, a lost lease ends the run."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output import lease
from caprl_ray.output.lease import NAME, held
from caprl_ray.recipe import sections
from caprl_ray.storage import Storage, join
from tests.s3_server import BUCKET, Request, S3Server

Place = tuple[Storage, str]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return Storage(), str(tmp_path / "out")
    server: S3Server = request.getfixturevalue("s3")
    return Storage(sections.Storage(endpoint=server.endpoint, region="us-east-1")), f"s3://{BUCKET}/out"


def left_behind(place: Place, **changes: object) -> None:
    """A lease as a driver elsewhere left it."""
    storage, output = place
    holder = json.loads(lease.Holder.this_process().renewed())
    storage.put(
        join(output, NAME), json.dumps(holder | {"boot": "elsewhere", "host": "head-7", "pid": 4711} | changes).encode()
    )


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_a_second_driver_is_told_who_holds_it_and_until_when(place: Place) -> None:
    until = in_seconds(60)
    left_behind(place, until=until)
    with (
        pytest.raises(RecipeError, match=rf"process 4711 on head-7 .* until {until}".replace("+", r"\+")),
        held(*place),
    ):
        pytest.fail("two drivers would write")


def test_of_many_drivers_at_once_one_writes(place: Place) -> None:
    writing, most = 0, 0
    lock, start = threading.Lock(), threading.Barrier(8)

    def drive(_: int) -> bool:
        nonlocal writing, most
        start.wait()
        try:
            with held(*place):
                with lock:
                    writing += 1
                    most = max(most, writing)
                time.sleep(0.2)
                with lock:
                    writing -= 1
        except RecipeError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        wrote = list(pool.map(drive, range(8)))
    assert most == 1 and any(wrote)


def test_many_drivers_that_find_an_expired_lease_do_not_all_take_it(place: Place) -> None:
    left_behind(place, until=in_seconds(-1))
    test_of_many_drivers_at_once_one_writes(place)


def test_it_is_given_back_at_the_end_also_after_an_error(place: Place) -> None:
    storage, output = place
    with pytest.raises(AssertionError), held(*place):
        assert storage.lookup(join(output, NAME)) is None
    assert storage.lookup(join(output, NAME)) is None
    with held(*place):
        pass


def test_a_killed_driver_of_this_machine_is_succeeded_at_once(tmp_path: Path) -> None:
    script = f"""
import os, signal
from caprl_ray.output.lease import held
from caprl_ray.storage import Storage
with held(Storage(), {str(tmp_path)!r}):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert killed.returncode == -9 and (tmp_path / NAME).exists()
    with held(Storage(), str(tmp_path)):
        assert json.loads((tmp_path / NAME).read_text())["pid"] != 0
    assert not (tmp_path / NAME).exists()


def test_it_is_renewed_while_it_is_held(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 0.05)
    monkeypatch.setattr(lease, "EXPIRY_S", 2.0)
    storage, output = place
    with held(*place):
        first = json.loads(storage.read(join(output, NAME)))
        time.sleep(2.5)
        now = json.loads(storage.read(join(output, NAME)))
        assert now["until"] > first["until"] and now["run"] == first["run"]
        with pytest.raises(RecipeError), held(*place):
            pytest.fail("it would have been taken from a living driver")


def test_a_lost_answer_to_its_own_write_is_not_taken_for_another_drivers(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 0.05)
    storage = Storage(sections.Storage(endpoint=s3.endpoint, region="us-east-1"))
    asked = Counter[str]()

    def every_other(request: Request) -> str | None:
        asked[request.method] += 1
        return "lost" if request.method == "PUT" and asked["PUT"] % 2 else None

    s3.fault = every_other
    with held(storage, f"s3://{BUCKET}/out"):
        until = time.monotonic() + 30
        while s3.fired["lost"] < 3 and time.monotonic() < until:
            time.sleep(0.05)
    assert s3.fired["lost"] >= 3


def test_a_driver_whose_lease_was_taken_stops_and_leaves_the_others_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 0.05)
    storage, output = place

    def drive() -> None:
        with held(*place):
            left_behind(place, until=in_seconds(60))
            time.sleep(10)

    began = time.monotonic()
    with pytest.raises(SystemFailure, match="another run has taken its lease"):
        drive()
    assert time.monotonic() - began < 5
    assert json.loads(storage.read(join(output, NAME)))["pid"] == 4711
