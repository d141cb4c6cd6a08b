"""The whole job over lists of images and other stores than S3, with its output in one of them, by the stub engine."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray.commands.demo import render_dataset
from caprl_ray.recipe.load import parse
from caprl_ray.storage import Storage, azure_blobs, gcs
from tests import azure_server, gcs_server
from tests.azure_server import AzureServer
from tests.expected import expected_caption, image_in_shard
from tests.gcs_server import GoogleServer
from tests.hub_server import REPOSITORY, HubServer

pytestmark = pytest.mark.slow
IMAGES = 40
GS, AZ = f"gs://{gcs_server.BUCKET}", f"az://{azure_server.CONTAINER}"


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[HubServer, GoogleServer, AzureServer]]:
    """The three stores. The environment says where they are."""
    servers = HubServer(), GoogleServer(), AzureServer()
    monkeypatch.setenv("HF_ENDPOINT", servers[0].endpoint)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", servers[1].endpoint)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", servers[2].connection)
    for module in (gcs, azure_blobs):
        module._client.cache_clear()
    yield servers
    for server in servers:
        server.stop()


def command(*arguments: str) -> str:
    """Run it in a process of its own: the stores' clients read the environment once."""
    done = subprocess.run(
        [sys.executable, "-m", "caprl_ray", *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert azure_server.KEY not in said
    return said


def rows_of(folder: str) -> list[dict[str, Any]]:
    storage, rows = Storage(), []
    for stored in storage.objects(f"{folder}/data", ".parquet"):
        with storage.open(stored) as stream:
            rows += pq.read_table(stream).to_pylist()
    return rows


@pytest.mark.parametrize("out", [f"{GS}/out", f"{AZ}/out"])
def test_lists_the_hub_and_other_stores_are_captioned_in_one_run_and_a_second_opens_nothing(
    servers: tuple[HubServer, GoogleServer, AzureServer], tmp_path: Path, out: str
) -> None:
    render_dataset(tmp_path / "images", IMAGES)
    files = sorted((tmp_path / "images" / "files").iterdir())
    images, shard = [file.read_bytes() for file in files], (tmp_path / "images/shards/00000.tar").read_bytes()
    hub, storage, table = servers[0], Storage(), io.BytesIO()
    pq.write_table(pa.table({"image": images[:5], "n": list(range(5))}), table)
    commit = hub.push({"data/train.parquet": table.getvalue(), "data/photos/a.jpg": images[5]})
    storage.put(f"{GS}/shards/00000.tar", shard)
    lines = [json.dumps({"path": f"photos/{number}.jpg", "number": number}) for number in range(6, 11)]
    storage.put(f"{AZ}/set/list.jsonl", "\n".join(lines).encode())
    for number in range(6, 11):
        storage.put(f"{AZ}/set/photos/{number}.jpg", images[number])
    (tmp_path / "list.csv").write_text("path,code_\n" + "".join(f"images/files/{f.name},007\n" for f in files[11:]))
    paths = [
        f"hf://datasets/{REPOSITORY}/data/*.parquet",
        f"hf://datasets/{REPOSITORY}/data/photos",
        f"{GS}/shards/{{00000..00000}}.tar",
        f"{AZ}/set/list.jsonl",
        str(tmp_path / "list.csv"),
    ]
    document = {
        "input": {"paths": paths},
        "model": {"source": "stub"},
        "replicas": {"gpus": 0},
        "prepare": {"max_pixels": 20_000},
        "output": {"path": out},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(document))
    command("caption", str(tmp_path / "recipe.yaml"))
    before = [len(server.requests) for server in (hub, *servers[1:])]
    hub.push({})
    assert "nothing to caption" in command("caption", str(tmp_path / "recipe.yaml"))
    assert len(hub.requests) == before[0]
    assert f"{IMAGES} captioned" in command("verify", out)
    rows, recipe = rows_of(out), parse(document)
    assert len(rows) == IMAGES
    for row in rows:
        number = row["n"] if row["n"] is not None else row["number"]
        where = row["source"]
        if where.endswith(".tar"):
            image = image_in_shard(shard, row["key"])
        elif where.startswith(str(tmp_path)):
            image = Path(where).read_bytes()
            assert row["code_"] == "007"
        else:
            image = images[5 if number is None else number]
        assert row["caption"] == expected_caption(image, recipe)
        assert not where.startswith("hf://") or f"@{commit}/" in where
