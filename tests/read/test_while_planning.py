"""Engines start while a long input is still being listed. A wrong input still ends the run."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from caprl_ray import pipeline, plan, sources
from caprl_ray.caption import job
from caprl_ray.caption.job import caption_job
from caprl_ray.caption.stage import Captioner
from caprl_ray.cluster import session
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.errors import Abandoned, RecipeError
from caprl_ray.output.folder import Output
from caprl_ray.output.holder import HELD
from caprl_ray.plan import Plan, Planning
from caprl_ray.read import while_planning
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from tests import s3_server
from tests.checkout import ROOT
from tests.expected import expected_caption
from tests.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.usefixtures("ray_cluster")
IMAGES = 40
GUARD_S = 4.0
READY = ""  # the file that a replica writes when its engine has started


class NotedCaptioner(Captioner):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        Path(READY).touch()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    render_dataset(folder, IMAGES)
    return folder


@pytest.fixture
def recipe(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose input yields its first unit at once, and the others only after an engine has started.

    Then listing takes longer than the time that an execution may go without progress.
    """
    monkeypatch.setitem(globals(), "READY", str(tmp_path / "ready"))
    monkeypatch.setattr(job, "Captioner", NotedCaptioner)
    monkeypatch.setattr(while_planning, "HEAD_START_S", 0.1)
    monkeypatch.setattr(plan.parts, "FIRST_PART_S", 0.0)
    no_progress_s = session.NO_PROGRESS_S
    monkeypatch.setattr(session, "NO_PROGRESS_S", GUARD_S - 3600)  # replicas.wait_s is 3600
    listed, begin = sources.plan_units, session.session

    def slow(*arguments: Any) -> Iterator[Any]:
        units = listed(*arguments)
        yield next(units)
        until = time.monotonic() + 60
        while not Path(READY).exists():
            assert time.monotonic() < until, "no engine was started while the input was listed"
            time.sleep(0.05)
        time.sleep(1.5 * GUARD_S)
        monkeypatch.setattr(session, "NO_PROGRESS_S", no_progress_s)
        yield from units

    def after_the_first_part(*arguments: Any, **named: Any) -> Any:
        assert list((tmp_path / "out" / "plan").glob("*.parquet")), "GPUs were asked for before anything was planned"
        return begin(*arguments, **named)

    monkeypatch.setattr(sources, "plan_units", slow)
    monkeypatch.setattr(session, "session", after_the_first_part)
    document = demo_recipe([images / "files", images / "shards"], tmp_path / "out")
    return parse(document | {"model": {"source": "stub"}, "prepare": {"max_pixels": 20_000}})


def test_engines_start_while_a_long_input_is_listed(recipe: Recipe, tmp_path: Path) -> None:
    assert pipeline.run(caption_job(recipe), limit=10).finished == 10
    balance = pipeline.run(caption_job(recipe))
    assert balance.balanced and balance.finished == IMAGES
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert len({(row["unit"], row["index"]) for row in rows}) == len(rows) == IMAGES
    files = [row for row in rows if not row["source"].endswith(".tar")]
    assert all(row["caption"] == expected_caption(Path(row["source"]).read_bytes(), recipe) for row in files)


def test_what_is_wrong_with_a_long_input_ends_the_run_in_its_own_sentence(
    recipe: Recipe, images: Path, tmp_path: Path
) -> None:
    paths = [str(images / "files"), str(tmp_path / "nothing")]
    wrong = recipe.model_copy(update={"input": recipe.input.model_copy(update={"paths": paths})})
    with pytest.raises(RecipeError, match=r"nothing was found at .*/nothing"):
        pipeline.run(caption_job(wrong))
    assert Path(READY).exists()
    assert [path.name for path in (tmp_path / "out").rglob("*.parquet")] == ["00000.parquet"]
    balance = pipeline.run(caption_job(recipe))
    assert balance.balanced and balance.finished == IMAGES


def test_the_end_of_a_run_does_not_wait_for_the_listing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, listed = threading.Event(), sources.plan_units

    def hanging(*arguments: Any) -> Iterator[Any]:
        assert answered.wait(30)
        yield from listed(*arguments)

    monkeypatch.setattr(sources, "plan_units", hanging)
    recipe = parse(demo_recipe([images / "files"], tmp_path / "out") | {"model": {"source": "stub"}})
    threading.Timer(1, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(caption_job(recipe))
    assert time.monotonic() - began < 10
    left = [thread for thread in threading.enumerate() if thread.name == "plan"]
    answered.set()
    for thread in left:
        thread.join(10)
    assert {path.name for path in (tmp_path / "out").rglob("*.*")} <= {"lease.json", ".lock-lease.json"}


def test_an_interrupted_command_ends_while_storage_does_not_answer(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_server, "HANG_S", 30.0)
    s3.fill(f"in/{number}.jpg" for number in range(3000))
    pooled = ("max-keys=1000", "continuation-token")  # the second page of the listing itself
    s3.fault = lambda request: "hang" if all(part in request.query for part in pooled) else None
    document = demo_recipe([tmp_path], tmp_path / "out") | {"input": {"paths": [f"s3://{BUCKET}/in/"]}}
    document |= {"model": {"source": "stub"}, "storage": {"endpoint": s3.endpoint, "region": "us-east-1"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "caprl_ray", "caption", str(tmp_path / "recipe.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as driver:
        until = time.monotonic() + 60
        while not s3.faulted and driver.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        began = time.monotonic()
        driver.send_signal(signal.SIGINT)
        _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "run the same command again to resume" in said
    assert s3.faulted and time.monotonic() - began < 15
    assert json.loads((tmp_path / "out" / "lease.json").read_text())["state"] != HELD


def test_a_plan_that_nobody_waits_for_any_more_is_not_stored(images: Path, tmp_path: Path) -> None:
    recipe = parse(demo_recipe([images / "files"], tmp_path / "out"))
    output = Output.open(caption_job(recipe))

    over = threading.Event()

    def make(planning: Planning) -> Plan:
        assert over.wait(10)
        return output.plan(planning)

    with while_planning.begun(make) as underway:
        assert not underway.plan.done()
    over.set()  # this answer comes too late
    assert isinstance(underway.plan.exception(timeout=10), Abandoned)
    assert not list((tmp_path / "out").rglob("*.parquet"))
