"""Storage fails during a whole run: for a moment, and lastingly at each step. The same command then finishes it."""

import io
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from caprl_ray import cli
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.output import lease
from caprl_ray.recipe.load import parse
from tests.expected import expected_caption, image_in_shard
from tests.s3_server import BUCKET, Request, S3Server

pytestmark = pytest.mark.usefixtures("ray_cluster")
IMAGES = 60
OUT = f"s3://{BUCKET}/out"


@dataclass
class Job:
    """A recipe in a file, its images in the bucket, and the command."""

    s3: S3Server
    folder: Path
    images: dict[str, bytes]
    document: dict[str, Any]
    capsys: pytest.CaptureFixture[str]

    def caption(self, *arguments: str) -> tuple[int, str]:
        """The exit code, and what it said on stderr."""
        self.capsys.readouterr()
        code = cli.main(["caption", str(self.folder / "recipe.yaml"), *arguments])
        return code, self.capsys.readouterr().err

    def failed(self, *arguments: str) -> str:
        """The message of a run that must fail: one line. All objects in the output are complete."""
        code, said = self.caption(*arguments)
        assert code == 1, said
        said = said.partition("\n")[2] if ": caption " in said.partition("\n")[0] else said  # the run's first line
        assert said.startswith("caprl-ray: ") and said.count("\n") <= 2, said
        assert "Traceback" not in said and "--debug" not in said, said
        self.s3.fault = None
        self.rows()
        return said

    def rows(self) -> dict[str, dict[str, Any]]:
        """The captioned rows by id. Every object of the output must be complete."""
        found: list[dict[str, Any]] = []
        for entry in self.s3.client.list_objects_v2(Bucket=BUCKET, Prefix="out/").get("Contents", ()):
            if entry["Key"].endswith(".parquet"):
                body = self.s3.client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
                found += pq.read_table(io.BytesIO(body)).to_pylist() if "/data/" in entry["Key"] else []
        rows = {row["id"]: row for row in found}
        assert len(rows) == len(found)
        return rows

    def check_finished(self) -> None:
        """Every image has its own caption, once, and `verify` says so."""
        recipe, rows = parse(self.document), self.rows()
        assert len(rows) == IMAGES
        for row in rows.values():
            key = row["source"].removeprefix(f"s3://{BUCKET}/")
            content = self.images[key]
            image = image_in_shard(content, row["key"]) if key.endswith(".tar") else content
            assert row["caption"] == expected_caption(image, recipe)
        assert cli.main(["verify", OUT, f"storage.endpoint={self.s3.endpoint}", "storage.region=us-east-1"]) == 0


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("images")
    render_dataset(folder, IMAGES)
    return {f"in/{p.parent.name}/{p.name}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def job(s3: S3Server, images: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Job:
    for key, content in images.items():
        s3.put(key, content)
    document = demo_recipe([Path("-")], Path("-")) | {
        "input": {"paths": [f"s3://{BUCKET}/in/files", f"s3://{BUCKET}/in/shards"]},
        "model": {"source": "stub"},
        "prepare": {"max_pixels": 20_000},
        "storage": {"endpoint": s3.endpoint, "region": "us-east-1", "timeout_s": 1.0},
        "output": {"path": OUT, "rows_per_object": 32},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    return Job(s3, tmp_path, images, document, capsys)


STEPS = {
    "listing": lambda r: r.method == "GET" and "prefix=in" in r.query,
    "plan": lambda r: r.method == "GET" and r.key.startswith("out/plan/"),
    "images": lambda r: r.method == "GET" and r.key.startswith("in/"),
    "commit": lambda r: r.method == "PUT" and r.key.startswith("out/data/"),
    "committed": lambda r: r.method == "GET" and r.key.startswith("out/data/"),
    "lease": lambda r: r.method == "PUT" and r.key == "out/lease.json" and r.if_match,
}
KINDS = ["slow_down", "reset", "short", "lost", "hang"]


@dataclass
class Share:
    """Fails a fifth of all requests and the first one of each step, in each way, never twice in a row."""

    random: random.Random
    kinds: Iterator[str] = field(default_factory=lambda: cycle(KINDS))
    failed: Counter[str] = field(default_factory=Counter)
    before: set[tuple[str, ...]] = field(default_factory=set)

    def __call__(self, request: Request) -> str | None:
        asked = (request.method, request.key, request.query, str(request.range))
        steps = [step for step, is_of in STEPS.items() if is_of(request)]
        if asked in self.before or (self.random.random() > 0.2 and all(self.failed[step] for step in steps)):
            self.before.discard(asked)
            return None
        self.before.add(asked)
        self.failed.update(steps)
        return next(self.kinds)


@pytest.mark.slow
def test_a_share_of_failing_requests_changes_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", 0.3)
    job.s3.fault = share = Share(random.Random(1))
    code, said = job.caption()
    job.s3.fault = None
    assert code == 0, said
    assert set(share.failed) == set(STEPS) and set(job.s3.fired) == set(KINDS), (share.failed, job.s3.fired)
    job.check_finished()


@contextmanager
def broken(s3: S3Server, step: str, kind: str, after: int = 0) -> Iterator[None]:
    """Every request of a step fails, after the first few."""
    seen = 0

    def fault(request: Request) -> str | None:
        nonlocal seen
        seen += bool(STEPS[step](request))
        return kind if STEPS[step](request) and seen > after else None

    s3.fired.clear()
    s3.fault = fault
    yield
    s3.fault = None
    assert s3.fired[kind] >= (1 if kind == "hang" else 2), f"{step} was not tried often enough to show anything"


def test_faults_that_stay_end_the_run_in_a_sentence_and_the_same_command_goes_on(job: Job) -> None:
    with broken(job.s3, "listing", "slow_down"):
        assert f"s3://{BUCKET}/in/files cannot be listed (S3 answers SlowDown)" in job.failed()
    with broken(job.s3, "plan", "reset"):
        assert f"{OUT}/plan/00000.parquet" in (said := job.failed()) and "S3 gave no answer" in said
    with broken(job.s3, "images", "short", after=9):
        assert f"s3://{BUCKET}/in/" in (said := job.failed()) and "S3's answer broke off" in said
    assert job.caption("--limit", "33")[0] == 0
    first = job.rows()
    assert 32 <= len(first) < IMAGES
    with broken(job.s3, "commit", "hang"):
        assert f"output.path: {OUT}/data/" in (said := job.failed()) and "(S3 gave no answer: ReadTimeout" in said
    with broken(job.s3, "committed", "slow_down"):
        assert f"{OUT}/data/" in (said := job.failed()) and "S3 answers SlowDown" in said
    assert job.rows() == first

    code, said = job.caption()
    assert code == 0, said
    assert {id_: row for id_, row in job.rows().items() if id_ in first} == first
    job.check_finished()


@pytest.mark.parametrize("kind", [pytest.param("slow_down", marks=pytest.mark.slow), "hang"])
def test_a_run_whose_lease_cannot_be_renewed_stops_before_another_may_take_it(
    job: Job, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with monkeypatch.context() as patch, broken(job.s3, "lease", kind):
        patch.setattr(lease, "RENEWAL_S", 0.2)
        patch.setattr(lease, "EXPIRY_S", 1.5)
        assert f"output.path: {OUT} is no longer held by this run (its lease cannot be renewed" in job.failed()
    assert job.caption()[0] == 0
    job.check_finished()
