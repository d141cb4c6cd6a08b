"""`ray job submit` to a head node with token authentication: exit code, logs, uploaded files, stop and resume."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
import yaml
from prometheus_client.parser import text_string_to_metric_families

from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.recipe.load import parse
from caprl_ray.watch.metrics import NAMES
from tests.checkout import ROOT
from tests.expected import expected_caption
from tests.export.outputs import make
from tests.ray_head import RAY, Head, new_head
from tests.s3_server import BUCKET, S3Server

IMAGES = 400
OUR_TAGS = ("outcome", "code", "kind", "stage", "state")
CANARY = "canary-77c1f0"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with new_head(cpus=2, settings={"RAY_metrics_report_interval_ms": "500"}) as head:
        yield head


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    render_dataset(folder, 2 * IMAGES)
    return folder / "files"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout after a user's work: with recipes, data, outputs, an environment and secrets."""
    folder = tmp_path_factory.mktemp("checkout") / "caprl_ray"
    ignored = shutil.ignore_patterns(".git", ".venv", "demo", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=ignored)
    for name in SHIPPED + KEPT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(CANARY)
    (folder / "jobs" / "probe.py").write_text(PROBE)
    return folder


SHIPPED = ["recipe.yaml", "recipes/first.yaml", "recipes/news/second.yml"]
KEPT = [
    *(".env", ".env.local", ".aws/credentials", ".ray/auth_token", ".netrc", "id_ed25519", "server.pem", "token.txt"),
    *("credentials.json", "credentials.yaml", "secrets.yml", "recipes/.env", "recipes/secret.yaml", "jobs/gcp.key"),
    *("demo/images/scene.png", "data/00000.parquet", "rows.parquet", "00000.tar", "recipes/00000.tar.gz", "a", "x.zip"),
    *("captions/data/0.parquet", "jobs/rows.parquet", "caprl_ray/.env", "caprl_ray/embedded/images.tar", "run.log"),
    *(".venv/bin/python", "venv/lib/x.py", ".git/config", "node_modules/x.js", "caprl_ray/__pycache__/cli.pyc"),
]
PROBE = """
import json, os, caprl_ray
files = [os.path.join(folder, name) for folder, _, names in os.walk(".") for name in names]
print("probe", json.dumps({
    "files": {os.path.normpath(path): os.path.getsize(path) for path in files},
    "package": os.path.relpath(caprl_ray.__file__),
    "environment": dict(os.environ),
}))
"""


def ray_job(
    head: Head, *arguments: object, folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, "job", *map(str, arguments)],
        cwd=folder,
        env=head.client | {"HF_TOKEN": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )


def submit(
    head: Head, name: str, *command: object, folder: Path = ROOT, options: Iterable[str] = ()
) -> subprocess.CompletedProcess[str]:
    ours = ("--working-dir", ".", "--submission-id", name, *options)
    return ray_job(head, "submit", *ours, "--", *command, folder=folder)


def caprl_ray(head: Head, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "caprl_ray", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=head.client, capture_output=True, text=True, timeout=240, check=False)


def seen_while(run: "Future[Any]", head: Head, out: Path) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Until a run ends: the highest value of each metric by its tags of our own, and what `status` says elsewhere."""
    metrics: dict[str, dict[str, float]] = defaultdict(dict)
    statuses = []
    while not run.done():
        for name, tags, value in scraped(head):
            metrics[name][tags] = max(value, metrics[name].get(tags, 0.0))
        if (out / "status.json").exists():
            look = subprocess.run(
                [sys.executable, "-m", "caprl_ray", "status", str(out), "--json"],
                cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            statuses.append(json.loads(look.stdout))
        time.sleep(0.5)
    return metrics, statuses


def scraped(head: Head) -> Iterator[tuple[str, str, float]]:
    """Every metric of ours that Prometheus would find now: its name, the values of its tags, and its value."""
    with suppress(OSError), urllib.request.urlopen(head.metrics, timeout=10) as answer:
        for family in text_string_to_metric_families(answer.read().decode()):
            for sample in family.samples:
                ours = [
                    sample.labels[tag] for tag in ("outcome", "code", "kind", "stage", "state") if tag in sample.labels
                ]
                yield sample.name, " ".join(filter(None, ours)), sample.value


def job(head: Head, name: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/{name}", headers=head.authorization)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.load(answer))


def stub_recipe(images: Path, out: Path, **sections: Any) -> dict[str, Any]:
    return demo_recipe([images], out) | {"model": {"source": "stub"}, "prepare": {"max_pixels": 20_000}} | sections


def verify(out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "caprl_ray", "verify", str(out), "--json"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    return dict(json.loads(said.stdout))


def test_a_submitted_job_captions_everything_and_shows_no_secret(head: Head, images: Path, tmp_path: Path) -> None:
    recipe, out = stub_recipe(images, tmp_path / "out"), tmp_path / "out"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ("python", "jobs/caption.py", tmp_path / "recipe.yaml", "output.rows_per_object=100")
    slow = ("--runtime-env-json", json.dumps({"env_vars": {"CAPRL_RAY_STUB_CAPTION_S": "1-5"}}))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(submit, head, "whole", *command, options=slow)
        metrics, statuses = seen_while(running, head, out)
    run = running.result()
    assert run.returncode == 0, run.stdout
    check_metrics(metrics)
    check_statuses(statuses, run.stdout)
    assert re.search(rf"{out}: {IMAGES} images: {IMAGES} captioned( \([^)]*\))?, 0 failed", run.stdout), run.stdout
    assert job(head, "whole")["status"] == "SUCCEEDED" and job(head, "whole")["driver_exit_code"] == 0
    assert verify(out)["captioned"] == IMAGES and (out / "_SUCCESS").exists()
    rows = pq.read_table(out / "data").to_pylist()
    assert len(rows) == len({row["id"] for row in rows}) == IMAGES
    assert all(row["caption"] == expected_caption(Path(row["source"]).read_bytes(), parse(recipe)) for row in rows)
    everything = [run.stdout, json.dumps(job(head, "whole"))]
    everything += [path.read_text() for path in out.rglob("*.json")]
    assert not [text for text in everything if CANARY in text or head.token_file.read_text() in text]


def check_metrics(metrics: dict[str, dict[str, float]]) -> None:
    """Every emitted metric was found during the run, except those that this run had no values for."""
    without = {"caprl_ray_flags_total", "caprl_ray_gpu_seconds_total"}
    found = {name.removeprefix("ray_") for name in metrics if name.startswith("ray_caprl_ray_")}
    assert found == NAMES - without
    assert 0 < metrics["ray_caprl_ray_images_total"]["captioned"] <= IMAGES
    assert 0 < metrics["ray_caprl_ray_committed_images_total"][""] <= IMAGES
    assert metrics["ray_caprl_ray_planned_images"][""] == IMAGES
    assert metrics["ray_caprl_ray_replicas"] == {"running": 1, "starting": ANY, "lost": 0}
    assert 0 < metrics["ray_caprl_ray_requests"]["running"] <= metrics["ray_caprl_ray_request_places"][""]
    assert metrics["ray_caprl_ray_tokens_total"].keys() == {"prompt", "caption", "decoded"}
    assert metrics["ray_caprl_ray_stage_rows_total"].keys() == {"prepare", "caption"}


def check_statuses(statuses: list[dict[str, Any]], log: str) -> None:
    """Another process sees the run go on, and the job's log has a line after fifteen seconds."""
    assert {"running", "complete"} <= {seen["state"] for seen in statuses} <= {"running", "ended", "complete"}
    running = [seen for seen in statuses if seen["state"] == "running"]
    assert all(seen["age_s"] < 40 and seen["rates"]["planned"] in (IMAGES, None) for seen in running)
    assert (statuses[-1]["done"], statuses[-1]["failed"], statuses[-1]["ended"]) == (IMAGES, 0, "")
    assert re.search(rf"^\d+ / {IMAGES} images \([\d.]+ %\)  .*replicas 1 running", log, re.MULTILINE), log


@pytest.mark.slow
@pytest.mark.engine
def test_the_engines_own_metrics_are_those_of_rays_board(head: Head, images: Path, tmp_path: Path) -> None:
    from ray.dashboard.modules.metrics.dashboards import data_llm_dashboard_panels

    out, engine = tmp_path / "out", {"disable_log_stats": False}
    recipe = demo_recipe([images], out) | {"model": {"source": "embedded", "engine": engine}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(submit, head, "real", "python", "jobs/caption.py", tmp_path / "recipe.yaml")
        metrics, _ = seen_while(running, head, out)
    assert running.result().returncode == 0, running.result().stdout
    drawn = re.findall(r"ray_vllm_\w+", Path(data_llm_dashboard_panels.__file__).read_text())
    # Prefix caching is off. A gauge may come and go between two scrapes of so short a run.
    kept = {name for name in drawn if re.search("_(total|sum|count|bucket)$", name) and "prefix_cache" not in name}
    assert kept and kept <= metrics.keys()
    assert max(metrics["ray_vllm_generation_tokens_total"].values()) > 0


def test_without_the_token_nothing_can_be_submitted(head: Head, tmp_path: Path) -> None:
    run = ray_job(head, "submit", "--", "true", HOME=str(tmp_path), RAY_AUTH_MODE="disabled")
    assert run.returncode == 1 and "Unauthorized: Missing authentication token" in run.stdout
    run = ray_job(head, "submit", "--", "true", RAY_AUTH_TOKEN="0" * 64)
    assert run.returncode == 1 and "AuthenticationError" in run.stdout


@pytest.mark.slow
def test_a_fault_in_the_recipe_is_a_failed_job_that_says_it_and_submit_restarts_none(
    head: Head, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(stub_recipe(images, tmp_path / "out")))
    run = submit(head, "lost", "python", "jobs/caption.py", tmp_path / "recipe.yaml", "output.path=captions")
    assert run.returncode == 1
    assert job(head, "lost")["status"] == "FAILED" and job(head, "lost")["driver_exit_code"] == 2
    sentence = r"\ncaprl-ray: output\.path: /\S+/captions is in this job's working directory, which Ray removes"
    assert re.search(sentence, run.stdout) and "Traceback" not in run.stdout
    assert not (tmp_path / "out").exists()

    recipe = tmp_path / "recipe.yaml"
    refused = caprl_ray(head, "submit", recipe, "output.path=captions")
    assert refused.returncode == 2 and "part 1/1 was refused; ray job logs" in refused.stderr, refused.stderr
    assert refused.stdout.count("submitted as") == 1, "the same command would be refused again"
    done = caprl_ray(head, "submit", recipe)
    assert done.returncode == 0 and f"{tmp_path / 'out'}: 1 of 1 parts are done" in done.stdout, done.stderr
    assert verify(tmp_path / "out")["captioned"] == IMAGES


def test_a_job_ships_code_and_recipes_and_neither_data_nor_secrets(head: Head, checkout: Path) -> None:
    run = submit(head, "probe", "python", "jobs/probe.py", folder=checkout)
    assert run.returncode == 0, run.stdout
    seen = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("probe "))[6:])
    files = seen["files"]
    assert not files.keys() & set(KEPT)
    assert files.keys() >= {*SHIPPED, "jobs/caption.py", "caprl_ray/pipeline.py", "caprl_ray/engines/stub.py"}
    assert files["caprl_ray/embedded/model/model.safetensors"] > 3_000_000
    assert files["caprl_ray/embedded/answerer/model.safetensors"] > 1_000_000
    assert {name.partition("/")[0] for name in files if "/" in name} == {"caprl_ray", "jobs", "recipes"}
    assert {Path(name).suffix for name in files if "/" not in name} <= {".yaml", ".yml"}
    assert sum(files.values()) < 10_000_000
    assert seen["package"] == "caprl_ray/__init__.py"  # the uploaded code, not the code installed in the image
    assert CANARY not in seen["environment"].values()


# As an output of more than 20,000 rows is exported.
IN_TASKS = (
    "import runpy; from caprl_ray.export import work; work.ROWS_HERE = 0; "
    "runpy.run_path('jobs/export.py', run_name='__main__')"
)


@pytest.mark.slow
def test_an_export_is_submitted_like_captions_and_from_and_to_a_bucket(
    head: Head, s3: S3Server, tmp_path: Path
) -> None:
    made = make(tmp_path)
    tars = ("--to", "webdataset", "--out", tmp_path / "tars")
    run = submit(head, "tars", "python", "-c", IN_TASKS, made.path, *tars)
    assert run.returncode == 0, run.stdout
    samples = {}
    for path in sorted((tmp_path / "tars").glob("*.tar")):
        for sample in wds.WebDataset(str(path), shardshuffle=False):
            told = json.loads(sample["caption.json"])
            assert told["id"] not in samples and sample["caption.txt"].decode() == told["caption"]
            samples[told["id"]] = told["caption"], hashlib.sha256(sample.get("jpg") or sample["png"]).hexdigest()
    assert samples == {i: (row["caption"], row["sha256"]) for i, row in made.finished.items()}

    for path in (path for path in Path(made.path).rglob("*") if path.is_file()):
        s3.put(f"out/{path.relative_to(made.path)}", path.read_bytes())
    there = ("storage.endpoint=" + s3.endpoint, "storage.region=us-east-1")
    command = ("python", "jobs/export.py", f"s3://{BUCKET}/out", *there)
    run = submit(head, "lines", *command, "--to", "jsonl", "--out", f"s3://{BUCKET}/lines")
    assert run.returncode == 0, run.stdout
    lines = s3.client.get_object(Bucket=BUCKET, Key="lines/000000.jsonl")["Body"].read().decode().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": i, "image": row["key"], "caption": row["caption"]} for i, row in sorted(made.finished.items())
    ]


@pytest.mark.slow
def test_a_score_is_submitted_like_captions(head: Head, tmp_path: Path) -> None:
    made = make(tmp_path)
    keys = [row["key"] for row in made.finished.values() if row["source"].endswith(".png")]
    asked = [{"path": key, "question": "What is it?", "choices": ["red", "blue"], "answer": "red"} for key in keys]
    pq.write_table(pa.Table.from_pylist(asked), tmp_path / "questions.parquet")
    recipe = {
        "input": {"paths": [str(made.path)]},
        "model": {"source": "stub"},
        "replicas": {"gpus": 0},
        "score": {"questions": [{"path": str(tmp_path / "questions.parquet")}], "join": "path"},
        "output": {"path": str(tmp_path / "scores")},
    }
    (tmp_path / "score.yaml").write_text(yaml.safe_dump(recipe))
    run = submit(head, "scores", "python", "jobs/score.py", tmp_path / "score.yaml")
    assert run.returncode == 0, run.stdout
    rows = pq.read_table(tmp_path / "scores" / "data").to_pylist()
    captions = {row["key"]: row["caption"] for row in made.finished.values()}
    scored = {row["image_key"]: row["caption"] for row in rows if row["score"] is not None}
    assert scored == {key: captions[key] for key in keys}
    assert verify(tmp_path / "scores")["balanced"] and f"{tmp_path / 'scores'}: " in run.stdout


@pytest.mark.slow
def test_a_stopped_job_is_finished_by_the_same_command(
    head: Head, images: Path, checkout: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    model = {"source": "stub", "engine": {"max_num_seqs": 16}}
    recipe = stub_recipe(images, out, model=model, output={"path": str(out), "rows_per_object": 64})
    (checkout / "recipes" / "slow.yaml").write_text(yaml.safe_dump(recipe))
    command = ("python", "jobs/caption.py", "recipes/slow.yaml")
    slow = json.dumps({"env_vars": {"CAPRL_RAY_STUB_CAPTION_S": "1-4"}})
    submitted = ("submit", "--no-wait", "--working-dir", ".", "--runtime-env-json", slow, "--submission-id", "stopped")
    submitted = (*submitted, "--", *command)
    assert ray_job(head, *submitted, folder=checkout).returncode == 0
    head.wait(lambda: list(out.glob("data/*.parquet")))
    stop = ray_job(head, "stop", "stopped")
    assert stop.returncode == 0 and job(head, "stopped")["status"] == "STOPPED", stop.stdout
    kept = {path.name: os.stat(path).st_mtime_ns for path in out.glob("data/*.parquet")}
    before = {row["id"] for name in kept for row in pq.read_table(out / "data" / name).to_pylist()}
    assert 64 < len(before) < IMAGES and not (out / "_SUCCESS").exists()
    logs = ray_job(head, "logs", "stopped").stdout
    assert f"caprl-ray: stopped, with the {len(before)} finished images of this run committed" in logs, logs
    assert "for up to 3 s.\n" in logs, "Ray's own wait, which is shorter than output.stop_s"
    assert ".cc:" not in logs and "SIGTERM received" not in logs
    run = submit(head, "resumed", *command, folder=checkout)
    assert run.returncode == 0, run.stdout
    balance = verify(out)
    assert balance["captioned"] == IMAGES and (out / "_SUCCESS").exists()
    assert kept.items() <= {path.name: os.stat(path).st_mtime_ns for path in out.glob("data/*.parquet")}.items()
    rows = pq.read_table(out / "data").to_pylist()
    assert len(rows) == len({row["id"] for row in rows}) == IMAGES
    first, second = ([row for row in rows if (row["id"] in before) == part] for part in (True, False))
    assert all(
        row["caption"] == expected_caption(Path(row["source"]).read_bytes(), parse(recipe))
        for row in first[::8] + second[::16]
    )
