"""Rows and external signals kill processes of a whole job. Only the deadly rows fail."""

import io
import os
import signal
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from caprl_ray import caption_dataset, pipeline
from caprl_ray.caption import job
from caprl_ray.caption.job import caption_job
from caprl_ray.caption.writer import Writer
from caprl_ray.cluster import resources
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.engines.stub import DIE, EXIT, HANG, SICK, SWAP
from caprl_ray.errors import SystemFailure, TooManyFailures
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.replica import start
from caprl_ray.watch.counter import FORGIVEN, Counter
from caprl_ray.watch.starts import STARTS
from tests.expected import expected_caption
from tests.processes import gone

pytestmark = pytest.mark.usefixtures("ray_cluster")
ROWS = 100
NOTES, KILLING, FAULTS = "", False, 0
REPLACES = resources.REPLACES


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("scenes")
    render_dataset(folder, 2 * ROWS)
    return [path.read_bytes() for path in sorted((folder / "files").iterdir())]


def shard(path: Path, images: list[bytes], words: dict[int, str]) -> list[str]:
    """A shard whose texts go into the prompt; returns the texts."""
    texts = [f"number {number} {words.get(number, 'harmless')}" for number in range(len(images))]
    with tarfile.open(path, "w") as tar:
        for number, (image, text) in enumerate(zip(images, texts, strict=True)):
            for extension, content in (("png", image), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{number:05d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return texts


def stub_recipe(path: Path, out: Path, **sections: Any) -> Recipe:
    # mp: the stub has a core. 16 sequences: three batches in flight, so one is alone after two deaths.
    model = {"source": "stub", "engine": {"distributed_executor_backend": "mp", "max_num_seqs": 16}}
    document = demo_recipe([path], out) | {"model": model, "prepare": {"max_pixels": 20_000}}
    return parse(document | {"prompt": {"user": "Say: {txt}"}} | sections)


def run(tmp_path: Path, images: list[bytes], words: dict[int, str], **sections: Any) -> dict[int, str]:
    """Run, and check what always holds; returns the details of the failed rows by number."""
    texts = shard(tmp_path / "0.tar", images, words)
    recipe = stub_recipe(tmp_path / "0.tar", tmp_path / "out", **sections)
    balance = pipeline.run(caption_job(recipe))
    assert balance.balanced and (balance.finished, balance.failed) == (len(images) - len(words), len(words))
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert sorted(row["index"] for row in rows) == [n for n in range(len(images)) if n not in words]
    for row in rows:
        number = row["index"]
        assert row["caption"] == expected_caption(images[number], recipe, txt=texts[number])
    if not words:
        return {}
    failed = pq.read_table(tmp_path / "out" / "failed").to_pylist()
    assert {(row["stage"], row["code"]) for row in failed} == {("caption", "engine_crash")}
    return {row["index"]: row["detail"] for row in failed}


def test_rows_that_end_the_engine_or_the_replica_fail_and_their_neighbours_do_not(
    scenes: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = noting(tmp_path, monkeypatch)
    details = run(tmp_path, scenes, {5: DIE, 6: DIE, 40: EXIT, 99: DIE})
    assert details.keys() == {5, 6, 40, 99}
    assert [number for number, detail in details.items() if "replica" in detail] == [40]
    assert len(processes(notes)) == 6  # the row killed five of them


def test_a_row_that_stops_the_engine_is_found_by_the_stall(scenes: list[bytes], tmp_path: Path) -> None:
    details = run(tmp_path, scenes[:40], {17: HANG}, engine={"stall_timeout_s": 1})
    assert details.keys() == {17}


class KilledWriter(Writer):
    """Writer whose process is killed in the middle of its second batch, once."""

    async def _row(self, row: dict[str, Any]) -> Any:
        if KILLING and not os.path.exists(NOTES + ".killed") and row["index"] == 50:
            living: Any = self._engine  # the meter, around the revival, around the engine
            Path(NOTES + ".killed").write_text(" ".join(map(str, living._engine._engine._reaper.processes())))
            os.kill(os.getpid(), signal.SIGKILL)
        return await super()._row(row)


class NotingCaptioner(job.Captioner):
    """Captioner that notes its process."""

    writer = KilledWriter

    def apply(self, rows: list[dict[str, Any]]) -> Any:
        with open(NOTES, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        return super().apply(rows)


def noting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, killing: bool = False) -> Path:
    monkeypatch.setattr(sys.modules[__name__], "NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(sys.modules[__name__], "KILLING", killing)
    monkeypatch.setattr(job, "Captioner", NotingCaptioner)
    return tmp_path / "notes"


def processes(notes: Path) -> set[str]:
    return set(notes.read_text().split())


def test_a_replica_that_is_killed_comes_back_and_leaves_no_core(
    scenes: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = noting(tmp_path, monkeypatch, killing=True)
    assert not run(tmp_path, scenes, {})
    assert len(processes(notes)) == 2
    (core,) = (tmp_path / "notes.killed").read_text().split()
    assert gone(int(core))


@pytest.mark.slow
def test_in_a_dataset_without_a_plan_no_row_is_blamed_for_one_that_looks_the_same(scenes: list[bytes]) -> None:
    rows = [{"image": scenes[0], "txt": "harmless", "n": n} for n in range(150)]
    rows[70]["txt"] = EXIT
    settings = {
        "model": {"source": "stub", "engine": {"max_num_seqs": 16}},
        "replicas": {"gpus": 0},
        "prepare": {"max_pixels": 20_000},
        "prompt": {"user": "Say: {txt}"},
    }
    out = caption_dataset(ray.data.from_items(rows), settings).take_all()
    assert [row["n"] for row in out if row["code"]] == [70] and len(out) == 150
    assert {row["code"] for row in out} == {None, "engine_crash"}


class Unlucky(job.Captioner):
    """Captioner whose constructor fails once, with or without its process."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        if not os.path.exists(NOTES):
            Path(NOTES).touch()
            if KILLING:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("no memory")
        super().__init__(*arguments, **named)


@pytest.mark.parametrize("killing", [False, True])
def test_a_replica_whose_constructor_fails_once_does_not_end_the_run(
    scenes: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killing: bool
) -> None:
    notes = noting(tmp_path, monkeypatch, killing=killing)
    monkeypatch.setattr(job, "Captioner", Unlucky)
    assert not run(tmp_path, scenes[:5], {})
    assert notes.exists()


class LostWriter(Writer):
    """Writer whose engine captions nothing any more, once."""

    async def _row(self, row: dict[str, Any]) -> Any:
        if KILLING and row["index"] == 70 and not os.path.exists(NOTES + ".lost"):
            Path(NOTES + ".lost").touch()
            raise SystemFailure("The engine died and does not start again.")
        return await super()._row(row)


class Faulty(job.Captioner):
    """Captioner whose engine does not start, FAULTS times, or later captions nothing, once."""

    writer = LostWriter

    def _begin(self, *arguments: Any) -> Any:
        with open(NOTES, "a", encoding="utf-8") as file:
            file.write("start\n")
        resources.REPLACES = REPLACES
        if Path(NOTES).read_text().count("start") <= FAULTS:
            raise SystemFailure("The engine does not start (no driver).")
        return super()._begin(*arguments)


def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: int, *, killing: bool = False) -> Path:
    notes = noting(tmp_path, monkeypatch, killing=killing)
    monkeypatch.setattr(sys.modules[__name__], "FAULTS", faults)
    monkeypatch.setattr(job, "Captioner", Faulty)
    monkeypatch.setattr(start, "PAUSE_S", 0.1)
    return notes


def test_a_replica_whose_engine_does_not_start_at_first_does_not_end_the_run(
    scenes: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = faulty(tmp_path, monkeypatch, STARTS - 1)
    assert not run(tmp_path, scenes[:5], {})
    assert notes.read_text().count("start") == STARTS


def test_an_engine_that_dies_for_good_is_started_again_with_its_replica(
    scenes: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = faulty(tmp_path, monkeypatch, 0, killing=True)
    assert not run(tmp_path, scenes, {})
    assert notes.read_text().count("start") == 2 and os.path.exists(f"{notes}.lost")


@pytest.mark.parametrize(
    ("setting", "plain"),
    [(resources.REPLACES, "0"), *(pytest.param("absent", plain, marks=pytest.mark.slow) for plain in "01")],
    ids=["this Ray", "a Ray that replaces no actor", "the same without our patch"],
)
def test_a_run_whose_only_node_starts_no_engine_ends_with_the_reason(
    scenes: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, plain: str
) -> None:
    monkeypatch.setenv("CAPRL_RAY_PLAIN", plain)
    monkeypatch.setattr(resources, "REPLACES", setting)
    monkeypatch.setattr(sys.modules[__name__], "REPLACES", setting)
    notes = faulty(tmp_path, monkeypatch, 1000)
    with pytest.raises(
        SystemFailure, match=r"^The engine does not start \(no driver\)\. No replica can start: 3 starts"
    ):
        run(tmp_path, scenes[:5], {})
    assert STARTS <= notes.read_text().count("start") <= STARTS + 1


def test_counts_begin_at_nothing_and_end_with_the_batch() -> None:
    counter, here = Counter(), ray.get_runtime_context().get_node_id()
    assert [counter.begin(key, here) for key in "aab"] == [0, 1, 0]
    counter.end(["a", "never"])
    counter.put_off("b")
    assert [counter.begin(key, here) for key in "abb"] == [0, 0, 1]


def test_a_counter_that_was_restarted_has_forgotten_attempts_and_goes_on() -> None:
    counter, here = Counter(), ray.get_runtime_context().get_node_id()
    counter.put_off("begun before the restart")
    assert counter.begin("begun before the restart", here) == 0


def test_what_is_lost_with_its_node_is_held_against_no_row() -> None:
    counter, here = Counter(), ray.get_runtime_context().get_node_id()
    assert [counter.begin("row", f"{n:056x}") for n in range(FORGIVEN + 2)] == [0] * (FORGIVEN + 1) + [1]
    assert [counter.begin("row", here), counter.begin("row", here)] == [2, 3]


@pytest.mark.parametrize(
    ("word", "quality"),
    [
        (SICK, {"self_check": 1}),
        pytest.param(SWAP, {"self_check": 1}, marks=pytest.mark.slow),
        # The fourth batch shows the fault. It begins when one of the three before it, which run together, has ended.
        pytest.param(SICK, {"self_check": 3, "limits": {"garbage": 1}}, marks=pytest.mark.slow),
        (SWAP, {"self_check": 3}),
    ],
)
def test_what_a_replica_that_turns_sick_has_captioned_is_captioned_again(
    scenes: list[bytes], tmp_path: Path, word: str, quality: dict[str, Any]
) -> None:
    """From one row on it writes !!!!, or swaps the captions of its rows. Every caption in the output is right."""
    texts = shard(tmp_path / "0.tar", scenes, {50: word + str(tmp_path / "sick")})
    recipe = stub_recipe(tmp_path / "0.tar", tmp_path / "out", quality=quality)
    balance = pipeline.run(caption_job(recipe))
    assert (tmp_path / "sick").exists()
    assert (balance.finished, balance.failed) == (len(scenes), 0)
    assert quality["self_check"] == 1 or any("of sick replicas" in note for note in balance.notes)
    for row in pq.read_table(tmp_path / "out" / "data").to_pylist():
        number = row["index"]
        assert row["caption"] == expected_caption(scenes[number], recipe, txt=texts[number])


def test_a_run_whose_replicas_are_all_sick_ends_with_examples(scenes: list[bytes], tmp_path: Path) -> None:
    words = {number: SICK + str(tmp_path / f"sick{number}") for number in range(ROWS)}
    shard(tmp_path / "0.tar", scenes[:ROWS], words)
    with pytest.raises(
        TooManyFailures, match=r"flagged garbage, more than 0.1 allows \(such as '!!!!.*written rows stay"
    ):
        pipeline.run(caption_job(stub_recipe(tmp_path / "0.tar", tmp_path / "out")))
