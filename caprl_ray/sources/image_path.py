"""Images that a column only names: by a path beside the parquet file, a local path, or an s3:// URI."""

import errno
import posixpath
import re

from caprl_ray.errors import RowFailure
from caprl_ray.sources.files import read_image
from caprl_ray.sources.source import Access, source_failures
from caprl_ray.storage import Stored

MOST_PATH_BYTES = 1024  # what S3 allows a key, and far below what a local path may have
_S3 = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9._-]{1,62}/.*[^/]", re.DOTALL)
# What the local file system says to a name that no file can have.
_IMPOSSIBLE = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})


def is_web_address(path: str) -> bool:
    """Whether a path is one that would be fetched from the web."""
    return path.lower().startswith(("http://", "https://"))


def resolve(path: str, parquet: str) -> str:
    """Where the image lies that a row of a parquet file names; relative paths begin at the file's own folder.

    Raises RowFailure for what is never opened: web addresses, other storage, and what leaves the folder.
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
    """The bytes of the image at a path. Raises RowFailure, OSError where storage is at fault."""
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
