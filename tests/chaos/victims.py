"""Find the processes of a run from outside, and end each in its way."""

import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import psutil

from caprl_ray.engines.reaper import MARK
from tests.processes import gone
from tests.ray_head import Head

# The titles that Ray and vLLM give to their processes, and a line of the stub's core.
CORES = ("VLLM::EngineCore", "for line in sys.stdin")
CAPTIONER, PREPARE = "ray::MapWorker(MapBatches(Captioner))", "ray::MapBatches(Prepare)"


def strike(kind: str, head: Head, driver: subprocess.Popen[bytes], chance: random.Random) -> str | None:
    """End one process of a kind; returns which, or None if there is none. Waits until it is gone."""
    if kind == "driver killed":
        driver.kill()
        driver.wait()
        return f"driver {driver.pid}"
    if kind == "node lost":
        node = chance.choice(list(head.workers))
        head.replace(node)
        return f"node {node}"
    part, deed = kind.split()
    candidates = list({"core": cores, "replica": _replicas, "prepare": _preparing}[part](head))
    if not candidates:
        return None
    victim = chance.choice(candidates)
    with suppress(psutil.NoSuchProcess):
        victim.send_signal(signal.SIGSTOP if deed == "stopped" else signal.SIGKILL)
        assert deed == "stopped" or gone(victim.pid)
        return f"{part} {victim.pid}"
    return None


def _workers(head: Head, title: str) -> Iterator[psutil.Process]:
    for node in head.processes:
        for process in _children(psutil.Process(node.pid)):
            with suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith(title):
                    yield process


def _replicas(head: Head) -> Iterator[psutil.Process]:
    return _workers(head, CAPTIONER)


def _preparing(head: Head) -> Iterator[psutil.Process]:
    return _workers(head, PREPARE)


def cores(head: Head) -> Iterator[psutil.Process]:
    """The engine cores that are not stopped."""
    for replica in _replicas(head):
        for process in _children(replica):
            with suppress(psutil.NoSuchProcess):  # also of a zombie, beside which a core may live
                marked = MARK in process.environ() and process.status() != psutil.STATUS_STOPPED
                if marked and any(words in " ".join(process.cmdline()) for words in CORES):
                    yield process


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []
