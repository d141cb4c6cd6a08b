"""Another job than captioning has plan, resume, ledger and failed rows from the same code."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.actor import ActorHandle
from ray.data import Dataset

from caprl_ray import cli, pipeline, plan
from caprl_ray.cluster import optional
from caprl_ray.commands.status import look
from caprl_ray.errors import RecipeError, RowFailure
from caprl_ray.job import Job
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.rows.schema import META_PREFIX, column
from caprl_ray.rows.stage import Changes, run_stage
from caprl_ray.storage import Storage
from caprl_ray.watch.counted import counted
from caprl_ray.watch.words import facts
from tests.checkout import ROOT

ROWS, OBJECT_ROWS = 600, 40


# The whole job: it counts the letters of the column `text`, and fails rows without text.
class CountLetters:
    name, needs, drops = "count", (META_PREFIX + "text",), ()

    def __init__(self, counter: ActorHandle, pause_s: float) -> None:
        self._counter, self._pause_s = counter, pause_s

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(self._pause_s)
        return counted(run_stage(self, table), self._counter)

    def apply(self, rows: list[dict[str, Any]]) -> list[Changes | RowFailure]:
        texts = [row[META_PREFIX + "text"] for row in rows]
        return [{"letters": len(text)} if text else RowFailure("no_text") for text in texts]


def stages(rows: Dataset, counter: ActorHandle, pause_s: float) -> Dataset:
    return rows.map_batches(CountLetters(counter, pause_s), batch_size=OBJECT_ROWS, batch_format="pyarrow")


def letters(recipe: Recipe, pause_s: float = 0) -> Job:
    return Job(
        name="letters",
        done="counted",
        recipe=recipe,
        adds=(column("letters", pa.int64(), "Letters of the text."),),
        codes={"no_text": "The row has no text."},
        stages=partial(stages, pause_s=pause_s),
        needs_image=False,
        has_replicas=False,
    )


def recipe_of(folder: Path) -> Recipe:
    """600 rows in 12 row groups; every tenth text is missing."""
    if not (folder / "texts.parquet").exists():
        texts = [None if n % 10 == 9 else "x" * (n + 1) for n in range(ROWS)]
        table = pa.table({"text": texts, "url": [f"https://example.org/{n}.jpg" for n in range(ROWS)]})
        pq.write_table(table, folder / "texts.parquet", row_group_size=50)
    output = {"path": str(folder / "out"), "rows_per_object": OBJECT_ROWS}
    return parse({"input": {"paths": [str(folder / "texts.parquet")]}, "output": output})


def data(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "out" / "data").to_pylist() if (folder / "out" / "data").exists() else []


KILLED = """
import sys
from pathlib import Path
from caprl_ray import pipeline
from tests.test_second_job import letters, recipe_of
pipeline.run(letters(recipe_of(Path(sys.argv[1])), pause_s=0.3))
"""


@pytest.mark.usefixtures("ray_cluster")
def test_a_second_job_is_killed_and_resumed_and_its_ledger_balances(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = recipe_of(tmp_path), tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL) as killed:
        until = time.monotonic() + 120
        while not data(tmp_path) and killed.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
    kept = {row["id"]: row for row in data(tmp_path)}
    assert kept and killed.returncode == -signal.SIGKILL
    assert optional.plain() or len(kept) < ROWS * 9 // 10  # without internals, Ray may write all rows at once
    before = {path: path.stat().st_mtime_ns for path in (out / "data").glob("*.parquet")}

    balance = pipeline.run(letters(recipe))
    assert balance.balanced and (balance.finished, balance.failed) == (ROWS * 9 // 10, ROWS // 10)
    rows = data(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {row["id"]: row for row in rows if row["id"] in kept} == kept
    assert all(row["letters"] == len(row["text"]) == int(Path(row["url"]).stem) + 1 for row in rows)
    failed = pq.read_table(out / "failed").to_pylist()
    assert {(row["stage"], row["code"], row["text"]) for row in failed} == {("count", "no_text", None)}
    assert sorted(row["url"] for row in failed) == sorted(f"https://example.org/{n}.jpg" for n in range(9, ROWS, 10))

    assert cli.main(["verify", str(out)]) == 0
    assert f"{len(rows)} counted, {len(failed)} failed" in capsys.readouterr().out
    assert json.loads((out / "run.json").read_text())["job"] == {"name": "letters", "done": "counted", "noun": "row"}
    seen = look(Storage(), str(out))
    assert (seen.state, seen.status.done, seen.status.failed) == ("complete", ROWS, ROWS // 10)
    assert facts(seen.status).keys() == {"done", "rate", "failed", "last"}, "no images, no replicas, no captions"
    again = pipeline.run(letters(recipe), retry={"no_text"})
    assert (again.finished, again.failed, again.duplicate) == (balance.finished, balance.failed, 0)
    assert {row["attempts"] for row in pq.read_table(out / "failed").to_pylist()} == {2}


def test_an_output_takes_the_rows_of_one_job_only(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    plan.store(Storage(), str(tmp_path / "out"), [])
    (tmp_path / "out" / "run.json").write_text('{"fingerprint": {}}')
    with pytest.raises(RecipeError, match="holds the rows of the job caption, not of letters"):
        pipeline.run(letters(recipe))


def test_a_job_without_images_reads_rows_only(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    recipe = parse({"input": {"paths": [str(tmp_path)]}, "output": {"path": str(tmp_path / "out")}})
    with pytest.raises(RecipeError, match="holds no file named like parquet or JSON lines"):
        pipeline.run(letters(recipe))
