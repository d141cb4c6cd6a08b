"""Loose image files: each unit is a slice of a thousand files."""

import errno
from collections.abc import Iterator

from pyroaring import BitMap

from caprl_ray.errors import RowFailure
from caprl_ray.plan import Entry, Unit, batched
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.sources.samples import IMAGE_EXTENSIONS, Sample
from caprl_ray.sources.source import Access, Found, source_failures
from caprl_ray.storage import SourceChanged, Stored
from caprl_ray.storage.prefetch import prefetched
from caprl_ray.text import readable

FILES_PER_UNIT = 1000


def takes(stored: Stored) -> bool:
    """Whether a file is an image, by its name."""
    return stored.path.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def plan(found: Iterator[Found], access: Access) -> Iterator[Unit]:
    """Units of up to FILES_PER_UNIT images each, in the order of `found`."""
    entries = (Entry(stored=f.stored, key=f.key) for f in found)
    for batch in batched(entries, FILES_PER_UNIT):
        yield Unit(kind="files", rows=len(batch), entries=batch)


def read(unit: Unit, done: BitMap, access: Access, left_out: LeftOut) -> Iterator[Sample | None]:
    """Yield the unit's images in order. Images in `done` are not opened; None is yielded in their place."""

    def sample(numbered: tuple[int, Entry]) -> Sample | None:
        index, entry = numbered
        return None if index in done else _read(entry, access)

    return prefetched(sample, enumerate(unit.entries))


def _read(entry: Entry, access: Access) -> Sample:
    image, failure = None, None
    try:
        image = read_image(entry.stored, access)
    except RowFailure as error:
        failure = error
    key = readable(entry.key)
    return Sample(source=entry.stored.path, row=0, key=key, image=image, metadata={}, failure=failure)


def read_image(stored: Stored, access: Access) -> bytes:
    """Read the bytes of an image that is a file or object of its own.

    Raises RowFailure if this image cannot be used, OSError if the storage fails.
    """
    if stored.size > access.max_bytes:
        raise RowFailure("image_too_large", f"{stored.size} bytes")
    with source_failures(stored, access):
        return read_whole(stored, access)


def read_whole(stored: Stored, access: Access) -> bytes:
    """The bytes of a stored object. Reads no more than its size; raises SourceChanged if there are more or fewer."""
    with access.storage.open(stored) as stream:
        content = stream.read(stored.size + 1) or b""
    if len(content) != stored.size:
        raise SourceChanged(errno.ESTALE, "changed while it was read", stored.path)
    return content
