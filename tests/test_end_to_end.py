"""The whole job with the real engine and the embedded model, as a user runs it: right captions for right images."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.engines import reaper
from caprl_ray.version import __version__
from tests.checkout import ROOT
from tests.processes import gone

IMAGES = 600  # half of them loose files, half in a shard, three in five of them square
SHORT = 20  # tokens
# Processes that Ray starts for a cluster. On one machine they only delay the engine.
CLUSTERS_ONLY = ("StatsActor", "AutoscalingCoordinator", "UsageCollection", "dashboard.py", "monitor.py")
pytestmark = pytest.mark.engine


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=540, check=False
    )


def emptied(folder: Path, seconds: float = 20) -> bool:
    """Whether no file is left below a folder within so many seconds."""
    until = time.monotonic() + seconds
    while left := [path for path in folder.rglob("*") if not path.is_dir() or path.parent.name == "tmp"]:
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return not left


@dataclass
class Seen:
    """A process: its titles, the cores that it may run on, and whether it belongs to an engine."""

    parent: int
    engine: bool = False
    titles: set[str] = field(default_factory=set)
    cores: set[frozenset[int]] = field(default_factory=set)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Seen]]:
    """The processes that start inside of the block, by their ids. At the end all must have ended."""
    seen: dict[int, Seen] = {}
    over, mark = threading.Event(), uuid.uuid4().hex
    monkeypatch.setenv("MARK", mark)

    def running() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("MARK") == mark and process.pid != os.getpid():
                    found.append(process)
        return found

    def look() -> None:
        while not over.wait(1):
            for process in running():
                with suppress(psutil.Error):
                    one = seen.setdefault(process.pid, Seen(process.ppid()))
                    one.engine |= reaper.MARK in process.environ()
                    one.titles.add(" ".join(process.cmdline()))
                    one.cores.add(frozenset(process.cpu_affinity() or ()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
    assert all(gone(process.pid) for process in running())


@pytest.fixture
def empty_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home and a folder for temporary files that are empty, apart from what vLLM keeps to start faster."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(Path.home() / ".cache" / "vllm"))
    with tempfile.TemporaryDirectory(prefix="h-", ignore_cleanup_errors=True) as folder:  # short: it holds sockets
        for name, variable in (("home", "HOME"), ("tmp", "TMPDIR")):
            (Path(folder) / name).mkdir()
            monkeypatch.setenv(variable, f"{folder}/{name}")
        yield Path(folder)


@pytest.mark.timeout(1200)
def test_captions_are_right_for_each_kind_of_input_and_a_second_run_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_home: Path
) -> None:
    captions = render_dataset(tmp_path / "images", IMAGES, seed=20)
    recipe = demo_recipe([tmp_path / "images" / "files", tmp_path / "images" / "shards"], tmp_path / "out")
    recipe["sampling"]["max_tokens"] = SHORT  # too few for scenes of three things
    recipe["quality"] = {"retries": [{"max_tokens": 4 * SHORT}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with watched(monkeypatch) as seen:
        run = command("jobs/caption.py", str(tmp_path / "recipe.yaml"))
    assert run.returncode == 0, run.stderr
    head, scenes, starting, *lines = run.stderr.splitlines()
    assert head == f"caprl-ray {__version__}: caption {tmp_path / 'recipe.yaml'}, output {tmp_path / 'out'}"
    assert "embedded describes only its own rendered scenes" in scenes
    assert starting == "caprl-ray: starting Ray on this machine ...", "a minute passes without a line"
    # An older vLLM lacks some internals, which is one line.
    other = [line for line in lines if " failed" not in line and "a replica runs without " not in line]
    assert not other, "only lines of progress"
    assert emptied(empty_home), list(empty_home.rglob("*"))
    engines = [one for one in seen.values() if one.engine]
    replicas = [seen[pid] for pid in {one.parent for one in engines} & seen.keys() if not seen[pid].engine]
    assert engines and replicas
    if len(os.sched_getaffinity(0)) > 1:
        engine, replica = (min((cores for one in part for cores in one.cores), key=len) for part in (engines, replicas))
        assert engine and replica and not engine & replica, [(one.titles, one.cores) for one in (*engines, *replicas)]
    titles = set().union(*(one.titles for one in seen.values()))
    assert not [title for title in titles if any(word in title for word in CLUSTERS_ONLY)]
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert len({row["id"] for row in rows}) == len(rows) == IMAGES
    for unit in (0, 1):
        for square in (True, False):
            part = [row for row in rows if row["unit"] == unit and (row["width"] == row["height"]) == square]
            right = sum(row["caption"] == captions[row["key"]] for row in part)
            assert len(part) > (150 if square else 90) and right >= 0.98 * len(part), (unit, square, right, len(part))
    assert {(row["model"], row["finish_reason"]) for row in rows} == {("embedded", "stop")}
    assert min(row["caption_tokens"] for row in rows) > 5 and min(row["prompt_tokens"] for row in rows) > 9
    repaired = [row for row in rows if row["repaired"]]
    assert len(repaired) > 0.1 * IMAGES and not any(row["flags"] for row in rows)
    assert all(row["repaired"] == ["truncated"] and row["decodes"] == 2 for row in repaired)
    assert all(row["decoded_tokens"] == SHORT + row["caption_tokens"] > 2 * SHORT for row in repaired)
    again = command("-m", "caprl_ray", "caption", str(tmp_path / "recipe.yaml"))
    assert again.returncode == 0 and f"{IMAGES} captioned" in again.stdout
    verify = command("-m", "caprl_ray", "verify", str(tmp_path / "out"), "--json")
    assert verify.returncode == 0 and json.loads(verify.stdout)["captioned"] == IMAGES


@pytest.mark.timeout(600)
def test_preflight_says_what_it_saw_and_leaves_nothing(tmp_path: Path) -> None:
    captions = render_dataset(tmp_path / "images", 20, seed=21)
    recipe = demo_recipe([tmp_path / "images" / "files"], tmp_path / "out")
    recipe["prompt"] = {"system": None}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = command("-m", "caprl_ray", "preflight", str(tmp_path / "recipe.yaml"), "--seconds", "3")
    assert run.returncode == 0, run.stderr
    head, _, shown = run.stdout.partition("captions:\n")
    said = dict(line.strip().split(": ", 1) for line in shown.splitlines())
    assert len(said) == 8 and sum(captions[key] == text for key, text in said.items()) >= 7
    assert head.startswith("model.source: embedded describes only its own rendered scenes")
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_load_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    render_dataset(tmp_path / "images", 2)
    recipe = demo_recipe([tmp_path / "images" / "files"], tmp_path / "out")
    recipe["model"] = {"source": str(tmp_path / "model")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = command("-m", "caprl_ray", "caption", str(tmp_path / "recipe.yaml"))
    assert run.returncode == 2 and "not a vision-language model" in run.stderr
    assert "Traceback" not in run.stderr and len(run.stderr.splitlines()) == 1


@pytest.mark.slow
def test_an_engine_that_refuses_its_arguments_is_one_sentence(tmp_path: Path) -> None:
    render_dataset(tmp_path / "images", 4)
    recipe = demo_recipe([tmp_path / "images" / "files"], tmp_path / "out")
    recipe["model"]["engine"] = {"max_model_len": 10**9}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = command("-m", "caprl_ray", "caption", str(tmp_path / "recipe.yaml"))
    assert run.returncode == 1 and "embedded did not start" in run.stderr and "max_model_len" in run.stderr
    assert "Traceback" not in run.stderr
