"""The common part of all stores except S3 and local ones: they list objects without folders, in the order of names.

A store lists a prefix, looks up one object and fetches a range of it. Folders and patterns are derived here from names.
"""

import errno
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, ClassVar

from caprl_ray.errors import RecipeError
from caprl_ray.storage.ranges import Ranges, buffered
from caprl_ray.storage.stored import Archived, Folder, Listed, Passed, SourceChanged, Stored
from caprl_ray.storage.wanted import Rule, Sieve, Wanted


class FlatStore(ABC):
    """A store without folders."""

    scheme: ClassVar[str]

    def root(self, path: str) -> str:
        """The part of a path before the object's name: the bucket or repository, with a slash at the end."""
        bucket = path.removeprefix(self.scheme).partition("/")[0]
        if not bucket:
            raise RecipeError(f"{path} names no bucket; give {self.scheme}bucket/path.")
        return f"{self.scheme}{bucket}/"

    def split(self, path: str) -> tuple[str, str]:
        """Split a path into bucket and key."""
        root = self.root(path)
        return root[len(self.scheme) : -1], path[len(root) :]

    @abstractmethod
    def below(self, prefix: str, after: str | None) -> Iterator[Stored]:
        """The objects whose paths begin with `prefix`, in order. Those before `after` may be left out."""

    @abstractmethod
    def look(self, path: str) -> Stored:
        """Look up one object. Raises FileNotFoundError."""

    @abstractmethod
    def fetch(self, stored: Stored, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end` of exactly this version. Raises SourceChanged for another."""

    @abstractmethod
    def upload(self, path: str, file: BinaryIO) -> None:
        """Write an object from a file of any size, completely or not at all."""

    def lookup(self, path: str) -> Stored | Folder | None:
        """An object wins over a folder of the same name."""
        path = self.real(path)
        if not path.endswith("/") and len(path) > len(self.root(path)):
            try:
                return self.look(path)
            except FileNotFoundError:
                pass
        folder = _folder(path)
        return Folder(path=folder) if next(self.below(folder, None), None) else None

    def wanted(self, pattern: str, rule: Rule | None = None) -> Wanted:
        pattern = self.real(pattern)
        root = self.root(pattern)
        return Wanted.of(root, pattern[len(root) :], rule)

    def find(self, wanted: Wanted, after: str | None = None) -> Iterator[Listed | Passed]:
        states = wanted.begin()
        found = self.below(wanted.folder + wanted.head(states), after)
        return Sieve(wanted, states, wanted.folder).of(_in_order(found, after))

    def walk(self, folder: str, after: str | None = None) -> Iterator[Stored]:
        return _in_order(self.below(_folder(self.real(folder)), after), after)

    def objects(self, folder: str) -> list[Stored]:
        below = _folder(self.real(folder))
        return [stored for stored in self.below(below, None) if "/" not in stored.path[len(below) :]]

    def open(self, stored: Stored, piece: int | None = None) -> BinaryIO:
        if stored.size == 0 and self.look(stored.path) != stored:  # there is no range to ask for
            raise SourceChanged(errno.ESTALE, "changed since it was planned", stored.path)
        return buffered(_Fetched(self, stored), piece)

    def read(self, path: str) -> bytes:
        with self.open(self.look(self.real(path))) as stream:
            return stream.read()

    @contextmanager
    def written(self, path: str) -> Iterator[BinaryIO]:
        with tempfile.TemporaryFile(prefix="caprl-ray-") as file:
            yield file
            file.seek(0)
            self.upload(path, file)

    def real(self, path: str) -> str:
        return path

    def sweep(self, folder: str) -> None:  # noqa: B027 (nothing to do: an object is written whole or not at all)
        pass

    def probe(self, path: str, root: str) -> None:
        """Raise FileNotFoundError if nothing is below the root, unless the user may read but not list."""
        try:
            found = next(self.below(_folder(self.real(root)), None), None)
        except PermissionError:
            return
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "nothing is below the prefix", root)


class _Fetched(Ranges):
    def __init__(self, store: FlatStore, stored: Stored) -> None:
        super().__init__(stored)
        self._store = store

    def _fetch(self, start: int, end: int) -> bytes:
        """Raises plain OSError if the store denies more than this object: otherwise every row would fail."""
        try:
            content = self._store.fetch(self._stored, start, end)
        except Archived:
            raise
        except PermissionError:
            try:
                next(self._store.below(self._stored.path, None), None)
            except PermissionError:
                raise OSError(errno.EIO, "the store denies access to the bucket", self._stored.path) from None
            raise
        if len(content) != end - start:
            raise SourceChanged(errno.ESTALE, "the store gives fewer bytes than it lists", self._stored.path)
        return content


def _folder(path: str) -> str:
    """The common beginning of the paths in a folder. Slashes at the end stay, because a name may end with several."""
    return path if path.endswith("/") else path + "/"


def _in_order(found: Iterator[Stored], after: str | None) -> Iterator[Stored]:
    """The objects after a path. Raises OSError if they are not sorted: continued planning would then lose objects."""
    last = ""
    for stored in found:
        if stored.path <= last:
            raise OSError(errno.EOPNOTSUPP, "the store does not list its objects sorted by name", stored.path)
        last = stored.path
        if after is None or stored.path > after:
            yield stored
