"""Read an image that a row of a table names. The path comes from the row, so an error of the path fails the row."""

import errno

from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.sources.files import read_whole
from caprl_ray.sources.image_roots import NamedImage
from caprl_ray.sources.source import Access, denied
from caprl_ray.storage import SourceChanged, Stored

# errno values of names that no local file can have.
IMPOSSIBLE = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENOTDIR})
# errno values of a process or machine at its limits. They say nothing about the path.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


def read_named_image(image: NamedImage, access: Access) -> bytes:
    """Read an image that a row names. Raises RowFailure for every error of the image.

    After an error, the root is probed. If it cannot be listed or is empty, the storage does not work: raises
    SystemFailure. Otherwise reading is tried once more if the error may have passed. Raises OSError if the process has
    no file handles or memory left.
    """
    try:
        return _read(image, access)
    except (OSError, ValueError) as fault:
        failure = _failure(fault)
    _check_storage(image, access)
    if failure.code == "source_missing":
        raise RowFailure(failure.code, _oddity(image.path))
    if failure.code != "source_unreadable":
        raise failure
    try:
        return _read(image, access)
    except (OSError, ValueError) as fault:
        raise _failure(fault) from None


def _read(image: NamedImage, access: Access) -> bytes:
    stored = access.storage.lookup(image.real)
    if not isinstance(stored, Stored):
        raise FileNotFoundError(errno.ENOENT, "no such file", image.real)
    if stored.size > access.max_bytes:
        raise RowFailure("image_too_large", f"{stored.size} bytes")
    return read_whole(stored, access)


def _oddity(path: str) -> str:
    """What may be wrong with a path where nothing is."""
    name = path.rpartition("/")[2]
    if "\\" in name:
        return "the path has backslashes, as on Windows; write it with slashes"
    return "the path ends with a space" if name != name.rstrip() else ""


def _failure(fault: OSError | ValueError) -> RowFailure:
    """The row's failure for an error of its path. Raises the error if the machine caused it."""
    number = fault.errno if isinstance(fault, OSError) else errno.EINVAL
    if number in _EXHAUSTED:
        raise fault
    if isinstance(fault, FileNotFoundError) or number in IMPOSSIBLE:
        return RowFailure("source_missing")
    if isinstance(fault, SourceChanged):
        return RowFailure("source_changed")
    reason = denied(fault) if isinstance(fault, PermissionError) else getattr(fault, "strerror", None)
    return RowFailure("source_unreadable", reason or type(fault).__name__)


def _check_storage(image: NamedImage, access: Access) -> None:
    try:
        access.storage.probe(image.real, image.root)
    except OSError as fault:
        raise SystemFailure(
            f"{image.root}: no image below it can be read ({fault.strerror or type(fault).__name__}); see that it is "
            "mounted on every node and that input.image_roots is right, and run the same command again to resume."
        ) from None
