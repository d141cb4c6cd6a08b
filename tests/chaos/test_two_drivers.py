"""Two drivers want one output: their clocks differ, one is paused and wakes again, and storage fails now and then.

The ledger balances to the row, and no row stands twice, whatever the tasks of the lost driver write late. Run as a
program, this file is a `caprl-ray caption` with short leases and a clock that is set.
"""

import collections
import hashlib
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from caprl_ray import cli
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.output import holder, lease
from caprl_ray.recipe.load import parse
from tests.checkout import ROOT
from tests.expected import expected_caption
from tests.s3_server import BUCKET, Request, S3Server

IMAGES = 160
RENEWAL_S, EXPIRY_S = 1.5, 9.0
AN_HOUR = 3600
HELD_S = 200.0
FAULTS = ("slow_down", "reset", "lost")


@dataclass
class Storage:
    """The server's hook: some requests fail, and a few writes are held until the other driver has come far enough."""

    chance: random.Random = field(default_factory=lambda: random.Random(4))
    written: list[str] = field(default_factory=list)
    on_its_way: threading.Event = field(default_factory=threading.Event)
    """The first driver has written two objects, and a third one travels slowly."""
    overtaken: threading.Event = field(default_factory=threading.Event)
    """The second driver has written an object."""
    over: threading.Event = field(default_factory=threading.Event)
    """The first driver has ended."""

    def __call__(self, request: Request) -> str | None:
        if request.method != "PUT":
            return self.fault()
        if request.key.startswith("out/data/000001-") and self.committed(1) == 2 and not self.on_its_way.is_set():
            self.on_its_way.set()
            self.overtaken.wait(HELD_S)
            self.written.append(request.key)
            return None
        if request.key.startswith("out/data/000002-"):
            if self.overtaken.is_set():
                self.over.wait(HELD_S)
            self.overtaken.set()
        self.written.append(request.key)
        return self.fault()

    def fault(self) -> str | None:
        return self.chance.choice(FAULTS) if self.chance.random() < 0.02 else None

    def committed(self, number: int) -> int:
        """How many objects the holder of this lease has written."""
        return len({key for key in self.written if key.startswith(f"out/data/{number:06d}-")})

    def late(self) -> set[str]:
        """The objects of the first lease that were written after the fence of the second."""
        after = self.written[self.written.index("out/fence/000002.json") :]
        return {key for key in after if key.startswith("out/data/000001-")}


@dataclass
class Drivers:
    """Drivers of one recipe, each with a Ray of its own."""

    folder: Path
    began: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, clock_s: float = 0) -> subprocess.Popen[bytes]:
        """Begin another driver whose clock is wrong by so much."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "CAPRL_RAY_STUB_CAPTION_S": "0.1-0.4"}
        command = [sys.executable, __file__, str(self.folder / "recipe.yaml"), str(clock_s)]
        with open(self.log(len(self.began)), "wb") as log:
            self.began.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return self.began[-1]

    def log(self, number: int) -> Path:
        return self.folder / f"{number}.log"

    def said(self, driver: subprocess.Popen[bytes]) -> str:
        return self.log(self.began.index(driver)).read_text()

    def end(self) -> None:
        """Let none outlive the test."""
        for driver in self.began:
            with suppress(ProcessLookupError):
                driver.send_signal(signal.SIGCONT)
                driver.terminate()
            with suppress(subprocess.TimeoutExpired):
                driver.wait(20)
            driver.kill()


def wait(condition: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.02)


def stored(s3: S3Server) -> dict[str, list[dict[str, Any]]]:
    """The rows of each object, as others see them."""
    found = s3.client.list_objects_v2(Bucket=BUCKET, Prefix="out/data/").get("Contents", ())
    bodies = {entry["Key"]: s3.client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read() for entry in found}
    return {key: pq.read_table(pa.BufferReader(body)).to_pylist() for key, body in bodies.items()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_drivers_with_pauses_and_wrong_clocks_write_every_row_once(
    s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEWAL_S", RENEWAL_S)
    monkeypatch.setattr(lease, "EXPIRY_S", EXPIRY_S)
    render_dataset(tmp_path / "images", 2 * IMAGES)
    images = {path.name: path.read_bytes() for path in (tmp_path / "images" / "files").iterdir()}
    for name, content in images.items():
        s3.put(f"in/{name}", content)
    where = {"endpoint": s3.endpoint, "region": "us-east-1", "timeout_s": 300}
    document = demo_recipe([Path("-")], Path("-")) | {
        "input": {"paths": [f"s3://{BUCKET}/in"]},
        "model": {"source": "stub", "engine": {"max_num_seqs": 4}},
        "prepare": {"max_pixels": 20_000},
        "storage": where,
        "output": {"path": f"s3://{BUCKET}/out", "rows_per_object": 8},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    s3.fault = storage = Storage()
    drivers = Drivers(tmp_path)
    try:
        first = drivers.start(clock_s=AN_HOUR)
        wait(lambda: storage.on_its_way.is_set() or first.poll() is not None)
        assert cli.main(["caption", str(tmp_path / "recipe.yaml")]) == 2
        assert f"process {first.pid} on" in capsys.readouterr().err
        assert first.poll() is None, drivers.said(first)

        first.send_signal(signal.SIGSTOP)
        second = drivers.start(clock_s=-AN_HOUR)
        wait(lambda: storage.overtaken.is_set() or second.poll() is not None)
        second.send_signal(signal.SIGSTOP)
        time.sleep(RENEWAL_S)  # less than it takes to lose the lease
        second.send_signal(signal.SIGCONT)
        first.send_signal(signal.SIGCONT)
        assert first.wait(120) == 1, drivers.said(first)
        assert "another run has taken its lease" in drivers.said(first)
        storage.over.set()
        assert second.wait(240) == 0, drivers.said(second)
    finally:
        storage.overtaken.set()
        storage.over.set()
        drivers.end()
        s3.fault = None
    assert storage.late(), "the lost driver wrote nothing late"
    objects = stored(s3)
    assert not storage.late() & objects.keys()

    recipe, rows = parse(document), list(itertools.chain(*objects.values()))
    assert collections.Counter(row["key"] for row in rows) == collections.Counter(images.keys())
    for row in rows:
        assert row["sha256"] == hashlib.sha256(images[row["key"]]).hexdigest()
        assert row["caption"] == expected_caption(images[row["key"]], recipe)
    capsys.readouterr()
    assert (
        cli.main(["verify", f"s3://{BUCKET}/out", f"storage.endpoint={s3.endpoint}", "storage.region=us-east-1"]) == 0
    )
    assert re.search(rf"{IMAGES} captioned( \([^)]*\))?, 0 failed$", capsys.readouterr().out.strip())


if __name__ == "__main__":
    real, clock_s = holder.now, float(sys.argv[2])
    holder.now = lambda: real() + timedelta(seconds=clock_s)
    lease.RENEWAL_S, lease.EXPIRY_S = RENEWAL_S, EXPIRY_S
    sys.exit(cli.main(["caption", sys.argv[1]]))
