"""List local files in the order of their paths. Symbolic links are followed, each linked folder once."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from caprl_ray.storage.stored import Listed, Passed, Stored
from caprl_ray.storage.wanted import NONE, States, Wanted, listed

# errno values of a link that leads nowhere.
BROKEN = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})
KERNEL = ("/proc/", "/sys/", "/dev/")  # the kernel's files may block or never end


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """A folder that is being listed. Its paths end with a slash.

    `real`: with links followed. `whole`: the folder that is taken as a whole, this one or one around it, or empty.
    """

    path: str
    real: str
    states: States
    whole: str


class LocalListing:
    """One listing of the wanted objects after the path `after`.

    The target of a link is passed over if this listing also reaches it by its own path. A linked folder is passed over
    if this listing has already reached it by another link. So loops end.
    """

    def __init__(self, wanted: Wanted, after: str | None) -> None:
        self._wanted = wanted
        self._after = after
        self._root = _real(wanted.folder)
        self._linked: set[tuple[int, int, States]] = set()

    def objects(self) -> Iterator[Listed | Passed]:
        """List everything in the order of paths. Empty if there is no such folder."""
        folder, states = self._wanted.folder, self._wanted.begin()
        try:
            there = stat.S_ISDIR(os.stat(folder).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            there = False
        if there:
            whole = folder if self._wanted.whole(states) else ""
            yield from self._below(_Place(path=folder, real=self._root, states=states, whole=whole))

    def _below(self, place: _Place) -> Iterator[Listed | Passed]:
        entries = {entry.name + "/" * _is_folder(entry): entry for entry in os.scandir(place.path[:-1] or "/")}
        for name in sorted(entries):
            entry, path, folder = entries[name], place.path + name, name.endswith("/")
            before = self._after is not None and path <= self._after
            if not before or (folder and str(self._after).startswith(path)):
                yield from (self._folder if folder else self._file)(place, entry, path)

    def _folder(self, place: _Place, entry: os.DirEntry[str], path: str) -> Iterator[Listed | Passed]:
        """The wanted objects of a subfolder."""
        states = self._wanted.below(place.states, entry.name)
        if isinstance(states, str):
            yield Passed(path=path, reason=states)
        elif states:
            linked = entry.is_symlink()
            real = _real(path) if linked else f"{place.real}{entry.name}/"
            reason = self._reached(real, states) if linked else None
            if reason:
                yield Passed(path=path, reason=reason)
                return
            whole = place.whole or (path if self._wanted.whole(states) else "")
            yield from self._below(_Place(path=path, real=real, states=states, whole=whole))

    def _reached(self, real: str, states: States) -> str | None:
        """The reason to pass over the folder `real` that a link leads to, if there is one."""
        if real.startswith(KERNEL):
            return "special"
        within = self._states_within(real[len(self._root) :]) if real.startswith(self._root) else NONE
        if states <= within or self._wanted.everything(within):
            return "overlap"
        try:
            status = os.stat(real)
        except OSError as error:
            if error.errno not in BROKEN:
                raise
            return "link"  # it was removed while its folder was listed
        identity = status.st_dev, status.st_ino, states
        if identity in self._linked:
            return "overlap"
        self._linked.add(identity)
        return None

    def _states_within(self, path: str) -> States:
        """The states of a folder below the root that is reached without links."""
        states = self._wanted.begin()
        for name in path.split("/")[:-1]:
            within = self._wanted.below(states, name)
            if isinstance(within, str):
                return NONE
            states = within
        return states

    def _file(self, place: _Place, entry: os.DirEntry[str], path: str) -> Iterator[Listed | Passed]:
        """The file, if it is taken. A file that disappears while its folder is listed is left out."""
        taken = self._wanted.takes(place.states, entry.name)
        if taken is not True:
            if taken:
                yield Passed(path=path, reason=taken)
            return
        try:
            status = entry.stat()
        except OSError as error:
            if error.errno not in BROKEN:
                raise
            if entry.is_symlink():
                yield Passed(path=path, reason="link")
            return
        real = _real(path).rstrip("/") if entry.is_symlink() else place.real + entry.name
        reason = self._passed(status, real, path)
        if reason:
            yield Passed(path=path, reason=reason)
        else:
            yield listed(stored_at(path, status), place.whole, None if real == path else real)

    def _passed(self, status: os.stat_result, real: str, path: str) -> str | None:
        """The reason to skip an entry that is not a folder, if there is one."""
        if not stat.S_ISREG(status.st_mode) or real.startswith(KERNEL):
            return "special"
        below = real[len(self._root) :] if real.startswith(self._root) else None
        linked = below != path[len(self._wanted.folder) :]
        return "overlap" if linked and below is not None and self._wanted.reaches(below) else None


def stored_at(path: str, status: os.stat_result) -> Stored:
    """The file at a path with this status."""
    return Stored(path=path, size=status.st_size, version=f"mtime:{status.st_mtime_ns}")


def _real(folder: str) -> str:
    return os.path.join(os.path.realpath(folder), "")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link; `_file` reports it when it asks for the status
        return False
