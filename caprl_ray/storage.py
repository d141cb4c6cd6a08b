"""The one place that touches storage. Paths are local now; another kind of store is added here and nowhere else.

Functions take paths as the recipe gives them (relative, absolute or `file://`) and raise OSError as the system does:
whether that is one row's fault or the run's is for the caller to say.
"""

import glob
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from caprl_ray.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A stored object: its path, its size in bytes, and a version that changes when the content does."""

    path: str
    size: int
    version: str


class SourceChanged(OSError):
    """The object is there, but it is not the version that was asked for."""


def local_path(path: str) -> str:
    """An absolute local path; refuses the schemes that no code here can read."""
    scheme = urlsplit(path).scheme if "://" in path else ""
    if scheme == "file":
        path = unquote(urlsplit(path).path)
    elif scheme:
        raise RecipeError(f"{path}: storage of the kind {scheme}:// is not supported; copy it to a local path.")
    return os.path.abspath(os.path.expanduser(path))


def join(path: str, *names: str) -> str:
    """The path of something below a folder."""
    return "/".join([path.rstrip("/"), *names])


def stat(path: str) -> Stored:
    """Look an object up. Raises FileNotFoundError."""
    return _stored(path, os.stat(local_path(path)))


def _stored(path: str, status: os.stat_result) -> Stored:
    return Stored(path=path, size=status.st_size, version=f"mtime:{status.st_mtime_ns}")


def is_folder(path: str) -> bool:
    """Whether a path is a folder that exists."""
    return os.path.isdir(local_path(path))


def exists(path: str) -> bool:
    """Whether there is anything at a path."""
    return os.path.exists(local_path(path))


def find(pattern: str) -> list[str]:
    """Expand a glob (`*`, `?`, `[…]`, `**`), or a prefix when it has no magic, into sorted files and folders."""
    path = local_path(pattern)
    if not glob.has_magic(path):
        path = glob.escape(path) + "*"
    return sorted(glob.glob(path, recursive=True))


def walk(folder: str) -> Iterator[Stored]:
    """Every file below a folder, recursively, in the order of their paths; symbolic links to folders are not followed.

    Holds one folder's names at a time.
    """
    entries = sorted(os.scandir(local_path(folder)), key=lambda e: e.name + "/" * e.is_dir(follow_symlinks=False))
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)
        elif entry.is_file():
            yield _stored(entry.path, entry.stat())


def files(paths: Iterable[str]) -> Iterator[Stored]:
    """The files that paths name: themselves, or all below them where they are folders."""
    for path in paths:
        if is_folder(path):
            yield from walk(path)
        else:
            yield stat(path)


def open_stream(stored: Stored) -> BinaryIO:
    """Open an object for reading from its start. Raises SourceChanged when it is not the given version."""
    stream = open(local_path(stored.path), "rb")  # noqa: SIM115 (the caller closes it)
    now = _stored(stored.path, os.fstat(stream.fileno()))
    if now != stored:
        stream.close()
        raise SourceChanged(f"{stored.path} changed since it was planned")
    return stream


def read(path: str) -> bytes:
    """The whole of a small object."""
    return Path(local_path(path)).read_bytes()


def put(path: str, content: bytes) -> None:
    """Write an object whole or not at all: to a temporary name, to disk, then renamed over any older one."""
    target = Path(local_path(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def delete(path: str) -> None:
    """Remove an object; nothing happens when it is not there."""
    with suppress(FileNotFoundError):
        os.unlink(local_path(path))


def objects(folder: str, suffix: str) -> list[str]:
    """The sorted paths of the objects directly in a folder whose names end in `suffix`; none if there is no folder."""
    if not is_folder(folder):
        return []
    names = os.listdir(local_path(folder))
    return sorted(join(folder, name) for name in names if name.endswith(suffix) and not name.startswith("."))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
