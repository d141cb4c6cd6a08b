"""WebDataset shards: each unit is one tar, streamed once from its start and never unpacked to disk.

A tar has no index, so all headers must be read in order. Members that are not needed are skipped by seeking, except in
a compressed shard.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import BinaryIO, cast

from pyroaring import BitMap

from caprl_ray.errors import RecipeError, RowFailure
from caprl_ray.plan import Entry, Unit
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.sources.samples import METADATA, Rules, Sample, group_samples, member_limit
from caprl_ray.sources.source import Access, Found, source_failures
from caprl_ray.sources.tar import TarDamaged, TarFormat, read_members
from caprl_ray.sources.texts import shown
from caprl_ray.storage import Stored

# The compression of a shard is detected from its bytes, not from its name.
ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst")
# The part of the first shard that planning reads: samples, most bytes, and bytes per request.
SAMPLES_TRIED, BYTES_TRIED, PIECE = 3, 64 << 20, 64 << 10


def takes(stored: Stored) -> bool:
    """Whether a file is a shard, by its name."""
    return stored.path.lower().endswith(ENDINGS)


def plan(found: Iterator[Found], access: Access) -> Iterator[Unit]:
    """Yield one unit per shard. The number of its rows is unknown until it is read.

    Raises RecipeError if samples of the first shard have several images and the recipe does not say which to caption.
    """
    for number, f in enumerate(found):
        if number == 0:
            _check_images(f.stored, access)
        yield Unit(kind="webdataset", rows=None, entries=[Entry(stored=f.stored, key=f.key)], columns=METADATA)


def read(unit: Unit, done: BitMap, access: Access, left_out: LeftOut) -> Iterator[Sample | None]:
    """Yield the shard's samples in order. Samples in `done` are not read; None is yielded in their place.

    Raises RowFailure at the point where the shard cannot be read further. All samples before it have been yielded.
    """
    (entry,) = unit.entries
    path, rules = entry.stored.path, Rules.of(access.input, access.max_bytes)
    try:
        with source_failures(entry.stored, access), access.storage.open(entry.stored) as stream:
            members = read_members(
                stream,
                limit=member_limit(rules, done),
                left_out=left_out,
                shard=entry.key,
                length=entry.stored.size,
            )
            for index, sample in enumerate(group_samples(members, rules, left_out)):
                yield None if index in done else replace(sample, source=path, row=index)
    except TarFormat as error:
        raise RowFailure("unit_format", str(error)) from None
    except TarDamaged as error:
        raise RowFailure("truncated_unit", str(error)) from None


def suspects(unit: Unit, index: int, access: Access) -> list[range]:
    """The sample after `index`, then `index` itself. A sample is only yielded when the next one's key is seen, so the
    reader may have died in either."""
    return [range(index + 1, index + 2), range(index, index + 1)]


def _check_images(stored: Stored, access: Access) -> None:
    """Refuse a dataset whose first samples have several images. Other faults are reported when it is read."""
    rules = replace(Rules.of(access.input, 0), fail_long=False)  # another failure would hide this one
    with suppress(TarDamaged, OSError), access.storage.open(stored, piece=PIECE) as stream:
        front = cast(BinaryIO, _Front(stream))
        members = read_members(front, limit=lambda name: 0, left_out=LeftOut(), length=stored.size)
        for sample in islice(group_samples(members, rules, LeftOut()), SAMPLES_TRIED):
            if sample.failure and sample.failure.code == "ambiguous_image":
                raise RecipeError(
                    f"input.image_key: the sample {shown(sample.key)} of {stored.path} has several images "
                    f"({sample.failure.detail}); set input.image_key to the one to caption, or to several by priority, "
                    "such as jpg;png; or, if each is a photo of its own, rename the members, because a key ends "
                    "at the first dot of a name."
                )


class _Front:
    """A stream that ends after BYTES_TRIED bytes were read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = BYTES_TRIED

    def read(self, size: int) -> bytes:
        part = self._stream.read(min(size, self._left))
        self._left -= len(part)
        return part

    def seek(self, offset: int, whence: int) -> int:
        return self._stream.seek(offset, whence)
