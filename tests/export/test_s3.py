"""From a bucket and to a bucket, in Ray tasks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from caprl_ray import cli
from caprl_ray.export import work
from tests.checkout import ROOT
from tests.export.outputs import make, write_sources
from tests.s3_server import BUCKET, S3Server


def test_an_export_between_buckets_in_tasks_has_the_bytes_of_a_local_one(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sources(tmp_path)
    for path in sorted(tmp_path.rglob("*.*")):
        s3.put(str(path.relative_to(tmp_path)), path.read_bytes())
    paths = [f"s3://{BUCKET}/{name}" for name in ("files", "shards", "table")]
    made = make(
        tmp_path, paths=paths, out=f"s3://{BUCKET}/out", storage={"endpoint": s3.endpoint, "region": "us-east-1"}
    )
    store = [f"storage.endpoint={s3.endpoint}", "storage.region=us-east-1"]

    def export(out: str, form: str) -> int:
        return cli.main(["export", str(made.path), *store, "--to", form, "--out", out])

    local = tmp_path / "local"
    assert export(str(local), "webdataset") == export(str(local / "lines"), "jsonl") == 0
    monkeypatch.setattr(work, "ROWS_HERE", 0)
    assert export(f"s3://{BUCKET}/tars", "webdataset") == export(f"s3://{BUCKET}/lines", "jsonl") == 0
    for path in [*local.glob("*.tar"), *(local / "lines").glob("*.jsonl")]:
        key = f"{'tars' if path.suffix == '.tar' else 'lines'}/{path.name}"
        assert s3.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == path.read_bytes()
    assert len(list(local.glob("*.tar"))) == 4
    assert s3.client.head_object(Bucket=BUCKET, Key="tars/_SUCCESS")["ContentLength"]
    s3.requests.clear()
    arguments = [str(made.path), *store, "--to", "webdataset", "--out", f"s3://{BUCKET}/tars"]
    job = [sys.executable, str(ROOT / "jobs" / "export.py"), *arguments]  # a process, because it may leave by os._exit
    ended = subprocess.run(
        job, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert [request.key for request in s3.of("PUT")] == ["tars/_SUCCESS"]  # nothing was written again
    assert not [request for request in s3.of("GET") if request.key.startswith(("files/", "shards/", "table/"))]
    capsys.readouterr()
    assert export(f"s3://{BUCKET}", "jsonl") == 2 and "is a whole bucket" in capsys.readouterr().err
    assert export(f"s3://{BUCKET}/out/x", "jsonl") == 2 and "lies in the output" in capsys.readouterr().err
