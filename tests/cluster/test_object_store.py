"""Large pictures and a small object store: running work fits into it, and nothing is spilled to disk.

Run as a program, this file is `caprl-ray` with a Ray that does not end a standstill every ten seconds, its default.
"""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from ray.data._internal.execution.streaming_executor_state import IdleDetector

from caprl_ray import cli
from caprl_ray.cluster import failures
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.recipe.load import parse
from tests.checkout import ROOT
from tests.expected import expected_caption

PICTURES, WIDTH, HEIGHT = 100, 4000, 3000
STORE_BYTES = 512 * 2**20  # all pictures have twice as much, as files and as pixels


def write_pictures(folder: Path) -> None:
    """JPEGs of 12 megapixels and 4 MB, each a different file."""
    folder.mkdir()
    noise = np.random.default_rng(1).normal(0, 12, (HEIGHT, WIDTH, 3))
    ramp = np.linspace(0, 255, WIDTH)[None, :, None]
    buffer = io.BytesIO()
    Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    for number in range(PICTURES):
        (folder / f"{number:03d}.jpg").write_bytes(buffer.getvalue() + number.to_bytes(4, "big"))


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_pictures_of_12_megapixels_are_not_spilled_from_a_store_of_half_a_gigabyte(tmp_path: Path) -> None:
    pictures, spilled = tmp_path / "pictures", tmp_path / "spilled"
    write_pictures(pictures)
    spilled.mkdir()
    document = demo_recipe([pictures], tmp_path / "out") | {"model": {"source": "stub"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    environment = os.environ | {
        "CAPRL_RAY_ALLOW_STUB": "1",
        "PYTHONPATH": str(ROOT),
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(STORE_BYTES),
        failures.SPILL_FOLDER: str(spilled),
    }
    command = [sys.executable, __file__, "caption", "recipe.yaml"]
    with open(tmp_path / "log.txt", "wb") as log:
        run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    seen, until = set[Path](), time.monotonic() + 200
    while run.poll() is None and time.monotonic() < until:
        seen |= {path for path in spilled.rglob("*") if path.is_file()}
        time.sleep(0.05)
    run.kill()
    assert run.wait() == 0, (tmp_path / "log.txt").read_text()
    assert not seen, f"{len(seen)} objects were spilled"
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert len({row["sha256"] for row in rows}) == PICTURES
    assert rows[0]["caption"] == expected_caption(Path(rows[0]["source"]).read_bytes(), parse(document))


if __name__ == "__main__":
    IdleDetector.DETECTION_INTERVAL_S = 3600.0
    sys.exit(cli.main(sys.argv[1:]))
