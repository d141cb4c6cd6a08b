"""Check which images the rows of a table may name: only those below its own folder or below `input.image_roots`."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice, takewhile

from caprl_ray.errors import RecipeError, RowFailure
from caprl_ray.sources.image_path import bucket_of, resolve
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage, is_below
from caprl_ray.storage.hub import unpinned
from caprl_ray.text import plain

# Most rows of the first file that planning tries until one may be read, and most roots that its message proposes.
ROWS_TRIED, PROPOSED = 2**16, 4
MOST_SHOWN = 200  # characters of a path in a message
KERNEL = ("/proc", "/sys")  # the kernel's files may block or never end


@dataclass(frozen=True, kw_only=True)
class NamedImage:
    """An image that a row may name: its path or URI, its real path with links followed, and the root above it."""

    path: str
    real: str
    root: str


class Outside(RowFailure):
    """The row names an image that is below no root. `folder`: the image's folder."""

    def __init__(self, folder: str) -> None:
        shown = plain(folder).replace("\n", " ")
        shown = shown if len(shown) <= MOST_SHOWN else "its folder"
        super().__init__(
            "source_refused", f"outside of the table's folder; to read it, add {shown} to input.image_roots"
        )
        self.folder = folder


@dataclass(frozen=True, kw_only=True)
class Roots:
    """The folders and prefixes, with links followed, below which the rows of the parquet file may name images."""

    parquet: str
    storage: Storage
    folders: tuple[str, ...]

    @classmethod
    def of(cls, parquet: str, access: Access) -> "Roots":
        """The roots for the parquet file at this path."""
        own = parquet.rpartition("/")[0] or "/"
        folders = tuple(map(access.storage.real, (own, *access.input.image_roots)))
        return cls(parquet=parquet, storage=access.storage, folders=folders)

    def named(self, path: str) -> NamedImage:
        """The image that a row names. Raises Outside, or RowFailure for a text that is not a path."""
        full = resolve(path, self.parquet)
        # Checked before any request: a row must not cause a connection to a store that the recipe does not name.
        if bucket_of(full) and not any(is_below(unpinned(full), unpinned(folder)) for folder in self.folders):
            raise Outside(full.rpartition("/")[0])
        try:
            real = self.storage.real(full)
        except ValueError:  # a NUL that was percent-encoded
            raise RowFailure("source_refused", "not a path") from None
        if any(is_below(real, folder) for folder in KERNEL):
            raise RowFailure("source_refused", "a file of the kernel")
        root = next((folder for folder in self.folders if is_below(real, folder)), None)
        if root is None:
            raise Outside(real.rpartition("/")[0] or "/")
        return NamedImage(path=full, real=real, root=root)


def refuse_outside(paths: Iterable[str], parquet: str, access: Access) -> None:
    """Raise RecipeError if no row with one of these paths would be read, and more image_roots would help.

    `paths`: those of the table's rows. They are tried until one may be read.
    """
    roots, folders, example = Roots.of(parquet, access), set(), ""
    for path in islice(paths, ROWS_TRIED):
        try:
            roots.named(path)
            return
        except Outside as outside:
            folders.add(outside.folder)
            example = example or path
        except RowFailure:
            continue
    if folders:
        wanted = json.dumps([*access.input.image_roots, *proposed(folders)], ensure_ascii=False)
        raise RecipeError(
            f"input.image_roots: {parquet} names images outside of its own folder, such as "
            f"{plain(example)[:MOST_SHOWN]!r}; if they may be read, set input.image_roots={wanted}."
        )


def proposed(folders: Iterable[str]) -> list[str]:
    """Roots that hold these folders: for each bucket or top folder, the common parent of its folders."""
    groups: dict[str, list[list[str]]] = defaultdict(list)
    for names in sorted(folder.split("/") for folder in folders):
        bucket = bucket_of("/".join(names))
        top = bucket.count("/") + 1 if bucket else 2
        groups["/".join(names[:top])].append(names)
    return ["/".join(_common(group[0], group[-1])) or "/" for group in groups.values()][:PROPOSED]


def _common(first: list[str], last: list[str]) -> list[str]:
    """The names that the first and the last of a sorted group begin with. So do all between them."""
    return [name for name, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
