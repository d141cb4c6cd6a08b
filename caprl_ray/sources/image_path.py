"""Images that a parquet column names by a path: relative to the parquet file, absolute, or an s3:// URI."""

import errno
import posixpath
import re

from caprl_ray.errors import RowFailure
from caprl_ray.sources.files import read_image
from caprl_ray.sources.source import Access, source_failures
from caprl_ray.storage import Stored

MAX_PATH_BYTES = 1024  # S3's limit for a key; the limit for local paths is far higher
_S3 = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]{1,62}/.*[^/]", re.DOTALL)
# errno values of names that no local file can have.
_IMPOSSIBLE = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})


def is_web_address(path: str) -> bool:
    """Whether the path is an http:// or https:// address."""
    return path.lower().startswith(("http://", "https://"))


def resolve(path: str, parquet: str) -> str:
    """Return the full path or URI of the image that a row names. `parquet` is the path of the parquet file.

    Relative paths are resolved against the parquet file's folder. Raises RowFailure for web addresses, for storage
    that is not supported, and for relative paths that lead out of the folder.
    """
    if is_web_address(path):
        raise RowFailure("source_refused", "a web address")
    if "\0" in path or len(path.encode()) > MAX_PATH_BYTES:
        raise RowFailure("source_refused", "not a path")
    if path.startswith(("/", "file:///")) or _S3.fullmatch(path):
        return path
    if "://" in path:
        raise RowFailure("source_refused", "storage that is not supported")
    within = posixpath.normpath(path)
    if within.split("/")[0] in (".", ".."):
        raise RowFailure("source_refused", "a path that leaves the parquet file's folder")
    return f"{parquet.rpartition('/')[0]}/{within}"


def read_named_image(path: str, access: Access) -> bytes:
    """Read the image at a path. Raises RowFailure if this image cannot be used, OSError if the storage fails."""
    try:
        with source_failures():
            stored = access.storage.lookup(path)
    except OSError as error:
        if error.errno in _IMPOSSIBLE:
            raise RowFailure("source_missing") from None
        raise
    if not isinstance(stored, Stored):
        raise RowFailure("source_missing")
    return read_image(stored, access)
