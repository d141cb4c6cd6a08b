"""The connection to Ray, in a process that has none."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.data import DataContext
from ray.data._internal.execution import metadata_fetcher

from caprl_ray.cluster import internals, local, session
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.score_recipe import reader_recipe
from caprl_ray.recipe.sections import Recipe

# Runs in a process of its own, because the tests of this session share one cluster.
SCRIPT = """
import ray
from caprl_ray.cluster import session
connect, asked = session._connect, []
session._connect = lambda debug: (asked.append(debug), connect(debug))
with session.lasting(False):
    assert not ray.is_initialized()
    with session.connected():
        node = ray.get_runtime_context().get_node_id()
    with session.connected():
        assert ray.get_runtime_context().get_node_id() == node
assert asked == [False] and not ray.is_initialized()
with session.connected():
    assert ray.get_runtime_context().get_node_id() != node
assert not ray.is_initialized()
"""

STOPPED = """
import sys
from contextlib import contextmanager
from pathlib import Path
import ray
from caprl_ray import pipeline
from caprl_ray.caption.job import caption_job
from caprl_ray.cluster import session
from caprl_ray.output import lease
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.recipe.load import parse
folder, there = Path(sys.argv[1]), []
render_dataset(folder, 2)
give_back = lease.Lease.release
lease.Lease.release = lambda *of: (there.append(ray.is_initialized()), give_back(*of))
def stopped(*_):
    with session.connected():
        there.append(ray.is_initialized())
        raise KeyboardInterrupt
pipeline._run = stopped
try:
    pipeline.run(caption_job(parse(demo_recipe([folder / "files"], folder / "out"))))
except KeyboardInterrupt:
    assert there == [True, False], there
else:
    sys.exit("it was not stopped")
"""


@pytest.mark.slow
def test_ray_is_started_when_it_is_needed_and_once_in_what_lasts() -> None:
    succeeds(SCRIPT)


def test_a_stopped_run_leaves_ray_before_another_driver_may_write(tmp_path: Path) -> None:
    succeeds(STOPPED, str(tmp_path))


def succeeds(script: str, *arguments: str) -> None:
    command = [sys.executable, "-c", script, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("said", "sentence"),  # the first as Ray says it
    [
        (
            "The current node timed out during startup.",
            r"it did not start on this machine \(.* startup\); run the same",
        ),
        (
            "AF_UNIX path length cannot exceed 107 bytes: /x",
            "the paths of its sockets are too long in .*; set RAY_TMPDIR",
        ),
    ],
)
def test_a_ray_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch, said: str, sentence: str) -> None:
    def start(**_: object) -> None:
        raise Exception(said)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(session.local, "start", start)
    with pytest.raises(SystemFailure, match=f"^Ray: {sentence}"):
        session._connect(debug=False)


def test_a_small_shared_memory_is_a_line_with_what_to_give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 * 2**20))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"object_store_memory": 6.4e9})
    slow = local.slow_store(tmp_path)
    assert slow and "0.067 GB free" in slow and "6.4 GB" in slow and slow.endswith("--shm-size 7g")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"object_store_memory": 64.0 * 2**20})
    assert local.slow_store(tmp_path) is None


@pytest.mark.parametrize(("given", "kind"), [(None, "Inline"), ("1", "Threaded")])
def test_a_tasks_blocks_are_handed_over_in_every_turn(
    given: str | None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private name of Ray. If it moves, blocks wait again, and only this test notices."""
    monkeypatch.setattr(metadata_fetcher, "_PREFETCH_ON_THREAD", True)
    monkeypatch.delenv(internals.METADATA_THREAD, raising=False)
    if given:
        monkeypatch.setenv(internals.METADATA_THREAD, given)
    session.configure(DataContext.get_current().copy(), debug=True)
    assert type(metadata_fetcher.make_metadata_fetcher()).__name__ == f"{kind}MetadataFetcher"


def test_two_pools_that_do_not_fit_on_this_machine_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 2.0})

    def pools(captioners: float, readers: float, least: int = 1) -> dict[str, Recipe]:
        section = {"questions": ["-"], "model": {"source": "stub"}, "replicas": {"gpus": readers, "min": least}}
        document = {"input": {"paths": ["-"]}, "output": {"path": "-"}, "replicas": {"gpus": captioners}}
        recipe = parse(document | {"score": section})
        return {"": recipe, "score": reader_recipe(recipe)}

    session.check_pools(pools(1, 1), grows=False)
    session.check_pools(pools(1.0, 0.5, 2), grows=False)
    session.check_pools(pools(1, 1, 9), grows=True)
    with pytest.raises(RecipeError, match=r"^score\.replicas\.gpus: 1 for each of 3 replicas, but"):
        session.check_pools(pools(1, 1, 3), grows=False)
    with pytest.raises(RecipeError, match=r"^replicas and score\.replicas: they need 1 \+ 2 GPUs"):
        session.check_pools(pools(1, 1, 2), grows=False)
    captioners, readers = pools(1, 1, 2).values()
    with pytest.raises(RecipeError, match=r"such as with replicas\.gpus=0\.5 and curate\.replicas\.gpus=0\.5\.$"):
        session.check_pools({"": captioners, "curate": readers}, grows=False)
