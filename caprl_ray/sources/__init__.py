"""The kinds of input. Each kind cuts the input into work units, and streams the samples of a unit.

To add a kind, write a module with the functions of `Source`, and add a line to `KINDS`.
"""

from collections import deque
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import dataclass, replace
from glob import has_magic
from hashlib import sha256
from itertools import chain, islice

from braceexpand import braceexpand
from pyroaring import BitMap

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.plan import LeftOut, Position, Unit
from caprl_ray.recipe.sections import Input
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
    of their index; for an index in the given set it may yield None. It counts what it leaves out of the whole unit,
    whatever is in the set. `takes` tells by its name whether an object is of
    this kind. `suspects` gives the rows that may have killed a reader, in ranges of rows that can
    only be read together, the likeliest first; `index` is the first row that the reader has not yielded.
    """

    plan: Callable[[Iterator[Found], Access], Iterator[Unit]]
    read: Callable[[Unit, BitMap, Access, LeftOut], Iterator[Sample | None]]
    takes: Callable[[Stored], bool]
    suspects: Callable[[Unit, int, Access], list[range]] = lambda _, index, __: [range(index, index + 1)]


KINDS = {
    "files": Source(plan=files.plan, read=files.read, takes=files.takes),
    "webdataset": Source(
        plan=webdataset.plan, read=webdataset.read, takes=webdataset.takes, suspects=webdataset.suspects
    ),
    "parquet": Source(plan=parquet.plan, read=parquet.read, takes=parquet.takes, suspects=parquet.suspects),
}


def plan_units(
    access: Access,
    known: Container[str] = (),
    after: Position | None = None,
    columns: Collection[str] = (),
    left_out: LeftOut | None = None,
) -> Iterator[Unit]:
    """Yield the units of the recipe's input, in the order of its paths. Columns have their names in the output.

    Objects whose paths are in `known` are left out. What comes before the position `after` is not listed again, as far
    as storage and the recipe's paths allow; `known` must hold it. `columns` are those of the units before. What is left
    out is counted in `left_out`: with a unit what comes before its last object, at the end the rest.

    Raises RecipeError if nothing is found, SystemFailure if storage cannot be listed.
    """
    planned = _planned(access, known, after, LeftOut() if left_out is None else left_out)
    yield from renamed(planned, access.input.rename, columns)


def goes_on(after: Position | None, settings: Input) -> bool:
    """Whether the listing of this input can go on after a position."""
    if after is None:
        return False
    return after.paths == _paths_hash(settings, after.path) and settings.kind in (None, after.kind)


def read_unit(unit: Unit, done: BitMap, access: Access, left_out: LeftOut) -> Iterator[Sample | None]:
    """Yield the unit's samples as its kind's `read` does. Metadata has its names in the output."""
    samples = KINDS[unit.kind].read(unit, done, access, left_out)
    return renamed_samples(samples, access.input.rename) if access.input.rename else samples


def _planned(access: Access, known: Container[str], after: Position | None, left_out: LeftOut) -> Iterator[Unit]:
    paths = access.input.paths
    if not goes_on(after, access.input):
        after = None
    for number in range(after.path if after else 0, len(paths)):
        here = after if after and number == after.path else None
        try:
            yield from _plan_path(number, access, known, here, left_out)
        except OSError as error:
            # The recipe's path is often a folder, and one of a million files in it is meant.
            at = f"; {error.filename}" if error.filename and error.filename != paths[number] else ""
            raise SystemFailure(
                f"input.paths: {paths[number]} cannot be listed{at} ({error.strerror or type(error).__name__}); "
                "run the same command again to go on."
            ) from error


def _paths_hash(settings: Input, path: int) -> str:
    return sha256("\0".join(settings.paths[: path + 1]).encode("utf-8", "surrogateescape")).hexdigest()


def _plan_path(
    number: int, access: Access, known: Container[str], after: Position | None, left_out: LeftOut
) -> Iterator[Unit]:
    path = access.input.paths[number]
    found = _found(path, access.storage, after)
    first = [] if after else list(islice(found, SEEN_FOR_KIND))
    kind = after.kind if after else access.input.kind or _infer(path, first)
    if not access.images and kind != "parquet":
        raise RecipeError(f"input.paths: {path} holds {kind}; this job reads the rows of parquet files.")
    source = KINDS[kind]
    begun = _Begun()
    units = source.plan(begun.noted(chain(first, found), source.takes, known), access)
    paths = _paths_hash(access.input, number)
    for unit in units:
        last = unit.entries[-1].stored.path
        name = begun.until(last, left_out)
        yield replace(unit, position=Position(paths=paths, path=number, name=name, object=last, kind=kind))
    left_out.merge(begun.left_out)


class _Begun:
    """The objects that were given to the source and are not yet in a unit, each with what was left out before it."""

    def __init__(self) -> None:
        self._begun: deque[tuple[Found, LeftOut]] = deque()
        self.left_out = LeftOut()
        """What was left out after the last of them."""

    def noted(self, found: Iterator[Found], takes: Callable[[Stored], bool], known: Container[str]) -> Iterator[Found]:
        """The objects that the source takes and that are not yet planned."""
        for f in found:
            if not (f.named or takes(f.stored)):
                self.left_out.add("unknown_ending", f.stored.path)
            elif f.stored.path not in known:
                self._begun.append((f, self.left_out))
                self.left_out = LeftOut()
                yield f

    def until(self, last: str, left_out: LeftOut) -> int:
        """Count what was left out before the object `last`. Returns the number of the name that found it."""
        while True:
            found, before = self._begun[0]
            left_out.merge(before)
            self._begun[0] = (found, LeftOut())  # further units of the object may follow
            if found.stored.path == last:
                return found.name
            self._begun.popleft()


def _found(path: str, storage: Storage, after: Position | None = None) -> Iterator[Found]:
    """Yield every object that a path of the recipe names, or the names from that of `after` on."""
    names = _braces(path, storage)
    several = names != [path]
    begin = after.name if after and after.name < len(names) else 0
    done = after.object if after else None
    for number, there in enumerate(storage.lookup_all(names[begin:]), begin):
        name = names[number]
        if there is None and several and not has_magic(name):
            raise RecipeError(f"input.paths: {path} names {len(names)} paths, of which {name} does not exist.")
        if there is None:
            yield from _matching(name, number, storage, done)
        else:
            yield from _objects(there, number, storage, done, named=True)


def _braces(path: str, storage: Storage) -> list[str]:
    """Expand brace ranges, unless the path exists as written."""
    if "{" not in path or storage.lookup(path):
        return [path]
    try:
        return list(braceexpand(path))
    except ValueError:
        raise RecipeError(f"input.paths: {path} has a brace that is not closed.") from None


def _matching(pattern: str, name: int, storage: Storage, done: str | None) -> Iterator[Found]:
    """Yield the matches of a glob or a prefix. Raises RecipeError if there are none."""
    matches = storage.find(pattern)
    first = next(matches, None)
    if first is None:
        raise RecipeError(f"input.paths: nothing was found at {pattern}.")
    for match in chain([first], matches):
        yield from _objects(match, name, storage, done, named=False)


def _objects(there: Stored | Folder, name: int, storage: Storage, done: str | None, *, named: bool) -> Iterator[Found]:
    """Yield the object itself, or all objects below the folder. `done` is the last one that was planned before."""
    if isinstance(there, Stored):
        yield Found(stored=there, key=there.path.rpartition("/")[2], named=named, name=name)
        return
    within = done is not None and done.startswith(there.path)
    for stored in storage.walk(there.path, done if within else None):
        yield Found(stored=stored, key=stored.path.removeprefix(there.path), named=False, name=name)


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
