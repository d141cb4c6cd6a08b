"""Shards on a real S3 server: a resumed run fetches only the parts that it needs, and finds the same rows."""

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from pyroaring import BitMap

from caprl_ray.errors import RecipeError
from caprl_ray.plan import Unit
from caprl_ray.read.unit import Row, unit_rows
from caprl_ray.recipe.input import Input
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.rows.schema import row_schema
from caprl_ray.sources import plan_units
from caprl_ray.sources.samples import METADATA
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage
from caprl_ray.storage.s3_stream import RANGE_BYTES, RANGE_BYTES_AFTER_JUMP
from tests.s3_server import BUCKET, S3Server
from tests.tars import tar_of

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
    storage = Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1"))
    return Access(storage=storage, input=Input(paths=[f"s3://{BUCKET}/shards"]), max_bytes=2 * MEMBER)


def unit_of(s3: S3Server, content: bytes, name: str = "0.tar") -> Unit:
    s3.put(f"shards/{name}", content)
    (unit,) = plan_units(access_to(s3))
    s3.requests.clear()
    return unit


def rows(s3: S3Server, unit: Unit, done: BitMap) -> list[Row]:
    return list(unit_rows(0, unit, schema=row_schema(METADATA), access=access_to(s3), done=done))


def fetched(s3: S3Server) -> list[int]:
    """The number of bytes in each requested range."""

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
    # The first range has its full size. After that, at most a few times the wanted bytes are read.
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


def local(path: Path, content: bytes, done: set[int] | None = None, **settings: Any) -> list[Row]:
    path.write_bytes(content)
    access = Access(storage=Storage(), input=Input(paths=[str(path)], **settings), max_bytes=10_000)
    (unit,) = plan_units(access)
    schema = row_schema(METADATA)
    return list(unit_rows(0, unit, schema=schema, access=access, done=BitMap(done or ())))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("name", ["0.tar", "0.tar.gz", "0.tbz2", "0.tar.zst", "0.txz"])
def test_how_a_shard_is_packed_is_told_by_its_bytes(tmp_path: Path, name: str, mode: str) -> None:
    content = shard(5, 700, mode)
    content = zstd.compress(shard(5, 700)) if name == "0.tar.zst" else content
    found = local(tmp_path / name, content, {1})
    assert [(row["key"], row["code"], row["meta:txt"]) for row in found] == [
        (f"{n:05d}", None, f"text {n}") for n in (0, 2, 3, 4)
    ]


@pytest.mark.parametrize("done", [set(), {0, 1, 2}, {0, 5}])
def test_what_a_shard_leaves_out_is_counted_whatever_is_done(tmp_path: Path, done: set[int]) -> None:
    first, second = shard(3, 700), tar_of({"._a.jpg": b"", "a.jpg": b"1", "a.png": b"2", "b.jpg": b"", "c.npy": b""})
    found = local(tmp_path / "0.tar", first + second + b"junk", done)
    assert [row["index"] for row in found] == [n for n in range(6) if n not in done]
    assert json.loads(found[-1]["unit_left_out"] or "{}") == ({} if 5 in done else LEFT_OUT)
    assert not any(row["unit_left_out"] for row in found[:-1])


LEFT_OUT = {
    "after_end": {"count": 1, "example": "4 bytes after the end of 0.tar"},
    "further_image": {"count": 1, "example": "a.png"},
    "housekeeping": {"count": 1, "example": "._a.jpg"},
    "other_member": {"count": 1, "example": "c.npy"},
}


def test_bytes_that_are_no_shard_are_said_to_be_what_they_are(tmp_path: Path) -> None:
    (row,) = local(tmp_path / "0.tar", b"<!DOCTYPE html><html></html>")
    assert (row["code"], row["detail"]) == ("unit_format", "the bytes are an HTML page, not a tar archive")


def test_a_row_carries_its_flags_and_no_key_or_detail_without_end(tmp_path: Path) -> None:
    long = "x/" * 4000 + "k"
    found = local(tmp_path / "0.tar", tar_of({"a.jpg": b"1", "a.txt": b"\xff", f"{long}.jpg": b"2"}))
    assert [row["source_flags"] for row in found] == [["metadata_undecoded:txt"], []]
    key = found[1]["key"]
    assert len(key) == 4096 and key.startswith("x/x/")
    assert key.endswith(f"...sha256:{hashlib.sha256(long.encode()).hexdigest()}")


@pytest.mark.parametrize("first", ["jpg", "canny.png", "txt"])
def test_samples_with_several_images_are_refused_while_planning(tmp_path: Path, first: str) -> None:
    others = {f"{n}.{e}": b"1" for n in range(2) for e in dict.fromkeys([first, "canny.png", "depth.png", "jpg"])}
    path = tmp_path / "0.tar"
    with pytest.raises(
        RecipeError, match=r"input\.image_key: the sample 0 of .*canny\.png, depth\.png.*set input\.image_key"
    ):
        local(path, tar_of(others), long_metadata="fail")
    assert [row["code"] for row in local(path, tar_of(others), image_key="jpg")] == [None, None]
    later = {f"a{n}.jpg": b"1" for n in range(5)} | others
    found = local(path, tar_of(later))
    assert [row["code"] for row in found] == [None] * 5 + ["ambiguous_image"] * 2


@pytest.mark.parametrize("done", [0, 10, 12])
def test_a_cut_shard_ends_in_one_failed_row_also_when_the_cut_member_is_passed_over(
    s3: S3Server, large: bytes, done: int
) -> None:
    unit = unit_of(s3, large[: 11 * (MEMBER + 2048) + MEMBER // 2])  # in the image of the twelfth sample
    found = rows(s3, unit, BitMap(range(done)))
    assert [row["index"] for row in found] == [*range(done, 10), max(done, 10)]
    assert found[-1]["code"] == "truncated_unit" and found[-1]["unit_rows"] == max(done, 10) + 1
