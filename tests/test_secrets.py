"""A canary in every place that may hold a credential appears in nothing that a run leaves."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.models.resolve import ALLOW_STUB
from tests.engines.test_endpoint import KEY, Reply, chat, refusal, serving
from tests.ray_head import Head, new_head
from tests.s3_server import BUCKET, S3Server

IMAGES = 12
SECRETS = {
    "AWS_ACCESS_KEY_ID": "canary-id-4c1a",
    "AWS_SECRET_ACCESS_KEY": "canary-key-90be",
    "AWS_SESSION_TOKEN": "canary-session-17d2",
    "HF_TOKEN": "canary-hub-55aa",
    "SERVICE_KEY": KEY,
    "OLD_SERVICE_KEY": "canary-old-3f08",
    ALLOW_STUB: "1",
}
CANARY = re.compile(rb"canary-")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with new_head(cpus=2, settings=SECRETS) as head:
        yield head


def run(
    head: Head, recipe: dict[str, Any], folder: Path, *overrides: str, command: str = "caption"
) -> subprocess.CompletedProcess[bytes]:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    line = [sys.executable, "-m", "caprl_ray", command, "--debug", str(path), *overrides]
    environment = head.client | SECRETS | {"RAY_ADDRESS": head.address}
    return subprocess.run(line, env=environment, capture_output=True, timeout=200, check=False)


def leaks(head: Head, s3: S3Server, *runs: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Places with a canary: output of runs, objects in the bucket, Ray's logs."""
    places = {f"run {number}": run.stdout + run.stderr for number, run in enumerate(runs)}
    for entry in s3.client.list_objects_v2(Bucket=BUCKET)["Contents"]:
        places[entry["Key"]] = s3.client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
    for folder, _, names in os.walk(head.folder):
        for path in (Path(folder, name) for name in names):
            if path.is_file() and not path.is_symlink():
                places[str(path)] = path.read_bytes()
    assert [name for name in places if name.startswith("out/data/")] and any("worker" in name for name in places)
    return sorted(name for name, content in places.items() if CANARY.search(content))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_credential_is_found_in_anything_that_a_run_leaves(head: Head, s3: S3Server, tmp_path: Path) -> None:
    render_dataset(tmp_path / "images", 2 * IMAGES, seed=8)
    for path in sorted((tmp_path / "images" / "files").iterdir()):
        s3.put(f"in/{path.name}", path.read_bytes())
    recipe = demo_recipe([Path("-")], Path("-")) | {
        "input": {"paths": [f"s3://{BUCKET}/in"]},
        "storage": {"endpoint": s3.endpoint, "region": "us-east-1"},
        "output": {"path": f"s3://{BUCKET}/out"},
        "quality": {"retries": [], "self_check": 0},  # each answer is one row's
    }
    answers: list[Reply] = [refusal(400), refusal(422)]  # their texts quote the key
    with serving(lambda _: answers.pop() if answers else chat()) as service:
        recipe["model"] = {"source": "embedded", "endpoint": service.url, "api_key_env": "OLD_SERVICE_KEY"}
        refused = run(head, recipe, tmp_path)
        assert refused.returncode and b"refused the key" in refused.stderr, refused.stderr[-2000:]
        recipe["model"]["api_key_env"] = "SERVICE_KEY"
        s3.fault = lambda request: "expired" if request.method == "GET" and request.key.startswith("in/") else None
        expired = run(head, recipe, tmp_path)
        s3.fault = None
        assert expired.returncode and b"ExpiredToken" in expired.stderr, expired.stderr[-2000:]
        done = run(head, recipe, tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        assert re.search(rb"10 captioned( \([^)]*\))?, 2 failed", done.stdout)
    told = run(head, recipe | {"storage": {"endpoint": "http://user:canary-endpoint@127.0.0.1"}}, tmp_path)
    named = run(head, recipe | {"model": {"endpoint": "http://host/v1?key=canary-endpoint"}}, tmp_path)
    assert told.returncode and named.returncode
    # In the engine's arguments, where a name says so, and where none does.
    recipe["output"] = {"path": f"s3://{BUCKET}/out/own"}
    inner = recipe | {"model": {"engine": {"model_loader_extra_config": {"auth_token": "canary-nested"}}}}
    innocent = recipe | {"model": {"source": "stub", "engine": {"additional_config": {"note": "canary-innocent"}}}}
    given = [
        run(head, recipe | {"model": {}}, tmp_path, "model.engine.hf_token=canary-hub"),
        run(head, inner, tmp_path),
    ]
    assert all(one.returncode and b"secret" in one.stderr for one in given), [one.stderr for one in given]
    kept = [run(head, innocent, tmp_path, command="preflight"), run(head, innocent, tmp_path)]
    assert [one.returncode for one in kept] == [0, 0] and b"(not shown)" in kept[0].stdout, kept[0].stderr[-2000:]
    assert not leaks(head, s3, refused, expired, done, told, named, *given, *kept)
