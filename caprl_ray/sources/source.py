"""The arguments of every kind of input: the objects that were found, and how to read them."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.recipe.input import Input
from caprl_ray.recipe.sections import Recipe
from caprl_ray.storage import Archived, NotGranted, SourceChanged, Storage, Stored


@dataclass(frozen=True, kw_only=True)
class Found:
    """An object that the recipe's paths name.

    `key`: its path below the folder that the recipe names, or else its own name. `named`: the recipe names the object
    itself; then it is used even if its name is not typical of its kind. `name`: the number of the name, among those
    that the recipe's path expands to. `hidden_table`: it counts as hidden if it is a table. `again`: it was found
    before. `real`: its path with links followed, if that is needed.
    """

    stored: Stored
    key: str
    named: bool
    name: int = 0
    hidden_table: bool = False
    again: bool = False
    real: str | None = None


@dataclass(frozen=True, kw_only=True)
class Access:
    """The settings to plan and read the input: storage, the recipe's section, and the largest image in bytes.

    `images`: whether the job needs images. If not, the rows of parquet files and manifests are read without them.
    `output`: the job's output, which is never read as input.
    """

    storage: Storage
    input: Input
    max_bytes: int
    images: bool = True
    output: str | None = None

    @classmethod
    def of(cls, recipe: Recipe, *, images: bool = True) -> "Access":
        """Build it from a recipe."""
        storage = Storage(recipe.storage)
        return cls(
            storage=storage,
            input=recipe.input,
            max_bytes=recipe.prepare.max_bytes,
            images=images,
            output=recipe.output.path,
        )


@contextmanager
def source_failures(planned: Stored, access: Access) -> Iterator[None]:
    """Turn storage errors about the planned object into RowFailures. Errors of the storage itself pass through."""
    try:
        yield
    except FileNotFoundError:
        raise RowFailure("source_missing") from None
    except SourceChanged:
        raise RowFailure("source_changed", _difference(planned, access.storage)) from None
    except PermissionError as error:
        raise RowFailure("source_unreadable", denied(error)) from None


def denied(error: PermissionError) -> str:
    """Why an object cannot be read, for the detail of a row."""
    return str(error.strerror) if isinstance(error, Archived) else "permission denied"


def not_listed(path: str, error: OSError) -> SystemFailure:
    """The failure for a path of the recipe that cannot be listed, or for a folder below it."""
    if isinstance(error, PermissionError):
        return SystemFailure(
            f"input.paths: {path} is not listed: permission denied at {error.filename or path}; make it readable, or "
            "name only readable folders, and run the same command again to continue."
        )
    at = f"; {error.filename}" if error.filename and error.filename != path else ""
    again = (
        ""
        if error.errno == errno.EOPNOTSUPP or isinstance(error, NotGranted)
        else "; run the same command again to go on"
    )
    return SystemFailure(f"input.paths: {path} cannot be listed{at} ({error.strerror or type(error).__name__}){again}.")


def _difference(planned: Stored, storage: Storage) -> str:
    """The planned and the present size and version of an object that changed."""
    try:
        now = storage.lookup(planned.path)
    except OSError:
        now = None
    found = _said(now) if isinstance(now, Stored) else "nothing that can be read"
    return f"planned: {_said(planned)}; found: {found}"


def _said(stored: Stored) -> str:
    kind, _, version = stored.version.partition(":")
    if kind == "mtime" and version.isdecimal():
        return f"{stored.size} bytes of {datetime.fromtimestamp(int(version) / 1e9, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    return f"{stored.size} bytes, {stored.version}"


@contextmanager
def planning_failures(path: str) -> Iterator[None]:
    """Turn storage errors about an object that is being planned into SystemFailures, so that it is never lost: planning
    stops, and the next run goes on with this object."""
    try:
        yield
    except OSError as error:
        reason, first = error.strerror or type(error).__name__, ""
        if isinstance(error, FileNotFoundError | SourceChanged):
            reason = f"{'changed' if isinstance(error, SourceChanged) else 'removed'} since it was listed"
        elif isinstance(error, PermissionError) and not isinstance(error, Archived):
            first = "make it readable or remove it, and "
        raise SystemFailure(
            f"input: {path} cannot be planned ({reason}); {first}run the same command again: planning continues there."
        ) from error
