"""Ways that run the pipeline with the stub engine and without decoding, to measure the pipeline itself.

An image is PIXEL_WIDTH x PIXEL_HEIGHT x 3 random bytes, which prepare passes on as pixels. Everything else is as in any
run. Each way runs in its own process (alone.py).
"""

import io
import math
import os
import random
import signal
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import simulated
from captioning import run_pipeline, substitute, wait_for

from caprl_ray import pipeline
from caprl_ray.caption import job
from caprl_ray.cluster import internals, local, resources
from caprl_ray.engines import concurrency
from caprl_ray.errors import Stopped
from caprl_ray.output.commit import CommittedRows
from caprl_ray.prepare.decode import Prepared
from caprl_ray.prepare.stage import Prepare
from caprl_ray.read import datasource
from caprl_ray.replica import actor, start
from caprl_ray.watch import around, reporter
from caprl_ray.watch.batch import Batch

PIXEL_WIDTH, PIXEL_HEIGHT = 192, 176  # 101 kB
SHARD_ROWS = 500
# For `scale`: prepare and read tasks that Ray may run at once, as if there were nodes with more cores; rows of a block
# of compressed pictures, as many as with pictures of 300 kB; the file that stops it.
LOGICAL_CPUS, BLOCK_ROWS, STOP = 6, 107, "stop.txt"
PLACES = "places"  # folder of the output in which simulated replicas note when their places were taken


class PassThrough(Prepare):
    """Prepare without decoding."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._decode = passed_through


def passed_through(image: bytes) -> Prepared:
    """Use the image's bytes as its pixels."""
    return Prepared(
        pixels=image, pixel_width=PIXEL_WIDTH, pixel_height=PIXEL_HEIGHT, width=PIXEL_WIDTH, height=PIXEL_HEIGHT
    )


def images(count: int) -> Iterator[bytes]:
    """Random images, the same ones at every call."""
    chance = random.Random(1)
    return (chance.randbytes(3 * PIXEL_WIDTH * PIXEL_HEIGHT) for _ in range(count))


def write_shards(
    folder: Path, count: int, rows: int = SHARD_ROWS, made: Callable[[int], Iterator[bytes]] = images
) -> None:
    """Write images as WebDataset shards of so many rows."""
    folder.mkdir(parents=True)
    content = made(count)
    for first in range(0, count, rows):
        with tarfile.open(folder / f"{first // rows:05d}.tar", "w") as tar:
            for row, image in zip(range(first, min(count, first + rows)), content, strict=False):
                member = tarfile.TarInfo(f"{row:08d}.jpg")
                member.size = len(image)
                tar.addfile(member, io.BytesIO(image))


def write_files(folder: Path, count: int) -> None:
    """Write the images as loose files."""
    folder.mkdir(parents=True)
    for row, image in enumerate(images(count)):
        (folder / f"{row:08d}.jpg").write_bytes(image)


def recipe(images: Path, out: Path, **engine: Any) -> dict[str, Any]:
    """A recipe for the stub. `max_pixels` is the images' own size, so a batch has as many rows as with real images."""
    return {
        "input": {"paths": [str(images)]},
        "prepare": {"max_pixels": PIXEL_WIDTH * PIXEL_HEIGHT},
        "model": {"source": "stub", "engine": engine},
        "replicas": {"gpus": 0},
        "output": {"path": str(out)},
    }


def overhead(images: Path, out: Path) -> None:
    """Run with a stub that answers at once. Batches are those of a pool of POOL replicas."""
    batches_of_a_pool(int(os.environ.get("POOL", "1")))
    run_pipeline(recipe(images, out), out, held=True, prepare=PassThrough)


def batches_of_a_pool(replicas: int) -> None:
    """Give batches the rows that a pool of so many replicas has."""
    substitute(job, "batch_rows", lambda _, pixels: resources.batch_rows(pixels, replicas))


def watched(images: Path, out: Path) -> None:
    """Run like `overhead`, and tell metrics to Ray as on a cluster."""
    substitute(reporter.local, "connected", lambda: False)
    overhead(images, out)


def unwatched(images: Path, out: Path) -> None:
    """Run like `overhead`, but count only what the circuit breaker needs, and tell nobody."""
    substitute(around, "Reporter", Unseen)
    substitute(pipeline, "CommittedRows", lambda *arguments: CommittedRows(*arguments[:-1]))
    run_pipeline(recipe(images, out), out, held=True, prepare=Silent, begin=unseen)


class Unseen:
    """In place of the reporter."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.start = self.starting = None

    def __enter__(self) -> "Unseen":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Silent(PassThrough):
    """Prepare that reports nothing."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._counter = None


def unseen() -> None:
    """Let this process's replica report only what the circuit breaker needs."""

    def bare(rows: Any, counter: Any, *_: object) -> Any:
        counter.add.remote(Batch(rows=rows.num_rows, codes=list(rows["code"].drop_null().to_pylist())))
        return rows

    substitute(actor, "counted", bare)
    substitute(actor, "Meter", lambda engine, places: engine)
    substitute(start.Replica, "load", lambda replica: None)


def flow(images: Path, out: Path) -> None:
    """Run with a stub that needs time per caption and has PLACES places."""
    places = {"max_num_seqs": int(os.environ["PLACES"])}
    run_pipeline(recipe(images, out, **places), out, held=True, prepare=PassThrough)


def flow_twice(images: Path, out: Path) -> None:
    """Run like `flow`, with at most twice as many rows in flight as places."""
    few = lambda recipe, rows: math.ceil(2 * concurrency.max_num_seqs(recipe) / rows)  # noqa: E731
    substitute(concurrency, "batches_in_flight", few)
    flow(images, out)


def scale(images: Path, out: Path) -> None:
    """Run with REPLICAS simulated replicas in ACTORS actors (simulated.py). Stops as by Ctrl-C when the file STOP is
    there."""
    replicas, actors, places = (int(os.environ[name]) for name in ("REPLICAS", "ACTORS", "PLACES"))
    each = replicas // actors
    note_places(out)
    local.start(num_gpus=actors, num_cpus=LOGICAL_CPUS)
    pool = {"replicas": {"gpus": 1, "min": actors, "max": actors}, "prepare": {}}
    batches_of_a_pool(replicas)
    simulated.pool_as_large(each)
    simulated.blocks_of(BLOCK_ROWS * simulated.ROW_BYTES)
    threading.Thread(target=stopped_by, args=[out / STOP], daemon=True).start()
    document = recipe(images, out, max_num_seqs=places * each) | pool
    with suppress(Stopped):
        run_pipeline(document, out, held=True, prepare=simulated.Tiny, captioner=simulated.Replicas)


def stragglers(_: Path, out: Path) -> None:
    """Run from the store at ENDPOINT with REPLICAS simulated replicas, as the straggler of the name WAY says."""
    replicas, places, way = int(os.environ["REPLICAS"]), int(os.environ["PLACES"]), os.environ["WAY"]
    if way == "slow_node":
        os.environ[simulated.SLOW] = str(out.parent / "slow-node")
    note_places(out)
    local.start(num_gpus=replicas, num_cpus=LOGICAL_CPUS)
    if way == "large_in_order":
        substitute(datasource, "LARGE", math.inf)
    document = recipe(Path("-"), out, max_num_seqs=places) | {
        "input": {"paths": [f"s3://{os.environ['BUCKET']}/in"]},
        "storage": {"endpoint": os.environ["ENDPOINT"], "region": "us-east-1"},
        "replicas": {"gpus": 1, "min": replicas, "max": replicas},
        "prepare": {},
    }
    run_pipeline(document, out, held=True, prepare=simulated.Tiny, captioner=simulated.Replicas)


def note_places(out: Path) -> None:
    """Let simulated replicas note when their places were taken."""
    folder = out / PLACES
    folder.mkdir()
    os.environ[simulated.TAKEN] = str(folder)


def stopped_by(file: Path) -> None:
    """Stop this process as Ctrl-C does when a file is there."""
    wait_for(file)
    os.kill(os.getpid(), signal.SIGINT)


def fed(images: Path, out: Path) -> None:
    """Run on real pictures, seen at the default size."""
    run_pipeline(recipe(images, out) | {"prepare": {}}, out, held=False)


def as_ray_feeds(images: Path, out: Path) -> None:
    """Run like `fed`, but operators wait for a full batch, as Ray does by default."""
    substitute(internals, "fed", nullcontext)
    fed(images, out)


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "overhead": overhead,
    "watched": watched,
    "unwatched": unwatched,
    "flow": flow,
    "flow_twice": flow_twice,
    "scale": scale,
    "stragglers": stragglers,
    "fed": fed,
    "as_ray_feeds": as_ray_feeds,
}


if __name__ == "__main__":
    os.environ["CAPRL_RAY_ALLOW_STUB"] = "1"
    WAYS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
