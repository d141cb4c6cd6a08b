"""The setting of a chaos run: a cluster of several nodes, an S3 server, and one dataset with every kind of input.

A run is the command line's own `caption`, repeated while its driver is killed. Then the bucket is checked: every image
once, with the caption of its own pixels, and the ledger balanced.
"""

import collections
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from caprl_ray import plan
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.embedded import scenes
from caprl_ray.output import ledger
from caprl_ray.output.committed import read_committed
from caprl_ray.output.ledger import Ledger
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.storage import Storage
from tests.chaos import victims
from tests.chaos.schedule import STORAGE_FAULTS, Kill, Point, Schedule
from tests.expected import expected_caption
from tests.ray_head import NOTICED_SOON, Head, new_head
from tests.s3_server import BUCKET, Request, S3Server

FILES, SHARDS, TABLES, ROWS_EACH = 100, 5, 5, 20  # 100 loose files, and shards and tables of 20 rows
# A shard's own text. It makes a block of captions too large for Ray to keep it with the driver, so it can be lost.
WORDS = b"words " * 1500
WORKERS = ((1, 1), (1, 1))  # CPUs and GPUs of each
DRIVERS, DRIVER_S = 5, 240.0
# Ray notices a node's death in three seconds. Captions take a while, so that a fault finds running rows.
SETTINGS = NOTICED_SOON | {"AWS_MAX_ATTEMPTS": "6"}  # the default; other tests give up sooner
PAUSE_S = 0.02  # seconds of the stub per row
OUT = f"s3://{BUCKET}/out"
# Where `compact` is killed. It writes the fence before the merged objects and after them, then deletes the old ones.
COMPACTING = [
    *(Point("PUT", place, count) for place, count in (("out/fence/", 1), ("out/fence/", 2), ("out/data/", 1))),
    *(Point("DELETE", "out/data/", count) for count in (1, 4)),
]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image: its bytes, and the caption of a model that sees it."""

    content: bytes
    caption: str


def render(count: int) -> list[Scene]:
    """Different scenes, at the size that the embedded model sees best."""
    chance = random.Random(4)
    rendered = []
    for _ in range(count):
        scene, buffer = scenes.sample_scene(chance), io.BytesIO()
        scenes.render(scene, 168, 168, rng=chance).save(buffer, "PNG")
        rendered.append(Scene(content=buffer.getvalue(), caption=scenes.caption(scene)))
    assert len({scene.content for scene in rendered}) == count
    return rendered


def store(server: S3Server, rendered: list[Scene]) -> None:
    """Put the scenes as loose files, shards and tables below `in/` of the bucket."""
    images = iter(scene.content for scene in rendered)
    for number in range(FILES):
        server.put(f"in/files/{number:05d}.png", next(images))
    for number in range(SHARDS):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for row in range(ROWS_EACH):
                for extension, content in (("png", next(images)), ("txt", WORDS)):
                    member = tarfile.TarInfo(f"{row:05d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        server.put(f"in/shards/{number:05d}.tar", buffer.getvalue())
    for number in range(TABLES):
        table, buffer = pa.table({"image": [next(images) for _ in range(ROWS_EACH)]}), io.BytesIO()
        pq.write_table(table, buffer, row_group_size=ROWS_EACH // 2)
        server.put(f"in/tables/{number:05d}.parquet", buffer.getvalue())


@dataclass
class Trigger:
    """The server's hook: counts the driver's requests, and kills when they come to a kill's point."""

    schedule: Schedule
    strike: Callable[[Kill], str | None]
    fired: list[str] = field(default_factory=list)
    faults: int = 0

    def __post_init__(self) -> None:
        self.waiting = list(self.schedule.kills)
        self._due: list[Kill] = []
        self._seen: collections.Counter[tuple[str, str]] = collections.Counter()
        self._chance = random.Random(self.schedule.seed)
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> str | None:
        with self._lock:
            self._count(request)
            self._strike_due()
            fault = self._chance.random() < self.schedule.share
            self.faults += fault
            return self._chance.choice(STORAGE_FAULTS) if fault else None

    def look(self) -> None:
        """Repeat the kills that found no victim at their point."""
        with self._lock:
            self._strike_due()

    def begin(self) -> None:
        """Another driver begins: count from zero."""
        with self._lock:
            self._seen.clear()
            self._due.clear()

    def _count(self, request: Request) -> None:
        met = {
            k.at.place for k in self.waiting if k.at.method == request.method and request.key.startswith(k.at.prefix)
        }
        self._seen.update(met)
        self._due += [
            kill for kill in self.waiting if kill.at.place in met and self._seen[kill.at.place] == kill.at.count
        ]

    def _strike_due(self) -> None:
        for kill in list(self._due):
            victim = self.strike(kill)
            if victim:
                self._due.remove(kill)
                self.waiting.remove(kill)
                self.fired.append(f"{kill} ({victim})")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run: the faults that fired and those that did not, and the fault of the output, if any."""

    seed: int
    fired: list[str]
    missed: list[str]
    storage_faults: int
    drivers: int
    read_again: int
    seconds: float
    problem: str | None


@dataclass
class Arena:
    """The cluster, the server and the dataset, for one run after another."""

    head: Head
    server: S3Server
    rendered: list[Scene]
    folder: Path
    model: dict[str, Any]

    def run(self, schedule: Schedule) -> Outcome:
        """One run by a schedule, from a new output to the checked end."""
        began = time.monotonic()
        document = self.clear()
        chance = random.Random(schedule.seed)
        trigger = Trigger(schedule, lambda kill: victims.strike(kill.kind, self.head, driver, chance))
        problem, drivers, killed = None, 0, True
        while killed and drivers < DRIVERS:
            before = self.rows()
            trigger.begin()
            driver = self.start(document)
            self.server.fault = trigger
            said = self.finish(driver, trigger.look)
            self.server.fault = None
            drivers, killed = drivers + 1, driver.returncode == -signal.SIGKILL
            problem = problem or self._changed(before) or (None if killed else said)
        problem = problem or self.compact(chance) or self.check(document)
        return Outcome(
            seed=schedule.seed,
            fired=trigger.fired,
            missed=[str(kill) for kill in trigger.waiting],
            storage_faults=trigger.faults,
            drivers=drivers,
            read_again=self.read_again(),
            seconds=time.monotonic() - began,
            problem=problem,
        )

    def clear(self) -> dict[str, Any]:
        """Forget the last run, and give the recipe of the next one."""
        for key in self._keys("out/"):
            self.server.client.delete_object(Bucket=BUCKET, Key=key)
        self.server.requests.clear()
        return self.document()

    def start(self, document: dict[str, Any]) -> subprocess.Popen[bytes]:
        """Start a driver."""
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(document))
        return self._begin("caption", str(path))

    def compact(self, chance: random.Random) -> str | None:
        """Kill `compact` at one of its writes, and let another one finish; returns the fault, if any."""
        kill = Kill("driver killed", chance.choice(COMPACTING))
        settings = [f"storage.endpoint={self.server.endpoint}", "storage.region=us-east-1"]
        for kills in ((kill,), ()):
            command = self._begin("compact", OUT, *settings)
            strike = partial(self._killed, command, chance)
            self.server.fault = trigger = Trigger(Schedule(seed=0, kills=kills, share=0.0), strike)
            said = self.finish(command)
            self.server.fault = None
            balance = self.balance(self.document())
            if trigger.waiting or (said and not kills) or not balance.balanced:
                return f"compact, {kill}: {said or balance.summary()}"
        return None

    def _killed(self, command: subprocess.Popen[bytes], chance: random.Random, kill: Kill) -> str | None:
        return victims.strike(kill.kind, self.head, command, chance)

    def _begin(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = self.head.client | {"RAY_ADDRESS": self.head.address}
        with open(self.log, "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "caprl_ray", *arguments], env=environment, stdout=log, stderr=log
            )

    @property
    def log(self) -> Path:
        """The output of the last driver."""
        return self.folder / "driver.log"

    def finish(self, driver: subprocess.Popen[bytes], look: Callable[[], None] = lambda: None) -> str | None:
        """Wait for a driver's end and check it now and then; returns the fault of its exit."""
        until = time.monotonic() + DRIVER_S
        while driver.poll() is None and time.monotonic() < until:
            look()
            time.sleep(0.05)
        late = driver.poll() is None
        driver.send_signal(signal.SIGABRT)  # not the signal that kills it on purpose
        if driver.wait() == 0:
            return None
        ended = f"did not end in {DRIVER_S:g} s" if late else f"ended with {driver.returncode}"
        return f"the driver {ended}: {self.log.read_text()[-2000:]}"

    def document(self) -> dict[str, Any]:
        """The recipe, as plain data."""
        paths = [f"s3://{BUCKET}/in/{part}" for part in ("files", "shards", "tables")]
        gpus = 1 if self.model["source"] == "stub" else 0
        return demo_recipe([Path("-")], Path("-")) | {
            "input": {"paths": paths},
            "model": self.model,
            "engine": {"stall_timeout_s": 5},
            "prepare": {"max_pixels": 20_000},
            "replicas": {"min": 1, "max": 1 + gpus, "gpus": gpus},
            "storage": {"endpoint": self.server.endpoint, "region": "us-east-1"},
            "output": {"path": OUT, "rows_per_object": 32},
        }

    def rows(self) -> list[dict[str, Any]]:
        """The committed rows of both folders. Until a run has ended, a row may stand twice."""
        found = []
        for folder in ("data", "failed"):
            for key in self._keys(f"out/{folder}/"):
                body = self.server.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
                found += [row | {"folder": folder} for row in pq.read_table(pa.BufferReader(body)).to_pylist()]
        return found

    def _keys(self, prefix: str) -> list[str]:
        listed = self.server.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for entry in listed.get("Contents", ())]

    def _changed(self, before: list[dict[str, Any]]) -> str | None:
        """How committed rows differ from before, if they do."""
        after = collections.defaultdict(list)
        for row in self.rows():
            after[row["id"]].append(row)
        lost = [row["id"] for row in before if row not in after[row["id"]]]
        return f"{len(lost)} committed rows changed or went: {lost[:5]}" if lost else None

    def read_again(self) -> int:
        """How often loose files were read again, because they were lost or for the next driver."""
        asked = [request.key for request in self.server.of("GET", "in/files/")]
        return len(asked) - len(set(asked))

    def check(self, document: dict[str, Any]) -> str | None:
        """The fault of the finished output; None if it is right."""
        recipe = parse(document)
        rows = self.rows()
        failed = [row for row in rows if row["folder"] == "failed"]
        if failed:
            return (
                f"{len(failed)} rows failed, among them {failed[0]['id']}: {failed[0]['code']} ({failed[0]['detail']})"
            )
        expected = {hashlib.sha256(scene.content).hexdigest(): scene for scene in self.rendered}
        got = collections.Counter(row["sha256"] for row in rows)
        if got != collections.Counter(expected.keys()):
            return (
                f"{len(rows)} rows of {len(expected)} images, of which {len(expected.keys() - got.keys())} are missing"
            )
        wrong = [row for row in rows if not self._right(row, expected[row["sha256"]], recipe)]
        if len(wrong) > self._may_be_wrong * len(rows):
            return f"{len(wrong)} captions are wrong, among them that of {wrong[0]['id']}: {wrong[0]['caption']}"
        balance = self.balance(document)
        if not balance.balanced or balance.finished != len(rows):
            return balance.summary()
        left = set(self._keys("out/"))
        left -= {key for folder in ("data", "fence", "plan", "parts") for key in self._keys(f"out/{folder}/")}
        left -= {"out/status.json"}  # a fault of the storage may keep it from being written
        ours = {"out/run.json", "out/lease.json", "out/summary.json", "out/_SUCCESS"}
        return None if left == ours else f"unexpected objects: {sorted(left ^ ours)}"

    def balance(self, document: dict[str, Any]) -> Ledger:
        """The ledger of the output."""
        storage = Storage(parse(document).storage)
        return ledger.balance(plan.load(storage, OUT).units, read_committed(storage, OUT), "captioned")

    @property
    def _may_be_wrong(self) -> float:
        """The share of captions that the model itself gets wrong."""
        return 0.0 if self.model["source"] == "stub" else 0.03

    def _right(self, row: dict[str, Any], scene: Scene, recipe: Recipe) -> bool:
        stub = self.model["source"] == "stub"
        return bool(row["caption"] == (expected_caption(scene.content, recipe) if stub else scene.caption))


@contextmanager
def new_arena(
    folder: Path, model: str = "stub", workers: Sequence[tuple[int, int]] = WORKERS, pause_s: float = PAUSE_S
) -> Iterator[Arena]:
    """An arena of several nodes: a head without tasks, and workers with these numbers of CPUs and logical GPUs."""
    engine = {"stub": {"distributed_executor_backend": "mp", "max_num_seqs": 16}}.get(model, {})
    rendered = render(FILES + (SHARDS + TABLES) * ROWS_EACH)
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "CAPRL_RAY_ALLOW_STUB": "1"}
    server = S3Server()
    try:
        store(server, rendered)
        with new_head(cpus=0, settings=SETTINGS | {"CAPRL_RAY_STUB_PAUSE_S": str(pause_s)}) as head:
            for cpus, gpus in workers:
                head.join(cpus=cpus, gpus=gpus)
                head.wait(head.settled)
            yield Arena(head, server, rendered, folder, {"source": model, "engine": engine})
    finally:
        server.stop()
