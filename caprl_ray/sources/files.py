"""Loose image files: a unit is a slice of a thousand of them."""

from collections.abc import Container, Iterator

from caprl_ray import storage
from caprl_ray.errors import RowFailure
from caprl_ray.plan import Entry, Unit, batched
from caprl_ray.sources.samples import IMAGE_EXTENSIONS, Sample
from caprl_ray.storage import Stored

FILES_PER_UNIT = 1000


def takes(stored: Stored) -> bool:
    """Whether a file's name says that it is an image."""
    return stored.path.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def plan(paths: list[str]) -> Iterator[Unit]:
    """Units of the images at `paths`: a file named itself is always taken, in a folder only those with image names.

    A row's key is its path below the folder, or its name where the file was named itself.
    """
    for batch in batched(_entries(paths), FILES_PER_UNIT):
        yield Unit(kind="files", rows=len(batch), entries=batch)


def _entries(paths: list[str]) -> Iterator[Entry]:
    for path in paths:
        if not storage.is_folder(path):
            yield Entry(stored=storage.stat(path), key=path.rpartition("/")[2])
            continue
        for stored in filter(takes, storage.walk(path)):
            yield Entry(stored=stored, key=stored.path.removeprefix(path.rstrip("/") + "/"))


def read(unit: Unit, done: Container[int], max_bytes: int) -> Iterator[Sample | None]:
    """The unit's images in order; those in `done` are not opened and come as None."""
    for index, entry in enumerate(unit.entries):
        yield None if index in done else _read(entry, max_bytes)


def _read(entry: Entry, max_bytes: int) -> Sample:
    image, failure = None, None
    try:
        if entry.stored.size > max_bytes:
            raise RowFailure("image_too_large", f"{entry.stored.size} bytes")
        with storage.open_stream(entry.stored) as stream:
            image = stream.read()
    except FileNotFoundError:
        failure = RowFailure("source_missing")
    except storage.SourceChanged:
        failure = RowFailure("source_changed")
    except PermissionError:
        failure = RowFailure("source_unreadable", "permission denied")
    except RowFailure as error:
        failure = error
    return Sample(source=entry.stored.path, key=entry.key, image=image, metadata={}, failure=failure)
