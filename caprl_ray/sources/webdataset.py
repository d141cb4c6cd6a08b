"""WebDataset shards: each unit is one tar, streamed once from its start and never unpacked to disk.

A tar has no index, so all headers must be read in order. Members that are not needed are skipped by seeking, except in
gzip.
"""

from collections.abc import Iterator
from dataclasses import replace

from pyroaring import BitMap

from caprl_ray.errors import RowFailure
from caprl_ray.plan import Entry, Unit
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.sources.samples import METADATA, Sample, group_samples, member_limit
from caprl_ray.sources.source import Access, Found, source_failures
from caprl_ray.sources.tar import TarDamaged, read_members
from caprl_ray.storage import Stored

COMPRESSED = (".tar.gz", ".tgz")


def takes(stored: Stored) -> bool:
    """Whether a file is a shard, by its name."""
    return stored.path.lower().endswith((".tar", *COMPRESSED))


def plan(found: Iterator[Found], access: Access) -> Iterator[Unit]:
    """Yield one unit per shard. The number of its rows is unknown until it is read."""
    for f in found:
        yield Unit(kind="webdataset", rows=None, entries=[Entry(stored=f.stored, key=f.key)], columns=METADATA)


def read(unit: Unit, done: BitMap, access: Access, left_out: LeftOut) -> Iterator[Sample | None]:
    """Yield the shard's samples in order. Samples in `done` are not read; None is yielded in their place.

    Raises RowFailure at the point where the shard cannot be read further. All samples before it have been yielded.
    """
    (entry,) = unit.entries
    path = entry.stored.path
    try:
        with source_failures(entry.stored, access), access.storage.open(entry.stored) as stream:
            members = read_members(
                stream,
                compressed=path.lower().endswith(COMPRESSED),
                limit=member_limit(access.max_bytes, done),
                length=entry.stored.size,
            )
            for index, sample in enumerate(group_samples(members)):
                yield None if index in done else replace(sample, source=path)
    except TarDamaged as error:
        raise RowFailure("truncated_unit", str(error)) from None


def suspects(unit: Unit, index: int, access: Access) -> list[range]:
    """The sample after the last complete one, or that one: a sample is complete when the next one's key is seen."""
    return [range(index + 1, index + 2), range(index, index + 1)]
