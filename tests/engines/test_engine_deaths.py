"""The real engine: its core is told to end, then stands still, then its replica is killed; every caption is right.

A core that is killed is one of test_chaos.
"""

import asyncio
import os
import signal
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from caprl_ray import pipeline
from caprl_ray.caption import job
from caprl_ray.caption.job import caption_job
from caprl_ray.caption.writer import Writer
from caprl_ray.commands.demo import check, demo_recipe, render_dataset
from caprl_ray.engines import internals, launch, vllm_engine
from caprl_ray.engines.protocol import EngineDied, Picture
from caprl_ray.engines.reaper import READABLE
from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.models.resolve import resolve
from caprl_ray.recipe.load import parse
from tests.checkout import ROOT
from tests.processes import gone

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("ray_cluster")]
SCENES = 192  # half of them are captioned: three batches
SIGNALS = {"told": signal.SIGTERM, "stopped": signal.SIGSTOP, "replica": signal.SIGKILL}
FAULTS = dict(zip((10, 42, 74), SIGNALS, strict=True))  # by a row of each batch
LONG = 4  # before this row a prompt is tried that is longer than the context
CORE = "VLLM::EngineCore"
NOTES = ""


def locked() -> bool:
    """Whether the installed vLLM is the one that all was measured with."""
    (name,) = set(packages_distributions()["vllm"])
    return any(f"{name}=={version(name)} " in lock.read_text() for lock in (ROOT / "requirements").glob("?pu.lock"))


class Endangered(Writer):
    """A writer whose engine meets a fault at one row of each batch, when that row first comes."""

    async def _row(self, row: dict[str, Any]) -> Any:
        living: Any = self._engine
        engine = living._engine._engine  # below the meter and the revival
        meter = engine._renderer.by_us, engine._renderer.by_vllm, engine.steps, int(engine._counted)
        Path(NOTES, f"meter-{os.getpid()}").write_text(" ".join(map(str, meter)))
        _note_chunks(engine._llm.engine_core)
        if row["index"] == LONG:
            Path(NOTES, "long").write_text(await self._refusal_of_a_long_prompt(row))
        fault = FAULTS.get(row["index"])
        if fault and not os.path.exists(f"{NOTES}/{fault}"):
            (core,) = (pid for pid in engine._reaper.processes() if psutil.Process(pid).cmdline()[0] == CORE)
            Path(NOTES, fault).write_text(str(core))
            os.kill(os.getpid() if fault == "replica" else core, SIGNALS[fault])
        return await super()._row(row)

    async def _refusal_of_a_long_prompt(self, row: dict[str, Any]) -> str:
        picture = Picture(pixels=row["pixels"], width=row["pixel_width"], height=row["pixel_height"])
        with pytest.raises(RowFailure) as failure:
            await self._engine.caption(picture, "a circle " * 20_000)
        return failure.value.code


class Captioner(job.Captioner):
    writer = Endangered


def _note_chunks(client: Any) -> None:
    """Note when a core sends more than one token of a request at once."""
    receive = client.get_output_async
    if receive.__name__ == "noted":
        return

    async def noted() -> Any:
        sent = await receive()
        if any(len(output.new_token_ids) > 1 for output in sent.outputs):
            Path(NOTES, "chunks").touch()
        return sent

    client.get_output_async = noted


@pytest.mark.timeout(500)
def test_captions_are_right_whatever_becomes_of_the_engines_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(job, "Captioner", Captioner)
    (tmp_path / "notes").mkdir()
    captions = render_dataset(tmp_path / "images", SCENES, seed=40)
    document = demo_recipe([tmp_path / "images" / "files"], tmp_path / "out")
    document["model"]["engine"] = {"max_num_seqs": 7}  # a replica takes one batch after the other
    recipe = parse(document | {"engine": {"stall_timeout_s": 8}})
    balance = pipeline.run(caption_job(recipe))
    cores = {int((tmp_path / "notes" / fault).read_text()) for fault in FAULTS.values()}
    assert balance.balanced and (balance.finished, balance.failed) == (SCENES // 2, 0)
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert len({row["index"] for row in rows}) == SCENES // 2
    right, _ = check(tmp_path / "out", captions)
    assert right >= 0.96 * len(rows)
    assert len(cores) == len(FAULTS)  # each ended another one
    meters = [tuple(map(int, path.read_text().split())) for path in (tmp_path / "notes").glob("meter-*")]
    assert (tmp_path / "notes" / "long").read_text() == "prompt_too_long"
    by_us, by_vllm, steps, counted = max(meters)  # of the engine that captioned most
    assert steps > 0 and (counted or not locked()), meters
    # An older vLLM normalises images in its frontend. Then it renders them all, and the run says so.
    told = f"a replica runs without {internals.RENDERED}" in capsys.readouterr().err
    assert by_us > by_vllm or (told and not locked()), meters
    assert (tmp_path / "notes" / "chunks").exists() or not locked()
    assert all(map(gone, cores))


@pytest.fixture
def _environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*vllm_engine.CPU_ENVIRONMENT, *vllm_engine.ENVIRONMENT, "OMP_NUM_THREADS", READABLE):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("_environment_is_put_back")
def test_a_fault_that_only_the_core_finds_is_reported() -> None:
    document = demo_recipe([Path("a")], Path("b"))
    document["model"]["engine"] = {"num_gpu_blocks_override": 1}
    recipe = parse(document)
    with pytest.raises(EngineDied, match=r"its core process died: ValueError: (No available memory|To serve at least)"):
        asyncio.run(vllm_engine.VllmEngine.start(recipe, resolve(recipe)))


@pytest.mark.usefixtures("_environment_is_put_back")
def test_an_engine_that_hangs_while_it_starts_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "START_TIMEOUT_S", 1.0)  # none is so fast
    recipe = parse(demo_recipe([Path("a")], Path("b")))
    with pytest.raises(SystemFailure, match="did not start within 1 s"):
        asyncio.run(launch.start(recipe, resolve(recipe)))
