"""The kinds of input. Each kind cuts the input into work units, and streams the samples of a unit.

To add a kind, write a module with the functions of `Source`, and add a line to `KINDS`.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from glob import has_magic
from itertools import chain, islice

from braceexpand import braceexpand
from pyroaring import BitMap

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.plan import Unit
from caprl_ray.sources import files, parquet, webdataset
from caprl_ray.sources.rename import renamed, renamed_samples
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.source import Access, Found
from caprl_ray.storage import Folder, Storage, Stored

SEEN_FOR_KIND = 1000  # number of names from which the kind of a path is inferred


@dataclass(frozen=True, kw_only=True)
class Source:
    """The functions of one kind of input.

    `plan` cuts the objects that one path of the recipe names into units. `read` yields the samples of a unit in order
    of their index; for an index in the given set it may yield None. `takes` tells by its name whether an object is of
    this kind. `suspects` gives the rows that may have killed a reader, in ranges of rows that can
    only be read together, the likeliest first; `index` is the first row that the reader has not yielded.
    """

    plan: Callable[[Iterator[Found], Access], Iterator[Unit]]
    read: Callable[[Unit, BitMap, Access], Iterator[Sample | None]]
    takes: Callable[[Stored], bool]
    suspects: Callable[[Unit, int, Access], list[range]] = lambda _, index, __: [range(index, index + 1)]


KINDS = {
    "files": Source(plan=files.plan, read=files.read, takes=files.takes),
    "webdataset": Source(
        plan=webdataset.plan, read=webdataset.read, takes=webdataset.takes, suspects=webdataset.suspects
    ),
    "parquet": Source(plan=parquet.plan, read=parquet.read, takes=parquet.takes, suspects=parquet.suspects),
}


def plan_units(access: Access, known: Container[str] = ()) -> Iterator[Unit]:
    """Yield the units of the recipe's input, in the order of its paths. Columns have their names in the output.

    Objects whose paths are in `known` are left out. Raises RecipeError if nothing is found, SystemFailure if storage
    cannot be listed.
    """
    yield from renamed(_planned(access, known), access.input.rename)


def read_unit(unit: Unit, done: BitMap, access: Access) -> Iterator[Sample | None]:
    """Yield the unit's samples as its kind's `read` does. Metadata has its names in the output."""
    samples = KINDS[unit.kind].read(unit, done, access)
    return renamed_samples(samples, access.input.rename) if access.input.rename else samples


def _planned(access: Access, known: Container[str]) -> Iterator[Unit]:
    for path in access.input.paths:
        try:
            yield from _plan_path(path, access, known)
        except OSError as error:
            raise SystemFailure(
                f"input.paths: {path} cannot be listed ({error.strerror or type(error).__name__})."
            ) from error


def _plan_path(path: str, access: Access, known: Container[str]) -> Iterator[Unit]:
    found = _found(path, access.storage)
    first = list(islice(found, SEEN_FOR_KIND))
    kind = access.input.kind or _infer(path, first)
    if not access.images and kind != "parquet":
        raise RecipeError(f"input.paths: {path} holds {kind}; this job reads the rows of parquet files.")
    source = KINDS[kind]
    wanted = (f for f in chain(first, found) if f.named or source.takes(f.stored))
    return source.plan((f for f in wanted if f.stored.path not in known), access)


def _found(path: str, storage: Storage) -> Iterator[Found]:
    """Yield every object that a path of the recipe names."""
    names = _braces(path, storage)
    several = names != [path]
    for name, there in zip(names, storage.lookup_all(names), strict=True):
        if there is None and several and not has_magic(name):
            raise RecipeError(f"input.paths: {path} names {len(names)} paths, of which {name} does not exist.")
        if there is None:
            yield from _matching(name, storage)
        else:
            yield from _objects(there, storage, named=True)


def _braces(path: str, storage: Storage) -> list[str]:
    """Expand brace ranges, unless the path exists as written."""
    if "{" not in path or storage.lookup(path):
        return [path]
    try:
        return list(braceexpand(path))
    except ValueError:
        raise RecipeError(f"input.paths: {path} has a brace that is not closed.") from None


def _matching(pattern: str, storage: Storage) -> Iterator[Found]:
    """Yield the matches of a glob or a prefix. Raises RecipeError if there are none."""
    matches = storage.find(pattern)
    first = next(matches, None)
    if first is None:
        raise RecipeError(f"input.paths: nothing was found at {pattern}.")
    for match in chain([first], matches):
        yield from _objects(match, storage, named=False)


def _objects(there: Stored | Folder, storage: Storage, *, named: bool) -> Iterator[Found]:
    """Yield the object itself, or all objects below the folder."""
    if isinstance(there, Stored):
        yield Found(stored=there, key=there.path.rpartition("/")[2], named=named)
        return
    for stored in storage.walk(there.path):
        yield Found(stored=stored, key=stored.path.removeprefix(there.path), named=False)


def _infer(path: str, found: list[Found]) -> str:
    """Infer the kind of a path's objects from the names of the first ones."""
    seen = {kind for f in found for kind, source in KINDS.items() if source.takes(f.stored)}
    if len(seen) == 1:
        return seen.pop()
    kinds = " or ".join(KINDS)
    if seen:
        raise RecipeError(
            f"input.paths: {path} holds {' and '.join(sorted(seen))}; set input.kind to {kinds}, or name the folders."
        )
    raise RecipeError(
        f"input.paths: {path} holds no file named like an image, a shard or parquet; set input.kind to {kinds}."
    )
