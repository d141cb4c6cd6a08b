"""Sample how busy the GPU and the CPU cores are while a way runs."""

import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

SAMPLED_S = 1.0
CORE = "EngineCore"  # in the title of vLLM's core process

Sample = tuple[float, float | None, dict[int, tuple[bool, float]]]


class Load:
    """Samples this machine's first GPU, and the CPU seconds of all processes below this one, while the block runs."""

    def __init__(self, out: Path) -> None:
        self._samples: list[Sample] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"load of {out.name}", daemon=True)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def between(self, begin: float, end: float) -> dict[str, float]:
        """The figures between two wall-clock times, as far as there are samples."""
        inside = [sample for sample in self._samples if begin <= sample[0] <= end]
        if len(inside) < 2:
            return {}
        (began, _, before), (ended, _, after) = inside[0], inside[-1]
        spent = {pid: (core, seconds - before.get(pid, (core, 0.0))[1]) for pid, (core, seconds) in after.items()}
        figures = {
            "core_cores": sum(seconds for core, seconds in spent.values() if core) / (ended - began),
            "cores": sum(seconds for _, seconds in spent.values()) / (ended - began),
        }
        busy = [busy for _, busy, _ in inside if busy is not None]
        return figures | ({"gpu_busy": sum(busy) / len(busy)} if busy else {})

    def _run(self) -> None:
        while not self._ended.wait(SAMPLED_S):
            self._samples.append((time.time(), _gpu_busy(), _cpu_seconds()))


def _gpu_busy() -> float | None:
    command = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout
        return float(said) / 100
    return None


def _cpu_seconds() -> dict[int, tuple[bool, float]]:
    """Of each process below this one: whether it is an engine core, and its CPU seconds."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            used = process.cpu_times()
            found[process.pid] = CORE in " ".join(process.cmdline()), used.user + used.system
    return found
