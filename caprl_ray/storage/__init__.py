"""All access to storage, local and remote, behind one interface.

To add a store, write a module with the functions of `Store`, and add it to `Storage._store`.
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

LOOKUPS = 16  # at the same time, because each mostly waits for storage


def join(path: str, *names: str) -> str:
    """The path of `names`, one within the other, below a folder."""
    return "/".join([path.rstrip("/"), *names])


class Store(Protocol):
    """One kind of storage. `Storage` passes calls on to it, and describes each function."""

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
    """All storage, with the settings of the recipe's section `storage`. It can be sent to Ray's workers: each process
    connects when it first uses a store.

    Paths are as the recipe gives them: relative, absolute, `file://`, `s3://bucket/key`, or those of another store
    (`gs://`, `az://`, `hf://`); other schemes raise RecipeError. A FileNotFoundError or PermissionError concerns only
    the object that was asked for. Any other OSError is a fault of the storage itself. Its `strerror` holds no secret.
    """

    settings: StorageSettings = field(default_factory=StorageSettings)

    def lookup(self, path: str) -> Stored | Folder | None:
        """The object or folder at a path, or None."""
        return self._store(path).lookup(path)

    def pinned(self, path: str, before: str | None = None) -> str:
        """The path with its present commit, if the store has commits; otherwise the path itself.

        `before`: the pinned path of an earlier planning, whose commit is kept.
        """
        return hub.pinned(path, before) if path.startswith(hub.SCHEME) else path

    def lookup_all(self, paths: Iterable[str]) -> Iterator[Stored | Folder | None]:
        """The object or folder at each path, in order. Several are looked up at the same time."""
        return prefetched(self.lookup, paths, LOOKUPS)

    def wanted(self, pattern: str, rule: Rule | None = None) -> Wanted:
        """The objects to `find`: those that match a glob (`*`, `?`, `[…]`, `**`), or begin with a path without one.

        `rule`: tells which names are passed over, unless the pattern spells them out.
        """
        return self._store(pattern).wanted(pattern, rule)

    def find(self, wanted: Wanted, after: str | None = None) -> Iterator[Listed | Passed]:
        """List the wanted objects and those that are passed over, in the order of paths. Holds a bounded part of them.

        `after`: a path that was listed before; only objects after it are listed.
        """
        return self._store(wanted.folder).find(wanted, after)

    def walk(self, folder: str, after: str | None = None) -> Iterator[Stored]:
        """List every object below a folder, at any depth and with any name, as `find` does."""
        return self._store(folder).walk(folder, after)

    def objects(self, folder: str, suffix: str) -> list[Stored]:
        """The objects directly in a folder whose names end in `suffix`, sorted by path; empty if there is no folder."""
        found = (stored for stored in self._store(folder).objects(folder) if stored.path.endswith(suffix))
        return sorted(found, key=lambda stored: stored.path)

    def open(self, stored: Stored, *, piece: int | None = None) -> BinaryIO:
        """Open an object for reading from its start. The stream is seekable.

        `piece`: the bytes per request, small for a few columns of a table; by default the store decides. Raises
        SourceChanged, here or while reading, if the object has another version than `stored`.
        """
        return self._store(stored.path).open(stored, piece)

    def read(self, path: str) -> bytes:
        """Read a small object as a whole."""
        return self._store(path).read(path)

    def put(self, path: str, content: bytes) -> None:
        """Write an object completely or not at all, over any older one."""
        self._store(path).put(path, content)

    def written(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Context manager of a local file, for the content of an object larger than memory.

        When the block ends, the object is written whole, over any older one. After an exception nothing is written.
        """
        return self._store(path).written(path)

    def create(self, path: str, content: bytes) -> Stored:
        """Write a new object. Raises FileExistsError if there is one, even if it is being written at the same time."""
        return self._store(path).create(path, content)

    def replace(self, stored: Stored, content: bytes) -> Stored:
        """Overwrite exactly this version of an object. Raises SourceChanged or FileNotFoundError otherwise."""
        return self._store(stored.path).replace(stored, content)

    def delete(self, path: str) -> None:
        """Remove an object. No error if it does not exist."""
        self._store(path).delete(path)

    def real(self, path: str) -> str:
        """The path with its symbolic links followed. It need not exist."""
        return self._store(path).real(path)

    def probe(self, path: str, root: str) -> None:
        """Raise OSError if the storage of a path below the folder `root` does not work, or if `root` is empty.

        A lost mount leaves an empty folder.
        """
        self._store(path).probe(path, root)

    def age(self, path: str) -> float | None:
        """The seconds since an object was written, by the store's own clock. None if there is no such object, or if the
        store does not tell."""
        store = self._store(path)
        return store.age(path) if isinstance(store, Dated) else None

    def sweep(self, folder: str) -> None:
        """Remove the temporary files that killed writers left in a folder."""
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
