"""Run one variant ('way') of a benchmark in its own process, and read the notes and captions that it wrote.

captioning.py describes these files.
"""

import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from captioning import FINISHED, READY

Captions = dict[str, tuple[str, int]]

MAX_SECONDS = 3600
LOG = ".log.txt"  # hidden: an output may hold no other files of others
# Without these, the KV cache takes half of the memory, and libraries send requests to model hubs.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "AWS_ACCESS_KEY_ID": "loopback",
    "AWS_SECRET_ACCESS_KEY": "loopback",
}


def run_alone(
    script: str, way: str, images: Path, out: Path, *held: str, seconds: float | None = None
) -> tuple[float, list[float], float]:
    """Run one way of a script in this folder. If given, `seconds` is its time: it is then ended with all its processes.

    Returns, in wall-clock seconds: its start, the sorted times at which its images were captioned, and its end. If it
    fails, exits with the end of its log.
    """
    out.mkdir()
    command = [sys.executable, str(Path(__file__).with_name(script)), way, str(images), str(out), *held]
    began = time.time()
    with open(out / LOG, "wb") as log:
        child = subprocess.Popen(command, env=ENVIRONMENT | os.environ, stdout=log, stderr=log)
        try:
            failed = child.wait(timeout=seconds or MAX_SECONDS)
        except subprocess.TimeoutExpired:
            if seconds is None:
                raise
            failed = 0
        finally:
            _end(child)
    ended = time.time()
    if failed:
        sys.exit(f"{way} failed:\n{(out / LOG).read_text(errors='replace')[-4000:]}")
    return began, sorted(when for when, rows in moments(out / FINISHED) for _ in range(rows)), ended


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the remaining processes of a way: its own and all children."""
    processes: list[psutil.Process] = []
    with suppress(psutil.Error):
        processes = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    child.wait()
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


def moments(file: Path) -> list[tuple[float, int]]:
    """Read what `note` wrote: pairs of wall-clock seconds and rows. None if there is no such file."""
    if not file.exists():
        return []
    return [(float(when), int(rows)) for when, rows in map(str.split, file.read_text().splitlines())]


def steady(out: Path, finished: list[float], replicas: int = 1) -> float:
    """Images/s from the start of the steady state to the last caption. It starts when `replicas` replicas have noted it
    in `out`. NaN if there was none."""
    ready = next((when for when, _ in moments(out / READY)[replicas - 1 :]), math.inf)
    after = [moment for moment in finished if moment > ready]
    return len(after) / (after[-1] - ready) if after else math.nan


def captions_in(files: Iterable[Any]) -> Captions:
    """Read the parquet files that a way wrote. Returns the caption and its tokens by key."""
    rows = pa.concat_tables(pq.read_table(file, columns=["key", "caption", "caption_tokens"]) for file in files)
    return {row["key"]: (row["caption"], row["caption_tokens"]) for row in rows.to_pylist()}


def medians(measured: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure, over the rounds that have it."""
    names = {name: None for figures in measured for name in figures}
    return {name: median(figures[name] for figures in measured if name in figures) for name in names}
