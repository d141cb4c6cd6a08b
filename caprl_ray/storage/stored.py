"""The contents of storage: objects with a version, and folders."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A stored object: its path, its size in bytes, and a version that changes with the content."""

    path: str
    size: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder, or a prefix on S3. `path` ends with a slash."""

    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """An object that a listing takes.

    `key`: its path below the folder that is taken as a whole, or else its own name. `real`: its path with links
    followed, if that differs.
    """

    stored: Stored
    key: str
    real: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Passed:
    """A file or folder that a listing passes over, and why (plan/left_out.py). A folder's path ends with a slash."""

    path: str
    reason: str


class Archived(PermissionError):
    """The object exists, but must be restored before it can be read."""


class NotGranted(OSError):
    """The bucket does not exist, or the store refuses the credentials. The same request will be refused again."""


class SourceChanged(OSError):
    """The object exists in another version than the one that was asked for."""


def is_below(path: str, folder: str) -> bool:
    """Whether a path lies below a folder or prefix, by its name alone."""
    return path.startswith(folder.rstrip("/") + "/")
