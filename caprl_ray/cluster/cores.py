"""On a CPU: cores that only the engine computes on, where one machine does everything.

vLLM binds its threads to cores and leaves some to others (VLLM_CPU_OMP_THREADS_BIND), but not where its core runs the
model itself. Left to the scheduler, decoding lands on the engine's core now and then and empties its caches: on two
cores each step of the engine then takes a fifth longer (benchmarks/results.md). While the engine starts, all cores are
everybody's.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil

# Says in every process of a run that may do it: whose processes are the run's, and the engine's cores.
APART = "CAPRL_RAY_ENGINE_CORES"
# Of all cores, what is left to reading, prepare, the replica's own work and Ray; at least one.
LEFT_TO_OTHERS = 0.25


@contextmanager
def apart() -> Iterator[None]:
    """Let an engine that a run inside of it starts below this process have cores of its own, until the end of it."""
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
    """The engine's cores; none where a run keeps none apart."""
    return {int(core) for core in os.environ.get(APART, ":").partition(":")[2].split(",") if core}


def take(engine: Iterable[int]) -> None:
    """Bind an engine's processes to the engines' cores, if the run keeps any, and all others of it to what is left."""
    own = kept()
    if not own:
        return
    run = psutil.Process(int(os.environ[APART].partition(":")[0]))
    engine = set(engine)
    others = {process.pid for process in [run, *run.children(recursive=True)]} - engine
    _bind(engine, own)
    _bind((process for process in others if not _is_on(own, process)), os.sched_getaffinity(run.pid) - own)


def _is_on(cores: set[int], process: int) -> bool:
    """Whether it is another engine's."""
    with suppress(ProcessLookupError):
        return os.sched_getaffinity(process) == cores
    return False


def _bind(processes: Iterable[int], cores: set[int]) -> None:
    for process in processes:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            for thread in os.listdir(f"/proc/{process}/task"):
                os.sched_setaffinity(int(thread), cores)
