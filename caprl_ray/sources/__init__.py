"""Where images come from: each kind of source cuts paths into units and streams a unit's samples.

A new kind is one module with these two functions and one line in `KINDS`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import pyarrow as pa
from braceexpand import braceexpand

from caprl_ray import storage
from caprl_ray.errors import RecipeError
from caprl_ray.plan import Unit
from caprl_ray.recipe import Input
from caprl_ray.sources import files, webdataset
from caprl_ray.sources.samples import Sample
from caprl_ray.storage import Stored


@dataclass(frozen=True, kw_only=True)
class Source:
    """One kind of source.

    `plan` cuts one path, glob and brace range already expanded, into units. `read` streams a unit's samples in the
    order of their index; an index in the set it is given may come as None, unread. `metadata` names its own columns.
    """

    plan: Callable[[list[str]], Iterator[Unit]]
    read: Callable[..., Iterator[Sample | None]]
    metadata: pa.Schema
    takes: Callable[[Stored], bool]


KINDS = {
    "files": Source(plan=files.plan, read=files.read, metadata=pa.schema([]), takes=files.takes),
    "webdataset": Source(
        plan=webdataset.plan, read=webdataset.read, metadata=webdataset.METADATA, takes=webdataset.takes
    ),
}


def plan_units(recipe: Input) -> Iterator[Unit]:
    """The units of the recipe's input, in the order of its paths. Raises RecipeError where nothing is found."""
    return chain.from_iterable(_plan_path(path, recipe.kind) for path in recipe.paths)


def metadata_schema(kinds: Iterable[str]) -> pa.Schema:
    """The source columns of a plan with units of these kinds."""
    return pa.unify_schemas([KINDS[kind].metadata for kind in sorted(set(kinds))])


def _plan_path(path: str, kind: str | None) -> Iterator[Unit]:
    named = _named(path)
    found = named or _matching(path)
    kind = kind or _infer(path, found)
    if not named:  # a glob may match what lies beside the images, too
        found = [f for f in found if storage.is_folder(f) or KINDS[kind].takes(storage.stat(f))]
    return KINDS[kind].plan(found)


def _named(path: str) -> list[str]:
    """What a path or a brace range names, all of which must exist; empty for a glob or a prefix."""
    try:
        names = list(braceexpand(path)) if "{" in path and not storage.exists(path) else [path]
    except ValueError:
        raise RecipeError(f"input.paths: {path} has a brace that is not closed.") from None
    if names != [path]:
        absent = [name for name in names if not storage.exists(name)]
        if absent:
            raise RecipeError(f"input.paths: {path} names {len(names)} paths, of which {absent[0]} does not exist.")
        return [storage.local_path(name) for name in names]
    return [storage.local_path(path)] if storage.exists(path) else []


def _matching(path: str) -> list[str]:
    """What a glob or a prefix matches, and that must be something; nothing below a folder that matches itself."""
    found = [match for match in storage.find(path) if storage.exists(match)]
    folders = tuple(match.rstrip("/") + "/" for match in found if storage.is_folder(match))
    found = [match for match in found if not match.rstrip("/").startswith(folders)]
    if not found:
        raise RecipeError(f"input.paths: nothing was found at {path}.")
    return found


def _infer(path: str, found: list[str]) -> str:
    """The kind of what a path names, from its first thousand files' names."""
    seen = {
        kind
        for stored, _ in zip(storage.files(found), range(1000), strict=False)
        for kind, source in KINDS.items()
        if source.takes(stored)
    }
    if len(seen) == 1:
        return seen.pop()
    kinds = " or ".join(KINDS)
    if seen:
        raise RecipeError(
            f"input.paths: {path} holds images and shards; set input.kind to {kinds}, or name the folders."
        )
    raise RecipeError(f"input.paths: {path} holds no image and no shard by its names; set input.kind to {kinds}.")
