"""Measure what slow storage and slow nodes cost a run, beside a run without any.

    python benchmarks/stragglers.py [--shards 200] [--outage 60] [--ways none slow_shard …] [--json FILE]

Simulated: the storage's speed, the engines and decoding. A moto server on loopback holds the shards and delays each
answer by its bytes, so that one stream reads a shard in SHARD_S seconds. Four simulated replicas (simulated.py) caption
faster than one stream and slower than the streams that Ray opens. Real: the reader, its retries, Ray Data, and the
commit. Ways:

    none            every shard at full speed
    slow_shard      one shard in a hundred, the last of the plan among them, at a tenth of the speed
    slow_node       one of the four replicas takes three times as long for every caption
    outage          the store answers 503 to every request for --outage seconds
    large           the last twenty shards of the plan are one
    large_in_order  the same, with units begun in the order of the plan

`seconds` last from the first ready replica to the last caption, and `longer` is what is more than without stragglers.
`tail` is the time for the last two percent of the captions. `pause` is the longest time without a caption.

Keys of the JSON: `<way>_s`, `_longer_s`, `_tail_s` and `_pause_s`.
"""

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path

from alone import moments, run_alone
from captioning import FINISHED, READY
from simulated import tiny_images

from caprl_ray.engines.stub import SECONDS

sys.path.insert(0, str(Path(__file__).parents[1]))  # the S3 server of the tests
from tests.s3_server import BUCKET, Request, S3Server

WAYS = ("none", "slow_shard", "slow_node", "outage", "large", "large_in_order")
REPLICAS, PLACES, CAPTION_S = 4, 32, "0.5-2"
SHARD_ROWS, SHARD_S, LARGE, SLOW = 20, 1.0, 20, 10
OUTAGE_BEGINS_S = 5.0  # after the first caption

Figures = dict[str, float]
Fault = Callable[[Request], str | None]


def shard(images: Iterator[bytes], rows: int) -> bytes:
    """A shard of the next images."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for row, image in enumerate(islice(images, rows)):
            member = tarfile.TarInfo(f"{row:06d}.jpg")
            member.size = len(image)
            tar.addfile(member, io.BytesIO(image))
    return content.getvalue()


def fill(server: S3Server, shards: int, large: bool) -> int:
    """Store the shards. Returns the bytes of a usual one."""
    images = tiny_images(shards * SHARD_ROWS)
    usual = [SHARD_ROWS] * shards
    for number, rows in enumerate([*usual[:-LARGE], LARGE * SHARD_ROWS] if large else usual):
        server.put(f"in/{number:05d}.tar", shard(images, rows))
    return server.client.head_object(Bucket=BUCKET, Key="in/00000.tar")["ContentLength"]


def pace(size: int, slow: set[str], began: Callable[[], float | None], outage: float) -> Fault:
    """Delay the answers that hold a shard by their bytes, tenfold for slow ones, and refuse all during the outage."""

    def fault(request: Request) -> str | None:
        first = began() if outage else None
        if first and 0 <= time.time() - first - OUTAGE_BEGINS_S < outage:
            return "slow_down"
        if request.method == "GET" and request.key.startswith("in/") and request.range:
            start, end = map(int, request.range.removeprefix("bytes=").split("-"))
            time.sleep((end + 1 - start) / size * SHARD_S * (SLOW if request.key in slow else 1))
        return None

    return fault


def measure(way: str, shards: int, outage: float, folder: Path) -> Figures:
    """Run one way."""
    server, out = S3Server(), folder / way
    size = fill(server, shards, way.startswith("large"))
    slow = {f"in/{number:05d}.tar" for number in range(shards - 1, 0, -100)} if way == "slow_shard" else set()
    os.environ |= {SECONDS: CAPTION_S, "PLACES": str(PLACES), "REPLICAS": str(REPLICAS), "ACTORS": str(REPLICAS)}
    os.environ |= {"ENDPOINT": server.endpoint, "BUCKET": BUCKET, "WAY": way}
    os.environ.pop("AWS_MAX_ATTEMPTS", None)
    first: list[float] = []

    def began() -> float | None:
        if not first:
            first.extend(when for when, _ in moments(out / FINISHED)[:1])
        return first[0] if first else None

    server.fault = pace(size, slow, began, outage if way == "outage" else 0.0)
    _, finished, _ = run_alone("stub_ways.py", "stragglers", Path("-"), out)
    server.stop()
    ready = moments(out / READY)[0][0]
    pauses = (later - earlier for earlier, later in pairwise(finished))
    tail = finished[-1] - finished[int(0.98 * len(finished)) - 1]
    return {f"{way}_s": finished[-1] - ready, f"{way}_tail_s": tail, f"{way}_pause_s": max(pauses)}


def table(figures: Figures, ways: list[str]) -> None:
    """Print the figures, one line per way."""
    print(f"{'':<16}" + "".join(f"{name:>10}" for name in ("seconds", "longer", "tail", "pause")))
    for way in ways:
        cells = (figures.get(f"{way}_{key}", 0.0) for key in ("s", "longer_s", "tail_s", "pause_s"))
        print(f"{way:<16}" + "".join(f"{cell:>10.1f}" for cell in cells))


def main() -> None:
    """Measure the ways one after the other and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=200, help="number of shards")
    parser.add_argument("--outage", type=float, default=60, metavar="S", help="seconds of 503")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="only these")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "loopback"}
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="stragglers-") as temporary:
        for way in args.ways:
            figures |= measure(way, args.shards, args.outage, Path(temporary))
            if "none_s" in figures:
                figures[f"{way}_longer_s"] = figures[f"{way}_s"] - figures["none_s"]
            if args.json:  # each time: a run of all takes minutes
                args.json.write_text(json.dumps(figures, indent=1) + "\n")
    table(figures, args.ways)


if __name__ == "__main__":
    main()
