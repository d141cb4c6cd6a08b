"""Images that a column names by a path beside the parquet file, a local path, or an s3:// URI."""

import errno
import posixpath
import re

from caprl_ray.errors import RowFailure
from caprl_ray.sources.files import read_image
from caprl_ray.sources.source import Access, source_failures
from caprl_ray.storage import Stored

MOST_PATH_BYTES = 1024  # S3's limit for a key, and far below a local path's
_S3 = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]{1,62}/.*[^/]", re.DOTALL)
# Errors of the local file system for a name that no file can have.
_IMPOSSIBLE = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})


def is_web_address(path: str) -> bool:
    """Whether a path would have to be fetched from the web."""
    return path.lower().startswith(("http://", "https://"))


def resolve(path: str, parquet: str) -> str:
    """The place of the image that a row of a parquet file names. Relative paths begin at the file's own folder.

    Raises RowFailure for places that are never opened: web addresses, other storage, and paths out of the folder.
    """
    if is_web_address(path):
        raise RowFailure("source_refused", "a web address")
    if "\0" in path or len(path.encode()) > MOST_PATH_BYTES:
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
    """The bytes of the image at a path. Raises RowFailure, or OSError for a fault of the storage."""
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
