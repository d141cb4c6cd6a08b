"""Runs one way of a benchmark in a process of its own, and reads what it noted and wrote (captioning.py)."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from captioning import FINISHED, READY

Captions = dict[str, tuple[str, int]]

MOST_SECONDS = 3600
# Where the engine's KV cache would otherwise take half of the memory, and libraries would ask hubs that nobody needs.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "AWS_ACCESS_KEY_ID": "loopback",
    "AWS_SECRET_ACCESS_KEY": "loopback",
}


def run_alone(script: str, way: str, images: Path, out: Path, *held: str) -> tuple[float, list[float], float]:
    """Run one way of a script beside this one: when it began, when each image was captioned in order, when it had
    ended. It ends us, with the end of its log, where it fails."""
    out.mkdir()
    command = [sys.executable, str(Path(__file__).with_name(script)), way, str(images), str(out), *held]
    began = time.time()
    with open(out / "log.txt", "wb") as log:
        child = subprocess.run(
            command, env=ENVIRONMENT | os.environ, stdout=log, stderr=log, timeout=MOST_SECONDS, check=False
        )
    ended = time.time()
    if child.returncode:
        sys.exit(f"{way} failed:\n{(out / 'log.txt').read_text(errors='replace')[-4000:]}")
    return began, sorted(when for when, rows in moments(out / FINISHED) for _ in range(rows)), ended


def moments(file: Path) -> list[tuple[float, int]]:
    """What `note` wrote down."""
    return [(float(when), int(rows)) for when, rows in map(str.split, file.read_text().splitlines())]


def steady(out: Path, finished: list[float]) -> float:
    """Images/s from where a way noted that its steady state begins to its last caption."""
    ready = moments(out / READY)[0][0]
    after = [moment for moment in finished if moment > ready]
    return len(after) / (after[-1] - ready)


def captions_in(files: Iterable[Any]) -> Captions:
    """Caption and tokens of each image in what a way wrote."""
    rows = pa.concat_tables(pq.read_table(file, columns=["key", "caption", "caption_tokens"]) for file in files)
    return {row["key"]: (row["caption"], row["caption_tokens"]) for row in rows.to_pylist()}


def medians(measured: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure over those that have it."""
    names = {name: None for figures in measured for name in figures}
    return {name: median(figures[name] for figures in measured if name in figures) for name in names}
