"""Shards on a real S3 server: what a resumed run fetches of one, and that it finds the same rows."""

import io
import random
import tarfile
from collections.abc import Iterator

import pytest
from pyroaring import BitMap

from caprl_ray.plan import Unit
from caprl_ray.read.unit import Row, unit_rows
from caprl_ray.recipe import sections
from caprl_ray.rows.schema import row_schema
from caprl_ray.sources import plan_units
from caprl_ray.sources.samples import METADATA
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage
from caprl_ray.storage.s3_stream import RANGE_BYTES, RANGE_BYTES_AFTER_JUMP
from tests.s3_server import BUCKET, S3Server

MEMBER = 3_000_000
SAMPLES = 16


def shard(samples: int, size: int, mode: str = "w") -> bytes:
    """Samples of an image of `size` bytes and a text."""
    buffer, noise = io.BytesIO(), random.Random(1)
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for number in range(samples):
            members = {"jpg": noise.randbytes(size), "txt": b"text %d" % number}
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{number:05d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def large() -> bytes:
    return shard(SAMPLES, MEMBER)


def access_to(s3: S3Server) -> Access:
    storage = Storage(sections.Storage(endpoint=s3.endpoint, region="us-east-1"))
    return Access(storage=storage, input=sections.Input(paths=[f"s3://{BUCKET}/shards"]), max_bytes=2 * MEMBER)


def unit_of(s3: S3Server, content: bytes, name: str = "0.tar") -> Unit:
    s3.put(f"shards/{name}", content)
    (unit,) = plan_units(access_to(s3))
    s3.requests.clear()
    return unit


def rows(s3: S3Server, unit: Unit, done: BitMap) -> list[Row]:
    return list(unit_rows(0, unit, schema=row_schema(METADATA), access=access_to(s3), done=done))


def fetched(s3: S3Server) -> list[int]:
    """The bytes of each range that was asked for."""

    def sizes() -> Iterator[int]:
        for request in s3.of("GET", "shards/"):
            start, end = (request.range or "").removeprefix("bytes=").split("-")
            yield int(end) + 1 - int(start)

    return list(sizes())


DONE = {
    "the first ones": range(12),
    "the last ones": range(4, SAMPLES),
    "all but a few": [n for n in range(SAMPLES) if n not in (3, 9, 15)],
    "all but the first": range(1, SAMPLES),
}


@pytest.mark.parametrize("done", DONE.values(), ids=DONE)
def test_a_resumed_shard_is_fetched_where_it_is_not_done(s3: S3Server, large: bytes, done: list[int]) -> None:
    unit = unit_of(s3, large)
    whole = rows(s3, unit, BitMap())
    assert max(fetched(s3)) == RANGE_BYTES and len(fetched(s3)) == -(-len(large) // RANGE_BYTES)
    assert [row["unit_rows"] for row in whole] == [None] * (SAMPLES - 1) + [SAMPLES]
    s3.requests.clear()

    assert rows(s3, unit, BitMap(done)) == [row for row in whole if row["index"] not in done]
    ranges = fetched(s3)
    wanted = SAMPLES - len(done)
    # The first range is whole, and what is read goes at most a few times its own length too far.
    assert sum(ranges) < RANGE_BYTES + 2.5 * wanted * MEMBER + SAMPLES * RANGE_BYTES_AFTER_JUMP
    assert sum(ranges) < 0.7 * len(large)
    assert len(ranges) < len(done) + 6 * min(wanted, 4)


def test_a_done_shard_of_small_samples_takes_no_more_requests_than_reading_it(s3: S3Server) -> None:
    unit = unit_of(s3, shard(250, 100_000))
    rows(s3, unit, BitMap())
    reading = len(fetched(s3))
    s3.requests.clear()
    assert [row["key"] for row in rows(s3, unit, BitMap(range(249)))] == ["00249"]
    assert len(fetched(s3)) == reading


def test_a_gzip_shard_is_read_whole(s3: S3Server) -> None:
    content = shard(20, 100_000, "w:gz")
    unit = unit_of(s3, content, "0.tgz")
    assert [row["key"] for row in rows(s3, unit, BitMap(range(19)))] == ["00019"]
    assert sum(fetched(s3)) == len(content)


@pytest.mark.parametrize("done", [0, 10, 12])
def test_a_cut_shard_ends_in_one_failed_row_also_when_the_cut_member_is_passed_over(
    s3: S3Server, large: bytes, done: int
) -> None:
    unit = unit_of(s3, large[: 11 * (MEMBER + 2048) + MEMBER // 2])  # in the image of the twelfth sample
    found = rows(s3, unit, BitMap(range(done)))
    assert [row["index"] for row in found] == [*range(done, 10), max(done, 10)]
    assert found[-1]["code"] == "truncated_unit" and found[-1]["unit_rows"] == max(done, 10) + 1
