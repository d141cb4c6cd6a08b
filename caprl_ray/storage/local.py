"""Local storage: plain files, written to a temporary name and renamed."""

import errno
import io
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from filelock import FileLock

from caprl_ray.errors import RecipeError
from caprl_ray.storage.local_listing import BROKEN, LocalListing, stored_at
from caprl_ray.storage.stored import Folder, Listed, Passed, SourceChanged, Stored, is_below
from caprl_ray.storage.wanted import Rule, Wanted

TEMPORARY = ".tmp-"
# The writer of a temporary file older than this many seconds must be dead, because writing takes seconds.
LEFT_S = 3600
LOCK = ".lock-"  # prefix of the lock files of `replace`
LOCK_S = 10  # seconds to wait for another process's `replace`, which takes milliseconds
# errno values of linking on file systems without hard links.
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalStore:
    """The files of this machine. Raises the system's own OSErrors."""

    def lookup(self, path: str) -> Stored | Folder | None:
        """Devices and pipes count as absent: reading one might never end. So do links that lead nowhere."""
        path = local_path(path)
        try:
            status = os.stat(path)
        except OSError as error:
            if error.errno in BROKEN:
                return None
            raise
        if stat.S_ISDIR(status.st_mode):
            return Folder(path=path.rstrip("/") + "/")
        return stored_at(path, status) if stat.S_ISREG(status.st_mode) else None

    def wanted(self, pattern: str, rule: Rule | None = None) -> Wanted:
        slash = "/" if pattern.endswith("/") else ""
        return Wanted.of("/", local_path(pattern).lstrip("/") + slash, rule)

    def find(self, wanted: Wanted, after: str | None = None) -> Iterator[Listed | Passed]:
        """Follows symbolic links. A linked folder is listed once, and not at all if it is also listed without the link.

        Holds one folder's names at a time.
        """
        return LocalListing(wanted, after).objects()

    def walk(self, folder: str, after: str | None = None) -> Iterator[Stored]:
        """As `find` does."""
        found = self.find(Wanted(folder=local_path(folder).rstrip("/") + "/"), after)
        return (f.stored for f in found if isinstance(f, Listed))

    def objects(self, folder: str) -> list[Stored]:
        """Leaves out names that begin with a dot, such as the temporary files of `put`."""
        path = local_path(folder)
        if not os.path.isdir(path):
            return []
        found = []
        with os.scandir(path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process has just deleted it
                    if entry.is_file() and not entry.name.startswith("."):
                        found.append(stored_at(entry.path, entry.stat()))
        return found

    def open(self, stored: Stored, piece: int | None) -> BinaryIO:
        """Never waits for a pipe. A file of size 0 is not opened, because reading a file of the kernel might never
        end."""
        now = self.lookup(stored.path)
        if not isinstance(now, Stored):
            raise FileNotFoundError(errno.ENOENT, "no such file", stored.path)
        if now.size == stored.size == 0:
            return _same(io.BytesIO(), now, stored)
        stream = open(local_path(stored.path), "rb", opener=_without_waiting)  # noqa: SIM115 (the caller closes it)
        return _same(stream, stored_at(stored.path, os.fstat(stream.fileno())), stored)

    def read(self, path: str) -> bytes:
        return Path(local_path(path)).read_bytes()

    def put(self, path: str, content: bytes) -> None:
        _write(Path(local_path(path)), content, os.replace)

    @contextmanager
    def written(self, path: str) -> Iterator[BinaryIO]:
        with _written(Path(local_path(path)), os.replace) as file:
            yield file

    def create(self, path: str, content: bytes) -> Stored:
        target = Path(local_path(path))
        _write(target, content, _link)
        return stored_at(path, target.stat())

    def replace(self, stored: Stored, content: bytes) -> Stored:
        target = Path(local_path(stored.path))
        with FileLock(target.with_name(LOCK + target.name), timeout=LOCK_S):
            now = stored_at(stored.path, target.stat())
            if now != stored:
                raise SourceChanged(errno.ESTALE, "changed by another process", stored.path)
            _write(target, content, os.replace)
        return stored_at(stored.path, target.stat())

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(local_path(path))

    def age(self, path: str) -> float | None:
        """By this machine's clock, which is the disk's own unless the folder is mounted from another machine."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return max(0.0, time.time() - os.stat(local_path(path)).st_mtime)
        return None

    def sweep(self, folder: str) -> None:
        with suppress(OSError), os.scandir(local_path(folder)) as entries:
            for entry in entries:
                if entry.name.startswith(TEMPORARY) and time.time() - entry.stat().st_mtime > LEFT_S:
                    os.unlink(entry.path)

    def real(self, path: str) -> str:
        return os.path.realpath(local_path(path))

    def probe(self, path: str, root: str) -> None:
        """Checks `root` and the mount point of the path, which may be below it."""
        for folder in (local_path(root), mount_point(local_path(path))):
            try:
                with os.scandir(folder) as entries:
                    empty = next(entries, None) is None
            except PermissionError:
                empty = False
                if not os.access(folder, os.X_OK):  # without this right nothing below the folder can be opened
                    raise
            if empty:
                raise FileNotFoundError(errno.ENOENT, "the folder is empty", folder)


def is_local(path: str) -> bool:
    """Whether a path is one of this machine."""
    return "://" not in path or path.startswith("file://")


def in_the_way(path: str, *, of_folder: bool) -> str | None:
    """What is there, at a local path or above it, so that it cannot be a folder, or else a file; None in other
    stores."""
    if not is_local(path):
        return None
    place = local_path(path)
    if not of_folder:
        if os.path.exists(place) and not os.path.isfile(place):
            return place
        place = os.path.dirname(place)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    return None if os.path.isdir(place) else place


def missing_folders(path: str) -> list[str]:
    """The folders of a path that do not exist, the deepest first."""
    folder, missing = local_path(path), []
    while not os.path.exists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    return missing


def remove_empty(folders: list[str]) -> None:
    """Remove folders, the deepest first. Stops at one that holds more than lock files of `replace`."""
    with suppress(OSError):
        for folder in folders:
            names = os.listdir(folder)
            if not all(name.startswith(LOCK) for name in names):
                return
            for name in names:
                os.unlink(os.path.join(folder, name))
            os.rmdir(folder)


def mount_point(path: str) -> str:
    """The folder where the file system of a path is mounted. Asks the kernel, because a lost mount may not answer."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "/"
    mounted = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in lines)
    return max((place for place in mounted if is_below(path, place)), key=len, default="/")


def local_path(path: str) -> str:
    """The absolute local path of a relative, absolute or `file://` one. Raises RecipeError for another machine's."""
    if path.startswith("file://"):
        host, slash, below = path.removeprefix("file://").partition("/")
        if host not in ("", "localhost"):
            raise RecipeError(
                f"{path} names the machine {host!r}; write file:/// before an absolute path, or a path alone."
            )
        if not slash:
            raise RecipeError(f"{path} has no path; write file:/// before an absolute one.")
        path = unquote(slash + below)
    return os.path.abspath(os.path.expanduser(path))


def _write(target: Path, content: bytes, put_in_place: Callable[[Path, Path], None]) -> None:
    with _written(target, put_in_place) as file:
        file.write(content)


@contextmanager
def _written(target: Path, put_in_place: Callable[[Path, Path], None]) -> Iterator[BinaryIO]:
    """Write to a temporary name, sync it to disk, then rename. An OSError names the target, unless the block raises it
    for another file."""
    temporary, in_block = target.with_name(TEMPORARY + uuid.uuid4().hex), False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():  # a rename would replace a device such as /dev/null
            raise FileExistsError(errno.EEXIST, "is no file that can be replaced", str(target))
        with open(temporary, "xb") as file:
            in_block = True
            yield file
            in_block = False
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, target)
    except OSError as error:
        if not (in_block and error.filename):
            error.filename, error.filename2 = str(target), None
        raise
    finally:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(temporary)
    sync_folder(target.parent)


def _link(temporary: Path, target: Path) -> None:
    """Unlike a rename, fails if the target exists.

    If there are no hard links (exFAT, some network mounts), an empty file takes the name first, and the content
    replaces it at once, so that a writer that is killed leaves no half object.
    """
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with open(target, "xb"):
            pass
        try:
            os.replace(temporary, target)
        except OSError:
            os.unlink(target)
            raise


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _same(stream: BinaryIO, now: Stored, planned: Stored) -> BinaryIO:
    if now == planned:
        return stream
    stream.close()
    raise SourceChanged(errno.ESTALE, "changed since it was planned", planned.path)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to disk, as fsync syncs a file's content."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
