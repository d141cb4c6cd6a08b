"""The fuzz targets: untrusted bytes are read as a shard and as an image, and properties must hold."""

import os
import random
import re
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from pyroaring import BitMap

from caprl_ray.errors import RowFailure
from caprl_ray.plan import Entry, Unit
from caprl_ray.prepare.decode import Limits, Prepared, prepare
from caprl_ray.prepare.sandbox import outcome
from caprl_ray.prepare.sizes import size_rule
from caprl_ray.read.unit import unit_rows
from caprl_ray.recipe.input import MAX_METADATA_BYTES, Input
from caprl_ray.rows.codes import FAILURE_CODES
from caprl_ray.rows.schema import META_PREFIX, row_schema
from caprl_ray.sources.samples import METADATA
from caprl_ray.sources.source import Access
from caprl_ray.sources.tar import BLOCK
from caprl_ray.storage import Storage, Stored

RULE = size_rule({"image_processor_type": "Qwen2VLImageProcessor"}, min_pixels=3136, max_pixels=50_176)
LIMITS = Limits(max_bytes=1 << 20, max_source_pixels=1 << 20)
SCHEMA = row_schema(METADATA)


def tar(data: bytes) -> None:
    """A shard of these bytes gives the same rows with and without what was done before, each counted once."""
    whole = rows(data, BitMap())
    assert [row["index"] for row in whole] == list(range(len(whole))), "an index is missing or stands twice"
    assert [row["unit_rows"] for row in whole] == [None] * (len(whole) - 1) + [len(whole)]
    for row in whole:
        assert row["code"] in FAILURE_CODES if row["code"] else row["encoded"] is not None
        texts = (row[META_PREFIX + name] for name in METADATA.names)
        assert sum(len(text.encode()) for text in texts if isinstance(text, str)) <= 6 * MAX_METADATA_BYTES
    done = BitMap(index for index in range(len(whole) - 1) if random.Random(len(data) + index).random() < 0.5)
    assert rows(data, done) == [row for row in whole if row["index"] not in done]


def rows(data: bytes, done: BitMap) -> list[dict[str, Any]]:
    """The rows of a shard, compressed where it begins as gzip does, without those that are done."""
    path = Path(folder().name) / ("0.tar.gz" if data.startswith(b"\x1f\x8b") else "0.tar")
    path.write_bytes(data)
    version = f"mtime:{path.stat().st_mtime_ns}"
    entry = Entry(stored=Stored(path=str(path), size=len(data), version=version), key=path.name)
    unit = Unit(kind="webdataset", rows=None, entries=[entry])
    access = Access(storage=Storage(), input=Input(paths=["-"]), max_bytes=LIMITS.max_bytes)
    return list(unit_rows(0, unit, schema=SCHEMA, access=access, done=done))


@cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """The folder of inputs, in memory if possible. Each input overwrites the last one."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)


def image(data: bytes) -> None:
    """An image of these bytes is pixels of a size that the model sees, or a failure with a known code."""
    result = outcome(partial(prepare, rule=RULE, limits=LIMITS), data)
    if isinstance(result, RowFailure):
        assert result.code in FAILURE_CODES
        return
    prepared = Prepared(**result)
    assert len(prepared.pixels) == 3 * prepared.pixel_width * prepared.pixel_height
    assert (prepared.pixel_width, prepared.pixel_height) == RULE.settled(prepared.width, prepared.height)
    assert prepared.width * prepared.height <= LIMITS.max_source_pixels


def mended(data: bytes) -> bytes:
    """The bytes with right checksums in the headers that a reader comes to, or it would stop at the first."""
    mended, at = bytearray(data), 0
    while at + BLOCK <= len(mended) and any(mended[at : at + BLOCK]):
        mended[at + 148 : at + 156] = b" " * 8
        mended[at + 148 : at + 156] = b"%06o\0 " % sum(mended[at : at + BLOCK])
        size = mended[at + 124 : at + 136].strip(b"\0 ")
        stored = int(size, 8) if re.fullmatch(rb"[0-7]+", size) else 0
        at += BLOCK + stored + -stored % BLOCK
    return bytes(mended)


TARGETS: dict[str, Callable[[bytes], None]] = {"tar": tar, "image": image}
