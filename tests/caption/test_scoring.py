"""Captions that are scored while they are written, by a second pool of replicas: killed, resumed, and right by meaning.

Run as a program, this file is `caprl-ray caption` on a Ray with four GPUs, which notes its pools and kills itself.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from caprl_ray import cli
from caprl_ray.cluster import local
from caprl_ray.engines.stub import DIE
from caprl_ray.watch import reporter
from caprl_ray.watch.status import Status
from caprl_ray.watch.words import facts
from tests.checkout import ROOT

IMAGES, CORRUPT, DEADLY, GPUS = 240, 7, 213, 4
COLORS = ("red", "green", "blue", "black")
PLAIN, TOLD = "Describe it.", "Describe the {txt} one"


def color(number: int) -> str:
    return COLORS[number % 4]


def is_told(number: int) -> bool:
    """Whether the text of an image, which the second prompt repeats, says its right color."""
    return number % 3 != 0


def is_asked(number: int) -> bool:
    return number % 10 != 9


def make_inputs(folder: Path) -> Path:
    """A shard of images with a text each, questions about most of them, and the recipe. The question about one image
    kills the engine that reads it."""
    with tarfile.open(folder / "s.tar", "w") as tar:
        for number in range(IMAGES):
            buffer = io.BytesIO()
            Image.new("RGB", (30, 30), (number % 256, number // 256, 9)).save(buffer, "PNG")
            picture = b"no image" if number == CORRUPT else buffer.getvalue()
            said = color(number if is_told(number) else number + 1).encode()
            for extension, content in (("png", picture), ("txt", said)):
                member = tarfile.TarInfo(f"{number:04d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    one: dict[str, Any] = {"metric": "choice", "question": "Color?", "choices": COLORS}
    deadly: dict[str, Any] = {"metric": "exact", "question": DIE, "choices": None}
    questions = [
        (deadly if n == DEADLY else one) | {"key": f"{n:04d}", "answer": color(n)} for n in range(IMAGES) if is_asked(n)
    ]
    pq.write_table(pa.Table.from_pylist(questions), folder / "questions.parquet")
    engine = {"max_num_seqs": 8}
    document = {
        "input": {"paths": [str(folder / "s.tar")]},
        "model": {"source": "stub", "engine": engine},
        "replicas": {"gpus": 1, "max": 3},
        "prepare": {"max_pixels": 20_000},
        "prompts": {"plain": PLAIN, "told": TOLD},
        "quality": {"self_check": 0},
        "score": {
            "questions": str(folder / "questions.parquet"),
            "join": "key",
            "model": {"source": "stub", "engine": engine},
            "replicas": {"gpus": 1, "max": 3},
        },
        "output": {"path": str(folder / "out"), "rows_per_object": 16},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    return folder / "recipe.yaml"


def rows_of(out: Path, part: str = "data") -> dict[int, dict[str, Any]]:
    rows = pq.read_table(out / part).to_pylist() if (out / part).exists() else []
    assert len({row["id"] for row in rows}) == len(rows)
    return {int(row["key"]): row for row in rows}


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
def test_two_pools_score_each_caption_once_and_no_caption_is_lost_whatever_dies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out, environment = make_inputs(tmp_path), tmp_path / "out", os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run(
        [sys.executable, __file__, recipe], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    pools = [tuple(map(int, line.split())) for line in (tmp_path / "pools.txt").read_text().splitlines()]
    captioners, readers = (max(pool) for pool in zip(*pools, strict=True))
    assert captioners >= 1 and readers >= 1, "each pool has its least"
    assert max(map(sum, pools)) > 2, "and they share the rest"
    before = rows_of(out)
    assert 0 < len(before) < IMAGES - 2

    on_cpu = ["replicas.gpus=0", "score.replicas.gpus=0", "score.model.engine.distributed_executor_backend=mp"]
    assert cli.main(["caption", str(recipe), *on_cpu]) == 0
    said = capsys.readouterr().out
    rows, failed = rows_of(out), rows_of(out, "failed")
    assert failed.keys() == {CORRUPT} and rows.keys() | {CORRUPT} == set(range(IMAGES))
    assert {number: rows[number] for number in before} == before
    for number, row in rows.items():
        first, second = row["captions"]
        assert first["text"].endswith("| it. Describe") and second["text"].split()[-4:-2] == ["one", row["txt"]]
        code = "engine_crash" if number == DEADLY else None if is_asked(number) else "no_questions"
        worth = float(is_told(number)) if code is None else None
        assert (row["score"], row["score_code"]) == (worth, code), number
        assert row["first_score"] == (0.0 if code is None else None)
        assert row["caption"] == (second if worth else first)["text"]
        if code is None:
            assert [one["score"] for one in row["captions"]] == [0.0, worth] and row["image_questions"] == row["key"]
            seen = [answer for answer in row["answers"] if answer["condition"] == "caption"]
            assert len(seen) == row["answered"] == 4 and all(answer["correct"] == worth for answer in seen)

    asked = [number for number in rows if is_asked(number) and number != DEADLY]
    mean = sum(map(is_told, asked)) / len(asked)
    scores = json.loads((out / "summary.json").read_text())["scores"]
    assert (scores["rows"], scores["best"]["rows"]) == (len(asked), len(asked))
    assert scores["mean"]["value"] == scores["best"]["gain"]["value"] == pytest.approx(mean)
    assert scores["unscored"] == {"no_questions": IMAGES // 10, "engine_crash": 1}
    assert f"best of several: {mean:.3f} on average, and 0.000 without scores: +{mean:.3f} [+" in said
    told = Status.parse((out / "status.json").read_bytes())
    assert {"replicas", "score replicas", "score"} <= facts(told).keys(), "pools are told apart"

    assert cli.main(["verify", str(out)]) == 0
    assert cli.main(["caption", str(recipe), *on_cpu, "score.seed=1"]) == 2
    assert "score.seed was 0 and is 1" in capsys.readouterr().err


def note_and_die(folder: Path) -> None:
    """Note the running captioners and readers as often as the status is told, and die when objects are committed and
    the pools have grown, or some time later."""
    pools: list[int] = []
    told, out, began = reporter.Reporter._status, folder / "out", time.monotonic()

    def status(self: reporter.Reporter, *arguments: Any) -> Status:
        found = told(self, *arguments)
        readers = found.record.readers.get("score")
        counts = found.record.replicas.running, readers.replicas.running if readers else 0
        pools.append(sum(counts))
        with (folder / "pools.txt").open("a") as file:
            file.write(f"{counts[0]} {counts[1]}\n")
        return found

    def watch() -> None:
        while not list((out / "data").glob("*.parquet")) or (max(pools) < 3 and time.monotonic() < began + 60):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    reporter.TICK_S, reporter.Reporter._status = 0.2, status  # type: ignore[method-assign]
    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    os.environ["CAPRL_RAY_STUB_CAPTION_S"] = "0.2-0.5"
    note_and_die(Path(sys.argv[1]).parent)
    local.start(num_cpus=2, num_gpus=GPUS)
    sys.exit(cli.main(["caption", sys.argv[1]]))
