"""An elastic pool: replicas follow the backlog and the nodes, and never exceed the recipe's number.

Run as a program, this file is `caprl-ray caption` with a slow captioner that notes what it captions.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from caprl_ray import cli, plan
from caprl_ray.caption import job
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.errors import SystemFailure
from caprl_ray.output import ledger
from caprl_ray.output.committed import read_committed
from caprl_ray.recipe.load import parse
from caprl_ray.storage import Storage
from caprl_ray.watch.starts import STARTS
from tests.expected import expected_caption
from tests.ray_head import NOTICED_SOON, Head, new_head

IMAGES = 640  # 20 batches
LET_GO = "start"  # a line that counts as one more replica
BROKEN = "CAPRL_TEST_BROKEN_NODE"  # in the environment of a node that starts no engine


class RecordedCaptioner(job.Captioner):
    """A replica that notes its start and the rows of each batch, and is slow while other replicas are awaited."""

    notes = Path(os.environ.get("NOTES", ""))
    awaited = int(os.environ.get("AWAITED", "1"))

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.until = time.monotonic() + 240
        self.note("start", str(self.engine_arguments()["max_num_seqs"]))

    def _begin(self, *arguments: Any) -> Any:
        if os.environ.get(BROKEN):
            self.note("broken")
            raise SystemFailure("The GPU has fallen off the bus.")
        return super()._begin(*arguments)

    def __call__(self, table: pa.Table) -> pa.Table:
        self.note("begin")
        while self.notes.read_text().count("start") < self.awaited and time.monotonic() < self.until:
            time.sleep(0.1)
        time.sleep(0.3)
        captioned = super().__call__(table)
        self.note(*table["id"].to_pylist())
        return captioned

    def note(self, *words: str) -> None:
        node = ray.get_runtime_context().get_node_id()
        with open(self.notes, "a", encoding="utf-8") as file:
            file.write(" ".join([node, str(os.getpid()), *words]) + "\n")


@dataclass(frozen=True)
class Notes:
    """The notes of a run's replicas: the node of each, and the rows that each has captioned."""

    path: Path

    def lines(self) -> list[list[str]]:
        written = self.path.read_text().splitlines() if self.path.exists() else []
        return [line.split() for line in written if line != LET_GO]

    def replicas(self) -> dict[str, str]:
        return {pid: node for node, pid, first, *_ in self.lines() if first == "start"}

    def begun(self) -> set[str]:
        """The replicas that have taken a batch."""
        return {pid for _, pid, first, *_ in self.lines() if first == "begin"}

    def broken(self) -> list[str]:
        """The node of each start that failed."""
        return [node for node, _, first, *_ in self.lines() if first == "broken"]

    def engines(self) -> list[tuple[str, int]]:
        """The node of each replica, and how many sequences its engine runs."""
        return sorted((node, int(rest[0])) for node, _, first, *rest in self.lines() if first == "start")

    def rows(self) -> dict[str, list[str]]:
        captioned: dict[str, list[str]] = {}
        for _, pid, *ids in self.lines():
            if ids[0] not in ("start", "begin", "broken"):
                captioned.setdefault(pid, []).extend(ids)
        return captioned


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    render_dataset(folder, 2 * IMAGES)
    return folder / "files"


def elastic_recipe(images: Path, out: Path) -> dict[str, Any]:
    # 16 sequences at once: a replica takes one batch of 32 rows at a time, and a second batch waits.
    return demo_recipe([images], out) | {
        "model": {"source": "stub", "engine": {"max_num_seqs": 16}},
        "prepare": {"max_pixels": 20_000},
        "replicas": {"min": 1, "max": 3, "gpus": 1},
    }


def start(head: Head, recipe: dict[str, Any], notes: Path, awaited: int, *options: str) -> subprocess.Popen[bytes]:
    (notes.with_suffix(".yaml")).write_text(yaml.safe_dump(recipe))
    command = [sys.executable, __file__, notes.with_suffix(".yaml"), *options]
    environment = head.client | {"RAY_ADDRESS": head.address, "NOTES": str(notes), "AWAITED": str(awaited)}
    with open(notes.with_suffix(".log"), "wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def finish(head: Head, run: subprocess.Popen[bytes], notes: Path) -> None:
    try:
        head.wait(lambda: run.poll() is not None, seconds=150)
    finally:
        run.kill()
    assert run.returncode == 0, notes.with_suffix(".log").read_text()


def check_ledger(document: dict[str, Any]) -> None:
    out, storage = parse(document).output.path, Storage()
    balance = ledger.balance(plan.load(storage, out).units, read_committed(storage, out), "captioned")
    assert balance.balanced and balance.finished == IMAGES


def check_output(document: dict[str, Any], captioned: set[str]) -> None:
    check_ledger(document)
    recipe = parse(document)
    rows = pq.read_table(f"{recipe.output.path}/data").to_pylist()
    assert {row["id"] for row in rows} == captioned and len(rows) == IMAGES
    assert all(row["caption"] == expected_caption(Path(row["source"]).read_bytes(), recipe) for row in rows)


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_the_pool_grows_with_the_backlog_up_to_what_the_recipe_allows(images: Path, tmp_path: Path) -> None:
    recipe = elastic_recipe(images, tmp_path / "out")
    first, second = Notes(tmp_path / "first"), Notes(tmp_path / "second")
    with new_head(cpus=2, gpus=5) as head:  # room for more replicas than the recipe allows
        finish(head, start(head, recipe, first.path, 1, "--limit", "32"), first.path)
        assert len(first.replicas()) == 1, "one batch is no backlog"
        finish(head, start(head, recipe, second.path, 3), second.path)
    assert len(second.replicas()) == 3
    assert second.rows().keys() == second.replicas().keys(), "a replica had nothing to do"
    captioned = [row for notes in (first, second) for rows in notes.rows().values() for row in rows]
    assert len(captioned) == IMAGES
    check_output(recipe, set(captioned))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_rows_of_a_node_that_joins_is_drained_and_taken_away_come_back(images: Path, tmp_path: Path) -> None:
    """Before that node another one joins, whose engine does not start. It gets no more replicas."""
    recipe, notes = elastic_recipe(images, tmp_path / "out"), Notes(tmp_path / "notes")
    with new_head(cpus=2, gpus=1, settings=NOTICED_SOON) as head:
        run = start(head, recipe, notes.path, 4)
        head.wait(notes.replicas)
        (stays,) = notes.replicas().values()
        head.join(cpus=0, gpus=1, **{BROKEN: "1"})
        head.wait(lambda: len(notes.broken()) >= STARTS)
        (broken,) = head.workers
        head.join(cpus=0, gpus=2)
        head.wait(lambda: len(notes.replicas()) == 3)
        leaving = {pid for pid, node in notes.replicas().items() if node != stays}
        assert len(leaving) == 2, "two replicas on the node that joined"
        (drained,) = {notes.replicas()[pid] for pid in leaving}
        head.wait(lambda: leaving <= notes.begun())
        head.drain(drained)
        (worker,) = head.workers.keys() - {broken}
        head.lose(worker)
        with open(notes.path, "a", encoding="utf-8") as file:
            file.write(LET_GO + "\n")
        finish(head, run, notes.path)
    assert len(notes.broken()) == STARTS and len(set(notes.broken())) == 1, "the broken node got more replicas"
    captioned = notes.rows()
    assert leaving.isdisjoint(captioned), "a batch that was under way on the node was not lost"
    check_output(recipe, {row for rows in captioned.values() for row in rows})
    log = notes.path.with_suffix(".log").read_text()
    (struck,) = set(notes.broken())
    assert f"({struck[:8]}) gets no more replicas of this run: The GPU has fallen off the bus." in log
    assert "(raylet)" not in log and 1 <= log.count("\nRay: ") < 10, log


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_the_gpu_that_a_replica_lands_on_decides_its_engine_and_the_recipe_where_it_lands(
    images: Path, tmp_path: Path
) -> None:
    any_type = elastic_recipe(images, tmp_path / "any")
    any_type["model"]["engine_by_accelerator"] = {"L40S": {"max_num_seqs": 7}, "H100": {"max_num_seqs": 9}}
    any_type["replicas"] |= {"min": 2, "max": 2}
    pinned = any_type | {"replicas": {"accelerator_type": "H100"}, "output": {"path": str(tmp_path / "pinned")}}
    both, one = Notes(tmp_path / "both"), Notes(tmp_path / "one")
    with new_head(cpus=2, gpus=0) as head:
        head.join(cpus=0, gpus=1, accelerator="L40S")
        head.wait(head.settled)
        head.join(cpus=0, gpus=1, accelerator="H100")
        finish(head, start(head, any_type, both.path, 2), both.path)
        finish(head, start(head, pinned, one.path, 1, "--limit", "32"), one.path)
    assert sorted(sequences for _, sequences in both.engines()) == [7, 9] and len({n for n, _ in both.engines()}) == 2
    assert one.engines() == [engine for engine in both.engines() if engine[1] == 9]
    check_output(any_type, {row for rows in both.rows().values() for row in rows})


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_a_run_waits_for_gpus_so_long_and_is_resumed_where_there_are_some(images: Path, tmp_path: Path) -> None:
    recipe, notes = elastic_recipe(images, tmp_path / "out"), Notes(tmp_path / "notes")
    recipe["replicas"] |= {"wait_s": 20}
    with new_head(cpus=2, gpus=0) as head:
        run = start(head, recipe, notes.path, 1)
        head.wait(lambda: run.poll() is not None)
        said = notes.path.with_suffix(".log").read_text()
        assert run.returncode == 1 and "no node had room for a replica (1 GPUs) for 20 seconds" in said
        assert "waiting for a replica's node" in said and not notes.replicas()
        head.join(cpus=0, gpus=1)
        finish(head, start(head, recipe, notes.path, 1), notes.path)
    check_output(recipe, {row for rows in notes.rows().values() for row in rows})


if __name__ == "__main__":
    job.Captioner = RecordedCaptioner  # type: ignore[misc]
    sys.exit(cli.main(["caption", *sys.argv[1:]]))
