"""What every kind of source gets: the objects that were found, and how to reach and read them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from caprl_ray.errors import RowFailure
from caprl_ray.recipe.sections import Input, Recipe
from caprl_ray.storage import SourceChanged, Storage, Stored


@dataclass(frozen=True, kw_only=True)
class Found:
    """An object that the recipe's paths name.

    `key` is its path below the named folder, or else its own name. `named` says that the recipe names the object
    itself; then it is taken whatever its name says of its kind.
    """

    stored: Stored
    key: str
    named: bool


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a source is planned and read: its storage, the recipe's section, and the largest image in bytes.

    `images` says whether the job needs images. If not, rows of parquet files are read without any.
    """

    storage: Storage
    input: Input
    max_bytes: int
    images: bool = True

    @classmethod
    def of(cls, recipe: Recipe, *, images: bool = True) -> "Access":
        """How a recipe's input is read."""
        storage = Storage(recipe.storage)
        return cls(storage=storage, input=recipe.input, max_bytes=recipe.prepare.max_bytes, images=images)


@contextmanager
def source_failures() -> Iterator[None]:
    """Storage errors about the one object that was asked for, as RowFailure. Faults of the storage itself pass on."""
    try:
        yield
    except FileNotFoundError:
        raise RowFailure("source_missing") from None
    except SourceChanged:
        raise RowFailure("source_changed") from None
    except PermissionError:
        raise RowFailure("source_unreadable", "permission denied") from None
