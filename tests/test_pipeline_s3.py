"""The whole job with input and output on a real S3 server on loopback, with the stub engine."""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from caprl_ray import cli, pipeline
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.errors import SystemFailure
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from tests.expected import expected_caption, image_in_shard
from tests.s3_server import BUCKET, Request, S3Server

pytestmark = pytest.mark.usefixtures("ray_cluster")
IMAGES = 60
OUT = f"s3://{BUCKET}/out"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    render_dataset(folder, IMAGES)
    return folder


@pytest.fixture
def uploaded(s3: S3Server, images: Path) -> dict[str, bytes]:
    """The images in the bucket: loose files with an awkward name, and a shard."""
    content = {f"my files/ü+{path.name}": path.read_bytes() for path in sorted((images / "files").iterdir())}
    content["shards/00000.tar"] = (images / "shards" / "00000.tar").read_bytes()
    for key, data in content.items():
        s3.put(key, data)
    s3.requests.clear()
    return content


def recipe_of(s3: S3Server, *paths: str, **sections: Any) -> Recipe:
    return parse(document_of(s3, *paths) | sections)


def document_of(s3: S3Server, *paths: str) -> dict[str, Any]:
    return demo_recipe([Path("-")], Path("-")) | {
        "input": {"paths": [f"s3://{BUCKET}/{path}" for path in paths or ("my files", "shards/{00000..00000}.tar")]},
        "model": {"source": "stub"},
        "prepare": {"max_pixels": 20_000},
        "storage": {"endpoint": s3.endpoint, "region": "us-east-1"},
        "output": {"path": OUT},
    }


def rows_of(s3: S3Server, part: str = "data") -> list[dict[str, Any]]:
    found = s3.client.list_objects_v2(Bucket=BUCKET, Prefix=f"out/{part}/").get("Contents", ())
    bodies = [s3.client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read() for entry in found]
    return [row for body in bodies for row in pq.read_table(pa.BufferReader(body)).to_pylist()]


def test_every_image_gets_its_own_caption_and_a_second_run_opens_nothing(
    s3: S3Server, uploaded: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(s3)
    balance = pipeline.run(caption_job(recipe))
    assert balance.balanced and balance.finished == IMAGES
    rows = rows_of(s3)
    assert len({row["id"] for row in rows}) == len(rows) == IMAGES
    for row in rows:
        key = row["source"].removeprefix(f"s3://{BUCKET}/")
        image = image_in_shard(uploaded[key], row["key"]) if key.endswith(".tar") else uploaded[key]
        assert row["caption"] == expected_caption(image, recipe)
    assert {row["key"] for row in rows if row["unit"] == 0} == {
        key.removeprefix("my files/") for key in uploaded if key.startswith("my files/")
    }
    sources = [request for request in s3.of("GET") if request.key in uploaded]
    # Each is read once, and the first samples of the first shard once more while planning.
    assert len(sources) == len(uploaded) + 1 and all(request.if_match for request in sources)
    puts = [request.key for request in s3.of("PUT")]
    # The lease is renewed, run.json counts rows at the end, and the status is written again and again.
    puts = [key for key in puts if key not in ("out/lease.json", "out/run.json", "out/status.json")]
    assert len(puts) == len(set(puts)) and "out/_SUCCESS" in puts

    s3.requests.clear()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document_of(s3)))
    assert cli.main(["caption", str(tmp_path / "recipe.yaml")]) == 0
    asked = [request for request in s3.requests if request.key]  # the endpoint itself is asked whether it answers
    assert not [request for request in asked if not request.key.startswith("out/") and "out%2F" not in request.query]
    assert not [request for request in s3.of("PUT") if request.key.startswith("out/data")]
    capsys.readouterr()
    assert cli.main(["verify", OUT, f"storage.endpoint={s3.endpoint}", "storage.region=us-east-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["captioned"] == IMAGES


def test_sources_that_changed_since_the_plan_are_failed_and_never_joined(
    s3: S3Server, uploaded: dict[str, bytes]
) -> None:
    recipe = recipe_of(s3)
    assert pipeline.run(caption_job(recipe), limit=1).finished == 1
    first = rows_of(s3)[0]["source"].removeprefix(f"s3://{BUCKET}/")
    changed, gone, *_ = [key for key in uploaded if key not in (first, "shards/00000.tar")]
    s3.put(changed, uploaded[first])  # another image under the planned name
    s3.client.delete_object(Bucket=BUCKET, Key=gone)
    s3.put("shards/00000.tar", uploaded["shards/00000.tar"] + bytes(10240))
    balance = pipeline.run(caption_job(recipe))
    failed = {row["source"].removeprefix(f"s3://{BUCKET}/"): row for row in rows_of(s3, "failed")}
    assert {key: row["code"] for key, row in failed.items()} == {
        changed: "source_changed",
        gone: "source_missing",
        "shards/00000.tar": "source_changed",
    }
    assert balance.balanced and balance.finished == IMAGES // 2 - 2
    assert failed["shards/00000.tar"]["unit_rows"] == failed["shards/00000.tar"]["index"] + 1
    assert re.fullmatch(r"planned: \d+ bytes, etag:\S+; found: \d+ bytes, etag:\S+", failed[changed]["detail"])
    retried = pipeline.run(caption_job(recipe), retry={"source_changed"})
    assert retried.balanced and (retried.finished, retried.failed) == (IMAGES - 1, 1)
    rows = {row["source"].removeprefix(f"s3://{BUCKET}/"): row for row in rows_of(s3)}
    assert rows[changed]["caption"] == expected_caption(uploaded[first], recipe)


def test_a_shard_that_is_partly_done_is_not_fetched_where_it_is(s3: S3Server) -> None:
    content = bitmaps_in_a_shard(14)
    s3.put("large/0.tar", content)
    recipe = recipe_of(s3, "large")
    assert pipeline.run(caption_job(recipe), limit=10).finished == 10
    s3.requests.clear()
    assert pipeline.run(caption_job(recipe)).finished == 14
    ranges = [(request.range or "").removeprefix("bytes=").split("-") for request in s3.of("GET", "large/")]
    assert sum(int(end) + 1 - int(start) for start, end in ranges) < 0.6 * len(content)
    rows = sorted(rows_of(s3), key=lambda row: row["index"])
    assert [(row["key"], row["unit_rows"]) for row in rows] == [
        (f"{n:05d}", 14 if n == 13 else None) for n in range(14)
    ]
    for row in rows:
        assert row["caption"] == expected_caption(image_in_shard(content, row["key"]), recipe)


def bitmaps_in_a_shard(images: int) -> bytes:
    """A shard of images of 3 MB, all different."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(images):
            image = io.BytesIO()
            Image.new("RGB", (1000, 1000), (number, 2 * number, 255 - number)).save(image, "BMP")
            info = tarfile.TarInfo(f"{number:05d}.bmp")
            info.size = len(image.getvalue())
            tar.addfile(info, io.BytesIO(image.getvalue()))
    return buffer.getvalue()


def test_reads_that_break_off_are_tried_again_and_lose_nothing(s3: S3Server, uploaded: dict[str, bytes]) -> None:
    seen: set[tuple[str, str | None]] = set()

    def every_first_read(request: Request) -> str | None:
        if request.method != "GET" or request.key not in uploaded or (request.key, request.range) in seen:
            return None
        seen.add((request.key, request.range))
        return "short"

    s3.fault = every_first_read
    balance = pipeline.run(caption_job(recipe_of(s3)))
    assert len(s3.faulted) == len(uploaded) + 1  # and the look at the first shard
    assert balance.balanced and (balance.finished, balance.failed) == (IMAGES, 0)


def test_an_output_that_is_denied_stops_the_run_in_one_sentence_and_can_be_resumed(
    s3: S3Server, uploaded: dict[str, bytes]
) -> None:
    recipe = recipe_of(s3)
    s3.fault = lambda request: "denied" if request.method == "PUT" and "/data/" in request.key else None
    with pytest.raises(
        SystemFailure, match=r"output\.path: s3://bucket/out/data/.* cannot be written \(S3 denies access\)"
    ):
        pipeline.run(caption_job(recipe))
    s3.fault = None
    assert pipeline.run(caption_job(recipe)).finished == IMAGES


def test_an_expired_login_is_not_taken_for_bad_images(s3: S3Server, uploaded: dict[str, bytes]) -> None:
    s3.fault = lambda request: "expired" if request.method == "GET" and request.key in uploaded else None
    with pytest.raises(SystemFailure, match=r"cannot be read \(S3 answers ExpiredToken\)") as caught:
        pipeline.run(caption_job(recipe_of(s3)))
    assert "AKID" not in str(caught.value)
    assert rows_of(s3, "failed") == []
