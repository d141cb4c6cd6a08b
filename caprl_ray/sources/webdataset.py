"""WebDataset shards: a unit is one tar, streamed once from its start and never unpacked."""

from collections.abc import Container, Iterator
from dataclasses import replace

from caprl_ray import storage
from caprl_ray.errors import RowFailure
from caprl_ray.plan import Entry, Unit
from caprl_ray.sources.samples import METADATA, Sample, group_samples, member_limit
from caprl_ray.sources.tar import TarDamaged, read_members
from caprl_ray.storage import Stored

__all__ = ["METADATA", "plan", "read", "takes"]

COMPRESSED = (".tar.gz", ".tgz")


def takes(stored: Stored) -> bool:
    """Whether a file's name says that it is a shard."""
    return stored.path.lower().endswith((".tar", *COMPRESSED))


def plan(paths: list[str]) -> Iterator[Unit]:
    """One unit for each shard at `paths`: a file named itself is always taken, in a folder those with shard names."""
    for path in paths:
        shards = filter(takes, storage.walk(path)) if storage.is_folder(path) else [storage.stat(path)]
        for stored in shards:
            entry = Entry(stored=stored, key=stored.path.rpartition("/")[2])
            yield Unit(kind="webdataset", rows=None, entries=[entry])


def read(unit: Unit, done: Container[int], max_bytes: int) -> Iterator[Sample | None]:
    """The shard's samples in order; those in `done` come as None.

    Raises RowFailure where the shard cannot be read any further: everything before that point has been yielded.
    """
    (entry,) = unit.entries
    path = entry.stored.path
    try:
        with storage.open_stream(entry.stored) as stream:
            compressed = path.lower().endswith(COMPRESSED)
            members = read_members(stream, compressed=compressed, limit=member_limit(max_bytes))
            for index, sample in enumerate(group_samples(members)):
                yield None if index in done else replace(sample, source=path)
    except FileNotFoundError:
        raise RowFailure("source_missing") from None
    except storage.SourceChanged:
        raise RowFailure("source_changed") from None
    except PermissionError:
        raise RowFailure("source_unreadable", "permission denied") from None
    except TarDamaged as error:
        raise RowFailure("truncated_unit", str(error)) from None
