"""Loose image files. A unit is a slice of a thousand of them."""

from collections.abc import Iterator

from pyroaring import BitMap

from caprl_ray.errors import RowFailure
from caprl_ray.plan import Entry, Unit, batched
from caprl_ray.sources.samples import IMAGE_EXTENSIONS, Sample
from caprl_ray.sources.source import Access, Found, source_failures
from caprl_ray.storage import Stored
from caprl_ray.storage.prefetch import prefetched

FILES_PER_UNIT = 1000


def takes(stored: Stored) -> bool:
    """Whether a file's name says that it is an image."""
    return stored.path.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def plan(found: Iterator[Found], access: Access) -> Iterator[Unit]:
    """Units of images, in the order in which they were found."""
    entries = (Entry(stored=f.stored, key=f.key) for f in found)
    for batch in batched(entries, FILES_PER_UNIT):
        yield Unit(kind="files", rows=len(batch), entries=batch)


def read(unit: Unit, done: BitMap, access: Access) -> Iterator[Sample | None]:
    """The unit's images in order. Images in `done` are not opened and come as None."""

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
    return Sample(source=entry.stored.path, key=entry.key, image=image, metadata={}, failure=failure)


def read_image(stored: Stored, access: Access) -> bytes:
    """The bytes of an image that is an object of its own. Raises RowFailure, or OSError for a fault of the storage."""
    if stored.size > access.max_bytes:
        raise RowFailure("image_too_large", f"{stored.size} bytes")
    with source_failures(), access.storage.open(stored) as stream:
        return stream.read()
