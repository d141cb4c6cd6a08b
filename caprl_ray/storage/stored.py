"""The contents of storage: objects with a version, and folders."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A stored object: its path, its size in bytes, and a version that changes with the content."""

    path: str
    size: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder, or a prefix on S3. `path` ends with a slash."""

    path: str


class SourceChanged(OSError):
    """The object exists in another version than the one that was asked for."""


def is_below(path: str, folder: str) -> bool:
    """Whether a path lies below a folder or prefix, by its name alone."""
    return path.startswith(folder.rstrip("/") + "/")
