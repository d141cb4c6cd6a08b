"""Prepare workers die. The run continues, and only the rows that kill a worker alone fail."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from caprl_ray import pipeline
from caprl_ray.caption import job
from caprl_ray.caption.job import caption_job
from caprl_ray.cluster.attempts import current_task
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output.fingerprint import fingerprint
from caprl_ray.prepare.stage import Prepare
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from tests.checkout import ROOT
from tests.expected import expected_caption
from tests.test_pipeline import rows_of

pytestmark = pytest.mark.usefixtures("ray_cluster")
IMAGES = 200
NOTES = ""


class PoisonedPrepare(Prepare):
    """Prepare whose decoder obeys words in an image. Notes each batch's process and attempt."""

    def __call__(self, table: pa.Table) -> pa.Table:
        sys.path.insert(0, str(ROOT))
        from tests import poison

        poison.note(NOTES, f"attempt {os.getpid()} {self._attempt()} {signal.getsignal(signal.SIGALRM).name}")
        self._decode = partial(poison.prepare, **self._decode.keywords | {"notes": NOTES})
        return super().__call__(table)


class DyingPrepare(Prepare):
    """Prepare whose worker dies each time of an external cause."""

    most_attempts = 3

    def __call__(self, table: pa.Table) -> pa.Table:
        done = super().__call__(table)
        os.kill(os.getpid(), signal.SIGKILL)
        return done


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    render_dataset(folder, 2 * IMAGES)
    return folder / "files"


@pytest.fixture
def images(scenes: Path, tmp_path: Path) -> Path:
    return shutil.copytree(scenes, tmp_path / "images")


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "notes"
    path.touch()
    monkeypatch.setattr(sys.modules[__name__], "NOTES", str(path))
    monkeypatch.setattr(job, "Prepare", PoisonedPrepare)
    return path


def stub_recipe(images: Path, out: Path, timeout_s: float) -> Recipe:
    return parse(
        demo_recipe([images], out)
        | {"model": {"source": "stub"}, "prepare": {"max_pixels": 20_000, "timeout_s": timeout_s}}
    )


def poisoned(images: Path, deeds: dict[int, bytes]) -> dict[str, bytes]:
    """Appends words to images by their place; returns the words by key."""
    paths = sorted(images.iterdir())
    for place, deed in deeds.items():
        paths[place].write_bytes(paths[place].read_bytes() + deed)
    return {paths[place].name: deed for place, deed in deeds.items()}


def lines(notes: Path, word: str) -> list[list[str]]:
    return [line.split() for line in notes.read_text().splitlines() if line.startswith(word)]


def assert_captioned(out: Path, recipe: Recipe, rows: int) -> None:
    done = rows_of(out)
    assert len(done) == len({row["key"] for row in done}) == rows
    assert all(row["caption"] == expected_caption(Path(row["source"]).read_bytes(), recipe) for row in done)


def test_rows_that_end_their_worker_are_failed_and_their_neighbours_captioned(
    images: Path, notes: Path, tmp_path: Path
) -> None:
    poisoned(images, {20: b"<segfault>", 21: b"<sleep with the lock>", 150: b"<exit>", 199: b"<sleep>"})
    names = [path.name for path in sorted(images.iterdir())]
    recipe = stub_recipe(images, tmp_path / "out", timeout_s=2)
    balance = pipeline.run(caption_job(recipe))
    assert balance.balanced and (balance.finished, balance.failed) == (IMAGES - 4, 4)
    failed = {row["key"]: (row["stage"], row["code"], row["detail"]) for row in rows_of(tmp_path / "out", "failed")}
    assert failed == {
        names[20]: ("prepare", "decode_crash", "SIGSEGV"),
        names[21]: ("prepare", "decode_timeout", "more than 2 s"),
        names[150]: ("prepare", "decode_crash", "exit code 3"),
        names[199]: ("prepare", "decode_timeout", "more than 2 s"),
    }
    assert_captioned(tmp_path / "out", recipe, IMAGES - 4)
    attempts = lines(notes, "attempt")
    workers = {pid for _, pid, attempt, _ in attempts}
    deaths = [line for line in lines(notes, "<") if line[-1] in workers]
    assert 1 <= len(deaths) <= 4  # one for each task with one of the four
    assert len(lines(notes, "<")) == len(deaths) + 2 * 4
    assert {int(attempt) for _, _, attempt, _ in attempts} == {0, 1}
    assert {action for *_, action in attempts} == {"SIG_DFL"}


def test_a_worker_that_is_killed_once_costs_no_row(images: Path, notes: Path, tmp_path: Path) -> None:
    poisoned(images, {100: b"<wait>"})
    killed: list[int] = []

    def kill_once() -> None:
        end = time.monotonic() + 120
        while not killed and time.monotonic() < end:
            for *_, pid in lines(notes, "<wait>"):
                os.kill(int(pid), signal.SIGKILL)
                killed.append(int(pid))
                break
            time.sleep(0.05)

    killer = threading.Thread(target=kill_once)
    killer.start()
    recipe = stub_recipe(images, tmp_path / "out", timeout_s=30)
    balance = pipeline.run(caption_job(recipe))
    killer.join()
    assert balance.balanced and (balance.finished, balance.failed) == (IMAGES, 0)
    assert_captioned(tmp_path / "out", recipe, IMAGES)
    assert len(killed) == 1
    assert len(lines(notes, "<wait>")) == 2
    assert str(killed[0]) not in {pid for _, pid, attempt, _ in lines(notes, "attempt") if attempt != "0"}
    assert {attempt for _, _, attempt, _ in lines(notes, "attempt")} == {"0", "1"}


@pytest.mark.slow
def test_a_run_whose_workers_end_again_and_again_does_not_go_on_for_ever(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "Prepare", DyingPrepare)
    with pytest.raises(SystemFailure, match="ended 3 times"):
        pipeline.run(caption_job(stub_recipe(images, tmp_path / "out", timeout_s=30)))


def test_another_limit_resumes_the_same_dataset(tmp_path: Path) -> None:
    recipes = [stub_recipe(tmp_path, tmp_path / "out", timeout_s=limit) for limit in (2, 30)]
    first, second = ((recipe.prepare.timeout_s, fingerprint(caption_job(recipe))) for recipe in recipes)
    assert first[0] != second[0] and first[1] == second[1]


@pytest.mark.parametrize("limit", [0, 1e-9, -1, 3601, float("inf"), float("nan"), True, "30"])
def test_a_limit_that_the_kernels_timer_would_take_for_none_is_refused(limit: object, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^prepare\.timeout_s: "):
        parse(demo_recipe([tmp_path], tmp_path) | {"prepare": {"timeout_s": limit}})


def test_outside_of_a_task_there_is_no_attempt_and_ray_is_not_started() -> None:
    assert current_task() is None  # the driver of the tests' cluster
    code = (
        "import ray; from caprl_ray.cluster.attempts import current_task; print(current_task(), ray.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60, check=True, cwd=ROOT)
    assert done.stdout.split() == [b"None", b"False"]
