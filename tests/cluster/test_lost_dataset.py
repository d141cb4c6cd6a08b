"""A node with blocks of captions is lost while a Ray Dataset is read: the blocks are made again with the same rows.

Run as a program, this file captions a dataset whose captions are longer on one node than on the other.
"""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from PIL import Image

from caprl_ray import caption_dataset
from caprl_ray.caption import job
from caprl_ray.caption.writer import Writer
from tests.ray_head import NOTICED_SOON, new_head

ROWS = 96  # three batches
LENGTH = "CAPRL_TEST_CAPTION_LENGTH"
# Ray's own limit would cut a batch of such rows after 21 rows, or after 20 where captions are long.
TARGET, BLOB = 32 * 2**20, 32 * 2**20 * 100 // 2003


class LengthyWriter(Writer):
    """Writer whose captions are as long as its node says."""

    async def _row(self, row: dict[str, Any]) -> Any:
        return dict(await super()._row(row)) | {"caption": "x" * int(os.environ[LENGTH])}


class Lengthy(job.Captioner):
    """Captioner with such captions."""

    writer = LengthyWriter


def main(folder: Path) -> None:
    """Read a part of every batch, wait until their node is lost, and read the rest."""
    job.Captioner = Lengthy  # type: ignore[misc]
    ray.data.DataContext.get_current().target_max_block_size = TARGET
    image = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(image, "PNG")
    content, blob = image.getvalue(), b"x" * BLOB
    rows = ray.data.range(ROWS, override_num_blocks=1).map(lambda row: {"image": content, "n": row["id"], "b": blob})
    captions = caption_dataset(rows, {"model": {"source": "stub"}, "prepare": {"max_pixels": 20_000}}).materialize()
    references = captions.to_arrow_refs()
    kept = {number: ray.get(reference) for number, reference in list(enumerate(references))[::2]}
    (folder / "read").touch()
    while not (folder / "lost").exists():
        time.sleep(0.1)
    tables = [kept.get(number) or ray.get(reference) for number, reference in enumerate(references)]
    found = [
        (n.as_py(), len(text.as_py()))
        for table in tables
        for n, text in zip(*map(table.column, ("n", "caption")), strict=True)
    ]
    (folder / "found").write_text(json.dumps(found))


@pytest.mark.timeout(400)
@pytest.mark.slow
def test_a_large_block_that_is_lost_and_made_again_has_the_same_rows(tmp_path: Path) -> None:
    with new_head(cpus=0, settings=NOTICED_SOON) as head:
        head.join(cpus=2, gpus=1, **{LENGTH: "10"})
        environment = head.client | {"RAY_ADDRESS": head.address}
        with open(tmp_path / "log", "wb") as log:
            run = subprocess.Popen([sys.executable, __file__, tmp_path], env=environment, stdout=log, stderr=log)
        try:
            head.wait(lambda: (tmp_path / "read").exists() or run.poll() is not None, seconds=150)
            assert run.poll() is None, (tmp_path / "log").read_text()
            (worker,) = head.workers
            head.lose(worker)
            head.join(cpus=2, gpus=1, **{LENGTH: "60000"})
            (tmp_path / "lost").touch()
            head.wait(lambda: run.poll() is not None, seconds=150)
        finally:
            run.kill()
    assert run.returncode == 0, (tmp_path / "log").read_text()
    found = json.loads((tmp_path / "found").read_text())
    assert sorted(n for n, _ in found) == list(range(ROWS))
    assert {length for _, length in found} == {10, 60000}, "no block was made again"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
