"""All access to storage, local and remote, behind one interface.

Another kind of store is a module with the functions of `Store` and one line in `Storage._store`.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, runtime_checkable

from caprl_ray.errors import RecipeError
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.storage import hub
from caprl_ray.storage.azure_blobs import AzureStore
from caprl_ray.storage.gcs import GoogleStore
from caprl_ray.storage.local import LocalStore
from caprl_ray.storage.prefetch import prefetched
from caprl_ray.storage.s3 import S3Store
from caprl_ray.storage.stored import Archived, Folder, Listed, NotGranted, Passed, SourceChanged, Stored, is_below
from caprl_ray.storage.wanted import Rule, Wanted

__all__ = [
    "Archived",
    "Folder",
    "Listed",
    "NotGranted",
    "Passed",
    "Rule",
    "SourceChanged",
    "Storage",
    "Stored",
    "Wanted",
    "is_below",
    "join",
]

LOOKUPS = 16  # at once: each waits for storage far longer than it computes


def join(path: str, *names: str) -> str:
    """The path of something below a folder."""
    return "/".join([path.rstrip("/"), *names])


class Store(Protocol):
    """One kind of storage. Storage, which passes calls on, describes each function."""

    def lookup(self, path: str) -> Stored | Folder | None: ...

    def wanted(self, pattern: str, rule: Rule | None) -> Wanted: ...

    def find(self, wanted: Wanted, after: str | None) -> Iterator[Listed | Passed]: ...

    def walk(self, folder: str, after: str | None) -> Iterator[Stored]: ...

    def objects(self, folder: str) -> list[Stored]: ...

    def open(self, stored: Stored, piece: int | None) -> BinaryIO: ...

    def read(self, path: str) -> bytes: ...

    def put(self, path: str, content: bytes) -> None: ...

    def written(self, path: str) -> AbstractContextManager[BinaryIO]: ...

    def create(self, path: str, content: bytes) -> Stored: ...

    def replace(self, stored: Stored, content: bytes) -> Stored: ...

    def delete(self, path: str) -> None: ...

    def real(self, path: str) -> str: ...

    def probe(self, path: str, root: str) -> None: ...

    def sweep(self, folder: str) -> None: ...


@runtime_checkable
class Dated(Protocol):
    """A store that knows how old an object is."""

    def age(self, path: str) -> float | None: ...


@dataclass(frozen=True)
class Storage:
    """Storage by the recipe's section `storage`. It travels to Ray's workers and connects where it is used.

    Paths are as the recipe gives them: relative, absolute, `file://`, `s3://bucket/key`, or those of another store
    (`gs://`, `az://`, `hf://`). Every function raises
    FileNotFoundError or PermissionError for the one object that was asked for, and any other OSError for a fault of the
    storage itself; its `strerror` holds no secret. RecipeError for other schemes.
    """

    settings: StorageSettings = field(default_factory=StorageSettings)

    def lookup(self, path: str) -> Stored | Folder | None:
        """The object or folder at a path, or None."""
        return self._store(path).lookup(path)

    def pinned(self, path: str, before: str | None = None) -> str:
        """The path with the commit that it means now, where a store has commits; otherwise the path itself.

        `before` was found at this path by an earlier planning; its commit stays.
        """
        return hub.pinned(path, before) if path.startswith(hub.SCHEME) else path

    def lookup_all(self, paths: Iterable[str]) -> Iterator[Stored | Folder | None]:
        """The object or folder at each path, in order, several lookups at a time."""
        return prefetched(self.lookup, paths, LOOKUPS)

    def wanted(self, pattern: str, rule: Rule | None = None) -> Wanted:
        """What matches a glob (`*`, `?`, `[…]`, `**`), or begins with a path without a pattern.

        `rule` passes names over, unless the pattern spells them out.
        """
        return self._store(pattern).wanted(pattern, rule)

    def find(self, wanted: Wanted, after: str | None = None) -> Iterator[Listed | Passed]:
        """The wanted objects and those that are passed over, in the order of paths. Holds a bounded part at a time.

        `after`: only objects after this path, which was listed before. Those before it are not listed again.
        """
        return self._store(wanted.folder).find(wanted, after)

    def walk(self, folder: str, after: str | None = None) -> Iterator[Stored]:
        """Every object below a folder, at any depth and with any name, as `find` lists them."""
        return self._store(folder).walk(folder, after)

    def objects(self, folder: str, suffix: str) -> list[Stored]:
        """The objects directly in a folder whose names end in `suffix`, by path; empty without a folder."""
        found = (stored for stored in self._store(folder).objects(folder) if stored.path.endswith(suffix))
        return sorted(found, key=lambda stored: stored.path)

    def open(self, stored: Stored, *, piece: int | None = None) -> BinaryIO:
        """Open an object for reading from its start. It is seekable.

        `piece`: the bytes per request, small for a few columns of a table; by default the store decides. Raises
        SourceChanged, here or while reading, if it is not the given version.
        """
        return self._store(stored.path).open(stored, piece)

    def read(self, path: str) -> bytes:
        """A small object as a whole."""
        return self._store(path).read(path)

    def put(self, path: str, content: bytes) -> None:
        """Write an object completely or not at all, over any older one."""
        self._store(path).put(path, content)

    def written(self, path: str) -> AbstractContextManager[BinaryIO]:
        """A local file for the content of an object larger than memory.

        It is put in its place, whole, over any older one, when the block ends. After an exception nothing is there.
        """
        return self._store(path).written(path)

    def create(self, path: str, content: bytes) -> Stored:
        """Write a new object. Raises FileExistsError if there is one, also one written this moment."""
        return self._store(path).create(path, content)

    def replace(self, stored: Stored, content: bytes) -> Stored:
        """Write an object over exactly this version. Raises SourceChanged or FileNotFoundError otherwise."""
        return self._store(stored.path).replace(stored, content)

    def delete(self, path: str) -> None:
        """Remove an object; no error if it is not there."""
        self._store(path).delete(path)

    def real(self, path: str) -> str:
        """The path with its symbolic links followed, also if nothing is there."""
        return self._store(path).real(path)

    def probe(self, path: str, root: str) -> None:
        """Raise OSError if the storage of a path below a folder `root` does not work, or if `root` is empty.

        A lost mount leaves an empty folder.
        """
        self._store(path).probe(path, root)

    def age(self, path: str) -> float | None:
        """The seconds since an object was written, by the store's own clock; None if there is none, or it does not
        tell."""
        store = self._store(path)
        return store.age(path) if isinstance(store, Dated) else None

    def sweep(self, folder: str) -> None:
        """Remove files of killed writers in a folder."""
        self._store(folder).sweep(folder)

    def _store(self, path: str) -> Store:
        scheme = path.partition("://")[0] if "://" in path else "file"
        if scheme == "file":
            return LocalStore()
        if scheme == "s3":
            return S3Store(self.settings)
        if scheme == "hf":
            return hub.HubStore(self.settings)
        if scheme == "gs":
            return GoogleStore(self.settings)
        if scheme == "az":
            return AzureStore(self.settings)
        if scheme.lower() in ("http", "https"):
            raise RecipeError(
                f"{path}: images are not fetched from the web; download them to a folder or bucket first."
            )
        raise RecipeError(
            f"{path}: storage of the kind {scheme}:// is not supported; use a local path, s3://, gs://, az:// or hf://."
        )
