"""One writer at a time: a second driver is refused, a dead one is succeeded, a lost lease ends the run.

A lease depends on no time of day, survives a pause if no other driver took it, and is given back only by its holder.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output import fence, holder, lease
from caprl_ray.output.holder import Holder
from caprl_ray.output.lease import NAME, held
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.storage import SourceChanged, Storage, Stored, join, s3_client
from tests.checkout import ROOT
from tests.s3_server import BUCKET, Request, S3Server

Place = tuple[Storage, str]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return Storage(), str(tmp_path / "out")
    server: S3Server = request.getfixturevalue("s3")
    return Storage(StorageSettings(endpoint=server.endpoint, region="us-east-1")), f"s3://{BUCKET}/out"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewed five times a second, and expired after two seconds."""
    monkeypatch.setattr(lease, "RENEWAL_S", 0.2)
    monkeypatch.setattr(lease, "EXPIRY_S", 2.0)


def left_behind(place: Place, **changes: object) -> None:
    """A lease as a driver elsewhere left it."""
    storage, output = place
    content = json.loads(Holder.this_process().renewed(90).content)
    content |= {"boot": "elsewhere", "host": "head-7", "pid": 4711, "number": 7}
    storage.put(join(output, NAME), json.dumps(content | changes).encode())


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def stored(place: Place) -> dict[str, object]:
    storage, output = place
    for _ in range(20):
        with suppress(SourceChanged):  # renewed between the lookup and the read
            found = json.loads(storage.read(join(output, NAME)))
            assert isinstance(found, dict)
            return found
    raise AssertionError("never the same for two requests")


def wait(condition: Callable[[], object], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.02)


def refused(place: Place) -> str:
    """The sentence that a second driver gets."""
    with pytest.raises(RecipeError) as error, held(*place):
        pytest.fail("two drivers would write")
    return str(error.value)


def test_a_second_driver_is_told_who_holds_it_and_until_when(place: Place) -> None:
    until = in_seconds(60)
    left_behind(place, until=until)
    assert f"process 4711 on head-7 is writing here and holds the output until {until}" in refused(place)


def test_of_many_drivers_at_once_one_writes(place: Place) -> None:
    writing, most = 0, 0
    lock, start = threading.Lock(), threading.Barrier(8)
    said: list[str] = []

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
        except RecipeError as error:
            said.append(str(error))
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        wrote = list(pool.map(drive, range(8)))
    assert most == 1 and any(wrote)
    assert all("is writing here" in sentence or "has just begun or ended" in sentence for sentence in said)


@pytest.mark.usefixtures("short")
def test_many_drivers_that_find_an_expired_lease_do_not_all_take_it(place: Place) -> None:
    left_behind(place, until=in_seconds(-1))
    test_of_many_drivers_at_once_one_writes(place)


def test_a_driver_that_loses_the_race_of_two_first_runs_is_told_of_the_other(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look and its write another driver begins."""
    highest = fence.highest

    def slow(storage: Storage, output: str, part: str) -> int:
        left_behind(place, until=in_seconds(60))
        return highest(storage, output, part)

    monkeypatch.setattr(fence, "highest", slow)
    assert "process 4711 on head-7 is writing here" in refused(place)


def test_it_is_given_back_at_the_end_also_after_an_error(place: Place) -> None:
    with pytest.raises(AssertionError), held(*place):
        raise AssertionError
    assert stored(place)["state"] == "stopped"
    with held(*place):
        assert stored(place)["state"] == "held"
    assert stored(place)["state"] == "finished"


def test_numbers_only_grow(place: Place) -> None:
    storage, output = place
    seen = []
    for failing in (False, True, False):
        try:
            with held(*place) as own:
                seen.append(own.number)
                assert not failing
        except AssertionError:
            pass
    assert seen == [1, 2, 3]
    storage.delete(join(output, NAME))  # as a user who tidies up
    storage.put(join(output, "data", f"{8:06d}-{'a' * 32}.parquet"), b"")
    storage.put(join(output, "data", f"{'b' * 32}.parquet"), b"")  # of an older version
    with held(*place) as own:
        assert own.number == 9


KILLED = """
import os, signal, sys
from caprl_ray.output.lease import held
from caprl_ray.storage import Storage
with held(Storage(), sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_driver_of_this_machine_is_succeeded_at_once(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    killed = subprocess.run(command, env=environment, check=False, timeout=60)
    assert killed.returncode == -9 and stored((Storage(), str(tmp_path)))["state"] == "held"
    began = time.monotonic()
    with held(Storage(), str(tmp_path)) as own:
        assert stored((Storage(), str(tmp_path)))["pid"] == os.getpid() and own.number == 2
    assert time.monotonic() - began < 30


def test_a_lease_that_is_given_back_while_it_is_taken_is_taken(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last request of a run that ended may arrive when the next run has looked already."""
    with held(*place):
        pass
    replace, late = Storage.replace, iter([True])

    def after_a_late_one(storage: Storage, before: Stored, content: bytes) -> Stored:
        if next(late, False):
            replace(storage, before, json.dumps(stored(place) | {"renewals": 99}).encode())
        return replace(storage, before, content)

    monkeypatch.setattr(Storage, "replace", after_a_late_one)
    with held(*place) as own:
        assert own.number == 2 and not next(late, False)


@pytest.mark.usefixtures("short")
def test_it_is_renewed_while_it_is_held(place: Place) -> None:
    with held(*place):
        first = stored(place)
        time.sleep(2.5)
        now = stored(place)
        assert str(now["until"]) > str(first["until"]) and now["run"] == first["run"]
        assert f"process {os.getpid()}" in refused(place)


def test_a_lost_answer_to_its_own_write_is_not_taken_for_another_drivers(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 0.05)
    storage = Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1"))
    asked = Counter[str]()

    def every_other(request: Request) -> str | None:
        asked[request.method] += 1
        return "lost" if request.method == "PUT" and asked["PUT"] % 2 else None

    s3.fault = every_other
    with held(storage, f"s3://{BUCKET}/out"):
        wait(lambda: s3.fired["lost"] >= 3)


@pytest.mark.usefixtures("short")
def test_a_driver_whose_lease_was_taken_stops_and_leaves_the_others_alone(place: Place) -> None:
    def drive() -> None:
        with held(*place):
            left_behind(place, until=in_seconds(60))
            time.sleep(20)

    began = time.monotonic()
    with pytest.raises(SystemFailure, match="another run has taken its lease"):
        drive()
    assert time.monotonic() - began < 10
    assert (stored(place)["pid"], stored(place)["state"]) == (4711, "held")


def test_a_run_that_ends_after_its_lease_was_taken_leaves_the_others_alone(place: Place) -> None:
    """The renewal has not noticed it yet, as after the resume of a suspended machine."""
    with held(*place):
        left_behind(place, until=in_seconds(60))
    assert (stored(place)["pid"], stored(place)["state"]) == (4711, "held")


@pytest.mark.parametrize("fault", [RuntimeError("can't start new thread"), MemoryError(), ValueError("of botocore")])
@pytest.mark.usefixtures("short")
def test_whatever_ends_the_renewal_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    place = Storage(), str(tmp_path)

    def broken(*_: object) -> None:
        raise fault

    def drive() -> None:
        with held(*place):
            monkeypatch.setattr(Storage, "replace", broken)
            time.sleep(20)

    began = time.monotonic()
    with pytest.raises(SystemFailure, match=f"no longer held by this run .*{type(fault).__name__}"):
        drive()
    assert time.monotonic() - began < 10


def test_a_thread_that_cannot_start_begins_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if thread.name == "lease":
            raise RuntimeError("can't start new thread")
        start(thread)

    place = Storage(), str(tmp_path)
    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError), held(*place):
        pytest.fail("nobody would renew the lease")
    assert stored(place)["state"] == "stopped"


@contextmanager
def clock_set(seconds: float) -> Iterator[None]:
    """Set the time of day, as NTP does after a boot; psutil computes the start of a process from it."""
    with pytest.MonkeyPatch.context() as patch:
        real, created = holder.now, psutil.Process.create_time
        patch.setattr(holder, "now", lambda: real() + timedelta(seconds=seconds))
        patch.setattr(psutil.Process, "create_time", lambda process: created(process) + seconds)
        yield


@pytest.mark.parametrize("seconds", [1, 3600, -3600])
@pytest.mark.usefixtures("short")
def test_a_clock_that_is_set_takes_the_lease_from_nobody(place: Place, seconds: float) -> None:
    """The second driver sees another time than the holder, and then the holder's clock is set too."""
    with held(*place) as own:
        with clock_set(seconds):
            assert "is writing here" in refused(place)
            time.sleep(0.5)
            assert "is writing here" in refused(place)
        assert "is writing here" in refused(place)
        own.check()


@pytest.mark.usefixtures("short")
def test_a_lost_driver_is_succeeded_whatever_its_clock_said(place: Place) -> None:
    for until in (in_seconds(-3600), in_seconds(3600)):
        left_behind(place, until=until)
        began = time.monotonic()
        with held(*place) as own:
            assert own.number == 8
        assert time.monotonic() - began >= lease.EXPIRY_S, "it was not watched"


@pytest.mark.usefixtures("short")
def test_a_lease_that_is_not_understood_is_watched_too(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """That of an older version, or of a newer one."""
    storage, output = place
    older = {"run": "r", "host": "h", "boot": "b", "pid": 1, "started": 1.0, "until": in_seconds(60)}
    storage.put(join(output, NAME), json.dumps(older).encode())
    renewing = threading.Event()

    def renew() -> None:
        for n in range(100):
            if not renewing.wait(0.1):
                storage.put(join(output, NAME), json.dumps(older | {"until": in_seconds(60 + n)}).encode())

    thread = threading.Thread(target=renew)
    thread.start()
    assert "another run is writing here and renews its lease" in refused(place)
    renewing.set()
    thread.join()
    with held(*place):
        pass
    assert f"{join(output, NAME)}: the lease of another run may have ended" in capsys.readouterr().err


def test_a_process_is_known_by_its_start_in_ticks_and_its_boot(tmp_path: Path) -> None:
    odd = tmp_path / "a) S 1 (b"  # the kernel shows the name before the start
    shutil.copy("/bin/sleep", odd)
    with subprocess.Popen([odd, "60"]) as sleeping:
        assert 0 <= holder.start_ticks(sleeping.pid) - holder.start_ticks(os.getpid()) < 100 * 3600 * 24
        sleeping.kill()
    ours = Holder.this_process()
    assert not ours.ended
    another = replace(ours, started=holder.start_ticks(os.getpid()) - 1)
    assert another.ended, "the number belongs to another process now"
    assert not replace(another, boot="elsewhere").ended
    assert replace(ours, pid=sleeping.pid).ended
    assert not replace(ours, boot=None, started=None).ended, "a system that does not tell"


@pytest.mark.usefixtures("short")
def test_a_holder_that_was_suspended_goes_on_if_nobody_took_its_lease(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 4.0)  # half of it is the time of the attempt after the suspend
    with held(*place) as own:
        real = lease.clock
        monkeypatch.setattr(lease, "clock", lambda: real() + 3600)  # CLOCK_BOOTTIME counts a suspend
        time.sleep(1)
        own.check()
        assert "is writing here" in refused(place)
    assert stored(place)["state"] == "finished"


def test_a_holder_that_was_suspended_writes_nothing_if_its_lease_was_taken(place: Place) -> None:
    """`check` looks at the lease itself: a virtual machine's pause is seen by none of its clocks."""

    def drive() -> None:
        with held(*place) as own:
            left_behind(place, until=in_seconds(60))
            own.check()
            pytest.fail("it would have written")

    with pytest.raises(SystemFailure, match="another run has taken its lease"):
        drive()


PAUSED = """
import sys, time
from caprl_ray.output import lease
from caprl_ray.storage import Storage
lease.RENEWAL_S, lease.EXPIRY_S = 0.2, 2.0
with lease.held(Storage(), sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.usefixtures("short")
def test_a_paused_driver_stops_if_its_lease_was_taken_and_else_goes_on(tmp_path: Path, taken: bool) -> None:
    environment, pipe = os.environ | {"PYTHONPATH": str(ROOT)}, subprocess.PIPE
    command = [sys.executable, "-c", PAUSED, str(tmp_path)]
    place = Storage(), str(tmp_path)
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as paused:
        assert paused.stdin and paused.stdout and paused.stderr
        assert paused.stdout.readline() == "held\n"
        paused.send_signal(signal.SIGSTOP)
        try:
            time.sleep(3.5)
            before = stored(place)
            if taken:
                with held(*place) as own:
                    assert own.number == 2
        finally:
            paused.send_signal(signal.SIGCONT)
        if taken:
            assert paused.wait(30) == 1
            assert "SystemFailure: output.path" in (said := paused.stderr.read())
            assert "another run has taken its lease" in said
        else:
            wait(lambda: stored(place)["renewals"] != before["renewals"])
            assert f"process {paused.pid}" in refused(place)
            paused.stdin.close()
            assert paused.wait(30) == 0
    assert stored(place)["state"] == "finished"


def test_a_store_that_refuses_everything_for_a_minute_costs_no_lease() -> None:
    """Not even if it begins just before a renewal, and the next attempt comes as late as one can after its end."""
    assert lease.EXPIRY_S - 2 * lease.RENEWAL_S >= 60 + 2 ** (s3_client.ATTEMPTS - 2)
