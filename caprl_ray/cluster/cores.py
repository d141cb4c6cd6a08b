"""Reserve CPU cores for the engine, on a machine that does everything on its CPU.

vLLM binds its threads to cores (VLLM_CPU_OMP_THREADS_BIND), but not when its core process runs the model itself.
Without binding, image decoding sometimes runs on the engine's core and evicts its caches: on two cores each step of the
engine takes a fifth longer (benchmarks/results.md). While the engine starts, all processes use all cores.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil

# Environment variable of all processes of a run that reserves cores: the run's process id and the engine's cores.
APART = "CAPRL_RAY_ENGINE_CORES"
# The share of all cores for reading, prepare, the replica's own work and Ray; at least one core.
LEFT_TO_OTHERS = 0.25


@contextmanager
def apart() -> Iterator[None]:
    """Let an engine in a child process reserve cores, until the block ends."""
    allowed = sorted(os.sched_getaffinity(0))
    kept = len(allowed) - max(1, round(LEFT_TO_OTHERS * len(allowed)))
    if not kept:
        yield
        return
    os.environ[APART] = f"{os.getpid()}:{','.join(map(str, allowed[:kept]))}"
    try:
        yield
    finally:
        del os.environ[APART]
        _bind([os.getpid()], set(allowed))


def kept() -> set[int]:
    """The engine's cores; empty if the run reserves none."""
    return {int(core) for core in os.environ.get(APART, ":").partition(":")[2].split(",") if core}


def take(engine: Iterable[int]) -> None:
    """Bind an engine's processes to the reserved cores, and all other processes of the run to the rest."""
    own = kept()
    if not own:
        return
    run = psutil.Process(int(os.environ[APART].partition(":")[0]))
    engine = set(engine)
    others = {process.pid for process in [run, *run.children(recursive=True)]} - engine
    _bind(engine, own)
    _bind((process for process in others if not _is_on(own, process)), os.sched_getaffinity(run.pid) - own)


def give_back() -> None:
    """Let all processes of the run use all of its cores, until the next engine takes some."""
    own = kept()
    if own:
        run = psutil.Process(int(os.environ[APART].partition(":")[0]))
        every = os.sched_getaffinity(run.pid) | own
        _bind((process.pid for process in [run, *run.children(recursive=True)]), every)


def _is_on(cores: set[int], process: int) -> bool:
    """Whether the process belongs to another engine."""
    with suppress(ProcessLookupError):
        return os.sched_getaffinity(process) == cores
    return False


def _bind(processes: Iterable[int], cores: set[int]) -> None:
    for process in processes:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            for thread in os.listdir(f"/proc/{process}/task"):
                os.sched_setaffinity(int(thread), cores)
