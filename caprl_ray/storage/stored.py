"""What storage holds: objects with a version, and folders."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A stored object: its path, its size in bytes, and a version that changes when the content does."""

    path: str
    size: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder, or on S3 a prefix that ends with a slash; `path` ends with that slash."""

    path: str


class SourceChanged(OSError):
    """The object is there, but it is not the version that was asked for."""
