"""SIGKILL the driver at each step of planning and committing, and stop it. The same command continues each time.

Run as a program, this file is a `caprl-ray caption` that kills or stops itself at the step in its first argument.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from caprl_ray import cli, plan
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.commands.status import look
from caprl_ray.output import ledger
from caprl_ray.output.committed import read_committed
from caprl_ray.plan import parts
from caprl_ray.recipe.load import parse
from caprl_ray.sources import files
from caprl_ray.storage import Storage, local
from caprl_ray.watch import reporter, screen
from caprl_ray.watch.status import Status
from tests.checkout import ROOT
from tests.expected import expected_caption

IMAGES = 400


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_write(name: str, *, written: bool) -> None:
    """Die at the write of the object with this name: after its temporary file, or after the rename."""
    write = local._write

    def deadly(target: Path, content: bytes, put_in_place: Callable[[Path, Path], None]) -> None:
        if target.name != name:
            write(target, content, put_in_place)
        else:
            write(target, content, put_in_place if written else die)
            die()

    local._write = deadly


def at_commits(out: Path, count: int) -> None:
    """Die as soon as so many more objects are committed."""
    enough = committed(out) + count

    def watch() -> None:
        while committed(out) < enough:
            time.sleep(0.01)
        die()

    threading.Thread(target=watch, daemon=True).start()


def at_rows(number: signal.Signals) -> None:
    """Stop the run by a signal when rows are done. None of them is committed yet, because objects are large."""
    os.environ["CAPRL_RAY_STUB_CAPTION_S"] = "0.1-1"
    screen.FIRST_S = screen.LONGEST_S = reporter.TICK_S = 0.1
    show = screen.Lines.show

    def shown(lines: screen.Lines, status: Status, *, last: bool = False) -> None:
        show(lines, status, last=last)
        if status.record.rows and screen.FIRST_S < 1:
            screen.FIRST_S = screen.LONGEST_S = 60
            os.kill(os.getpid(), number)

    screen.Lines.show = shown  # type: ignore[method-assign]


def committed(out: Path) -> int:
    return len(list((out / "data").glob("*.parquet")))


STEPS: dict[str, Callable[[Path], None]] = {
    "the lease is taken": lambda out: at_write("lease.json", written=True),
    "run.json is being written": lambda out: at_write("run.json", written=False),
    "run.json is written": lambda out: at_write("run.json", written=True),
    "the plan's first part is being written": lambda out: at_write("00000.parquet", written=False),
    "the plan's first part is written": lambda out: at_write("00000.parquet", written=True),
    "a later part is being written": lambda out: at_write("00002.parquet", written=False),
    "the plan's last part is written": lambda out: at_write("00004.parquet", written=True),
    "the first object is committed": lambda out: at_commits(out, 1),
    "more objects are committed": lambda out: at_commits(out, 3),
    "rows are done, and Ctrl-C": lambda out: at_rows(signal.SIGINT),
    "rows are done, and SIGTERM": lambda out: at_rows(signal.SIGTERM),
    "the output is being marked complete": lambda out: at_write("_SUCCESS", written=False),
    "the output is complete": lambda out: at_write("_SUCCESS", written=True),
}
ENDS = {"rows are done, and Ctrl-C": 130, "rows are done, and SIGTERM": 143}


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(out / "data").to_pylist() if committed(out) else []
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.timeout(500)
def test_the_same_command_goes_on_with_what_killed_drivers_left(tmp_path: Path) -> None:
    """Each death ends the command that continued after the last one, at the next step."""
    render_dataset(tmp_path / "images", 2 * IMAGES)
    out = tmp_path / "out"
    document = demo_recipe([tmp_path / "images" / "files"], out)
    # Few places: some of the rows are done when the first batch is, and many are not.
    document |= {"model": {"source": "stub", "engine": {"max_num_seqs": 16}}, "prepare": {"max_pixels": 20_000}}
    document["output"]["rows_per_object"] = 32
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document))
    found: dict[str, dict[str, Any]] = {}
    for step in STEPS:
        killed = command(__file__, step, recipe)
        assert killed.returncode == ENDS.get(step, -signal.SIGKILL), (step, killed.stderr)
        before, found = found, rows_of(out)
        if step in ENDS:
            began = re.search(rf"(\d+) / {IMAGES} images", killed.stderr)
            said = re.search(r"stopped, with the (\d+) finished images of this run committed", killed.stderr)
            assert began and said and len(found) - int(began[1]) == int(said[1]) > 0, killed.stderr
            assert len(found) < IMAGES and not list((out / "failed").glob("*")), f"{step}: nothing was cut short"
        assert {id_: found[id_] for id_ in before} == before, step
        if "object" in step:
            assert look(Storage(), str(out)).state == "died", step
            assert len(before) < len(found) < IMAGES, f"{step}: too early or too late to show anything"
    ended = command("-m", "caprl_ray", "caption", recipe)
    assert ended.returncode == 0, ended.stderr
    assert rows_of(out) == found
    stored = plan.load(Storage(), str(out))
    assert stored.complete and (len(stored.units), stored.objects) == (4, 5)
    balance = ledger.balance(stored.units, read_committed(Storage(), str(out)), "captioned")
    assert balance.balanced and balance.finished == len(found) == IMAGES
    assert (out / "_SUCCESS").exists() and look(Storage(), str(out)).state == "complete"
    ended = json.loads((out / "lease.json").read_text())
    assert (ended["state"], ended["number"]) == ("finished", len(STEPS) + 1)
    parsed = parse(document)
    for row in list(found.values())[::7]:
        assert row["caption"] == expected_caption(Path(row["source"]).read_bytes(), parsed)


if __name__ == "__main__":
    recipe_path = sys.argv[2]
    files.FILES_PER_UNIT, parts.FIRST_PART_S, parts.PART_S = IMAGES // 4, 0, 0  # a part for each of four units
    STEPS[sys.argv[1]](Path(yaml.safe_load(Path(recipe_path).read_text())["output"]["path"]))
    more = ["output.rows_per_object=2048"] if sys.argv[1] in ENDS else []
    sys.exit(cli.main(["caption", recipe_path, *more]))
