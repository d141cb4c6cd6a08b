"""Allowed places for an output: a folder of its own, apart from the input and from other files."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.storage import Folder, Storage, is_below, join
from caprl_ray.storage.local import in_the_way, is_local, missing_folders, remove_empty

# The names that runs write at the top of an output. Names that begin with a dot are ignored.
FOLDERS = {"plan", "data", "failed", "fence", "again", "doubtful", "report", "evaluations", "parts"}
OURS = FOLDERS | {"run.json", "lease.json", "status.json", "summary.json", "evaluation.json", "_SUCCESS"}
LOOKED_AT = 1000  # objects: the parts of a plan that was stopped come before other people's files only by their names
BUCKET = re.compile(r"(?:s3|gs|az)://[^/]+/*")
PATTERN = re.compile(r"[*?\[{]")


def check(storage: Storage, output: str, inputs: Iterable[str]) -> None:
    """Raise RecipeError if a new output may not lie at a path."""
    try:
        _check(storage, output, inputs)
    except OSError as error:
        raise SystemFailure(f"output.path: {output} cannot be read ({error.strerror}).") from error


def _check(storage: Storage, output: str, inputs: Iterable[str]) -> None:
    refuse_whole(output)
    if file := in_the_way(output, of_folder=True):
        raise RecipeError(f"output.path: {file} is in the way of the folder {output}; name another one.")
    place = storage.real(output).rstrip("/")
    for path in inputs:
        named = _folder(storage, path)
        if named == place:
            raise RecipeError(f"output.path: {output} is the input itself; name another folder, {_below(output)}.")
        if is_below(named, place):
            raise RecipeError(f"output.path: {output} holds the input {path}; name another folder, {_below(output)}.")
    theirs = _others(storage, output)
    if theirs:
        raise RecipeError(
            f"output.path: {output} has files that no run has written, such as {theirs}; name an empty or a new "
            f"folder, {_below(output)}."
        )


def refuse_whole(output: str) -> None:
    """Raise RecipeError for a whole bucket or disk."""
    if BUCKET.fullmatch(output) or not output.strip("/"):
        raise RecipeError(f"output.path: {output} is a whole bucket or disk; name a folder in it, {_below(output)}.")


@contextmanager
def left_as_it_was(output: str) -> Iterator[None]:
    """Remove empty folders that the block made for an output, if a recipe is refused."""
    made = missing_folders(output) if is_local(output) else []
    try:
        yield
    except RecipeError:
        remove_empty(made)
        raise


@contextmanager
def untouched(output: str) -> Iterator[None]:
    """Remove empty folders that the block made for an output."""
    made = missing_folders(output) if is_local(output) else []
    try:
        yield
    finally:
        remove_empty(made)


def inside(storage: Storage, output: str, inputs: Iterable[str]) -> str | None:
    """The input folder that an output lies in, if any."""
    place = storage.real(output)
    return next((path for path in inputs if is_below(place, _folder(storage, path))), None)


def _folder(storage: Storage, path: str) -> str:
    """A path of the input, or the folder that its pattern begins with."""
    found = PATTERN.search(path)
    if found and storage.lookup(path) is None:
        folder, slash, _ = path[: found.start()].rpartition("/")
        path = folder or slash or "."
    return storage.real(path).rstrip("/")


def _others(storage: Storage, output: str) -> str | None:
    """The name of a file in the folder that no run wrote."""
    if not isinstance(storage.lookup(output), Folder):
        return None
    folder = join(output, "")
    for stored in islice(storage.walk(output), LOOKED_AT):
        name = stored.path.removeprefix(folder)
        first = name.partition("/")[0]
        if first not in OURS and not first.startswith("."):
            return name
    return None


def _below(output: str) -> str:
    return f"such as {join(output, 'captions')}"
