"""Processes under a reaper end with the process that started them, however it ends and whatever their title."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from caprl_ray.engines.reaper import MARK, Reaper

# A core that gives itself a title and starts a worker in a session of its own; both would live for minutes.
CORE = """
import subprocess, sys, time, setproctitle
setproctitle.setproctitle("VLLM::" + "x" * 300)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
time.sleep(100)
"""
PARENT = f"""
import subprocess, sys, time
from caprl_ray.engines.reaper import Reaper
reaper = Reaper()
with reaper.marking():
    subprocess.Popen([sys.executable, "-c", {CORE!r}])
deadline = time.monotonic() + 20
while len(reaper.processes()) < 2 and time.monotonic() < deadline:
    time.sleep(0.02)
print(*reaper.processes(), reaper.folder, flush=True)
time.sleep(100)
"""


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def all_gone(processes: list[int]) -> bool:
    deadline = time.monotonic() + 20
    while not all(map(gone, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return all(map(gone, processes))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("children_first", [True, False], ids=["after its children", "alone"])
def test_nothing_outlives_a_process_that_is_killed(fault: signal.Signals, children_first: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        *numbers, folder = parent.stdout.readline().split()
        processes = list(map(int, numbers))
        assert Path(folder).is_dir() and len(processes) == 2 and not any(map(gone, processes))
        for child in psutil.Process(parent.pid).children() if children_first else ():
            child.kill()  # as Ray does with a worker's, and not with theirs
        parent.send_signal(fault)
        assert all_gone(processes)
    deadline = time.monotonic() + 20
    while Path(folder).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(folder).exists()


@pytest.mark.timeout(60)
def test_killing_ends_a_stopped_process_and_nothing_else() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(300)"]
    reaper, other = Reaper(), Reaper()
    with reaper.marking():
        core = subprocess.Popen(sleep)
    with other.marking():
        neighbour = subprocess.Popen(sleep)
    assert MARK not in os.environ
    while core.pid not in reaper.processes():
        time.sleep(0.02)
    core.send_signal(signal.SIGSTOP)
    reaper.kill()
    assert gone(core.pid) and not gone(neighbour.pid) and neighbour.poll() is None
    other.kill()
    assert gone(neighbour.pid)
    assert (core.wait(), neighbour.wait()) == (-signal.SIGKILL, -signal.SIGKILL)


@pytest.mark.timeout(60)
def test_the_time_of_processes_that_compute_grows_and_that_of_a_stopped_one_does_not() -> None:
    reaper = Reaper()
    with reaper.marking():
        core = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        began = time.monotonic()
        while reaper.cpu_seconds() < 1 and time.monotonic() - began < 50:
            time.sleep(0.1)
        core.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        stopped = reaper.cpu_seconds()
        assert stopped >= 1
        time.sleep(1)
        assert reaper.cpu_seconds() == stopped
    finally:
        reaper.kill()
        core.wait()
