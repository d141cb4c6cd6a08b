"""The engine's cores are reserved while it runs and free again afterwards. A tune counts all of them."""

import json
import os
import subprocess
import sys

import pytest

from tests.checkout import ROOT

SCRIPT = """
import json, os, subprocess, sys
from caprl_ray.cluster import cores
from caprl_ray.tune.replica import machine


def sleeper():
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

os.sched_setaffinity(0, json.loads(sys.argv[1]))
with cores.apart():
    engine, other = sleeper(), sleeper()
    cores.take([engine.pid])
    second, later = sleeper(), sleeper()
    cores.take([second.pid])
    during = [sorted(os.sched_getaffinity(pid)) for pid in (engine.pid, second.pid, other.pid, later.pid, 0)]
    machines = [machine()["machine.cores"]]
    cores.give_back()
    machines.append(machine()["machine.cores"])
    given = [sorted(os.sched_getaffinity(pid)) for pid in (engine.pid, other.pid, later.pid, 0)]
for process in engine, second, other, later:
    process.communicate(b"\\n")
print(json.dumps([during, given, machines, sorted(os.sched_getaffinity(0)), cores.kept() == set()]))
"""


def bound(allowed: list[int]) -> object:
    command = [sys.executable, "-c", SCRIPT, json.dumps(allowed)]
    return json.loads(subprocess.check_output(command, cwd=ROOT, timeout=60))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two cores")
def test_engines_take_their_cores_from_all_others_of_the_run_and_give_them_back() -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    both = [first, second]
    assert bound(both) == [[[first]] * 2 + [[second]] * 3, [both] * 4, [2, 2], both, True]


def test_one_core_is_shared() -> None:
    only = min(os.sched_getaffinity(0))
    assert bound([only]) == [[[only]] * 5, [[only]] * 4, [1, 1], [only], True]
