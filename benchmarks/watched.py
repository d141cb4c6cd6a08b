"""Run a command and sample the memory of its process and of all processes below it."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SAMPLED_S = 0.5
MAX_SECONDS = 3600


@dataclass
class Watched:
    """The peak of memory that a command used, in bytes: of its own process, of the largest Ray worker, of all together.

    `driver` and `worker` are the kernel's high-water marks of resident memory, in which shared pages count in full.
    `together` is the highest sampled sum of the proportional shares (PSS) of all processes. `cpu` are the seconds of
    processor time of all of them, up to the last sample of each.
    """

    began: float = 0
    ended: float = 0
    driver: int = 0
    worker: int = 0
    together: int = 0
    processes: set[psutil.Process] = field(default_factory=set)
    times: dict[psutil.Process, float] = field(default_factory=dict)

    @property
    def cpu(self) -> float:
        """Seconds of processor time of all processes."""
        return sum(self.times.values())


def watched(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Watched:
    """Run a command to its end. If it fails or takes too long, exits with an error (and the end of its log)."""
    seen = Watched(began=time.time())
    with open(log, "wb") as output:
        child = subprocess.Popen(
            command, env=os.environ | (environment or {}), stdout=output, stderr=output, start_new_session=True
        )
        try:
            while child.poll() is None:
                _sample(child.pid, seen)
                time.sleep(SAMPLED_S)
                if time.time() - seen.began > MAX_SECONDS:
                    sys.exit(f"{' '.join(command)} takes longer than {MAX_SECONDS} s.")
            seen.ended = time.time()
        finally:
            child.kill()
            child.wait()
            _end(seen.processes)
    if child.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-4000:]}")
    return seen


def _sample(root: int, seen: Watched) -> None:
    together = 0
    for process in _tree(root):
        with suppress(psutil.Error, OSError):  # the process has just ended
            peak, share = _status(process.pid, "status", "VmHWM"), _status(process.pid, "smaps_rollup", "Pss")
            together += share
            seen.processes.add(process)
            seen.times[process] = sum(process.cpu_times()[:2])
            if process.pid == root:
                seen.driver = max(seen.driver, peak)
            elif process.cmdline()[0].startswith("ray::"):
                seen.worker = max(seen.worker, peak)
    seen.together = max(seen.together, together)


def _end(processes: set[psutil.Process]) -> None:
    """Wait for the processes to end; Ray's end by themselves after some seconds. Kill those that do not."""
    for process in psutil.wait_procs(processes, timeout=10)[1]:
        with suppress(psutil.Error):
            process.kill()


def _tree(root: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    return []


def _status(process: int, file: str, name: str) -> int:
    for line in Path(f"/proc/{process}/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
