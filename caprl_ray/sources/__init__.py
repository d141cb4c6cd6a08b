"""The kinds of input. Each kind cuts the input into work units, and streams the samples of a unit.

To add a kind, write a module with the functions of `Source`, and add a line to `KINDS`.
"""

from collections import deque
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256

from pyroaring import BitMap

from caprl_ray.errors import RecipeError
from caprl_ray.plan import LeftOut, Position, Unit
from caprl_ray.recipe.input import Input
from caprl_ray.sources import files, manifest, parquet, parquet_read, webdataset
from caprl_ray.sources.listing import Listing
from caprl_ray.sources.rename import renamed, renamed_samples, selected
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.sorting import Sorting
from caprl_ray.sources.source import Access, Found, not_listed
from caprl_ray.storage import Passed, Stored


@dataclass(frozen=True, kw_only=True)
class Source:
    """The functions of one kind of input.

    `plan`: cuts the objects that one path of the recipe names into units.

    `read`: yields the samples of a unit in the order of their index. For an index in the given set it may yield None.
    It counts what it leaves out of the whole unit, whatever is in the set.

    `takes`: tells by its name whether an object is of this kind.

    `suspects`: the rows that may have killed a reader, the likeliest first, in ranges of rows that can only be read
    together. Its `index` is the first row that the reader has not yielded.

    `row`: the column `row` of a sample that could not be read, by its index, if the plan tells it.
    """

    plan: Callable[[Iterator[Found], Access], Iterator[Unit]]
    read: Callable[[Unit, BitMap, Access, LeftOut], Iterator[Sample | None]]
    takes: Callable[[Stored], bool]
    row: Callable[[Unit, int], int | None]
    suspects: Callable[[Unit, int, Access], list[range]] = lambda _, index, __: [range(index, index + 1)]


KINDS = {
    "files": Source(plan=files.plan, read=files.read, takes=files.takes, row=lambda _, __: 0),
    "webdataset": Source(
        plan=webdataset.plan,
        read=webdataset.read,
        takes=webdataset.takes,
        row=lambda _, index: index,
        suspects=webdataset.suspects,
    ),
    "parquet": Source(
        plan=parquet.plan,
        read=parquet_read.read,
        takes=parquet.takes,
        row=parquet.row,
        suspects=parquet_read.suspects,
    ),
    "manifest": Source(plan=manifest.plan, read=manifest.read, takes=manifest.takes, row=manifest.row),
}

TAKES = {kind: source.takes for kind, source in KINDS.items()}
WITHOUT_IMAGES = ("parquet", "manifest")  # kinds for a job that reads no images


def plan_units(
    access: Access,
    known: Container[Stored] = (),
    after: Position | None = None,
    columns: Collection[str] = (),
    left_out: LeftOut | None = None,
) -> Iterator[Unit]:
    """Yield the units of the recipe's input, in the order of its paths. Columns have their names in the output.

    `known`: objects that are planned already and are not planned again; it compares their paths. `after`: objects
    before this position are not listed again, as far as storage and the recipe's paths allow; `known` must hold them.
    `columns`: those of earlier units. `left_out`: counts the objects that are left out. When a unit is yielded, it has
    counted those before the unit's last object; at the end, all.

    Raises RecipeError if nothing is found, SystemFailure if storage cannot be listed.
    """
    planned = _planned(access, known, after, LeftOut() if left_out is None else left_out)
    first = known == () and not columns  # `known` is asked too, because an earlier plan may have no columns
    yield from renamed(selected(planned, access.input, first=first), access.input.rename, columns)


def objects(access: Access) -> Iterator[tuple[str, Found]]:
    """The objects of the recipe's input, each with its kind. Raises as `plan_units` does."""
    listing = Listing(access, None)
    for number, path in enumerate(access.input.paths):
        try:
            sorting = _sorting(path, listing.objects(number), access, None)
            yield from ((sorting.kind, found) for found in sorting.objects(()))
        except OSError as error:
            raise not_listed(path, error) from error


def goes_on(after: Position | None, settings: Input) -> bool:
    """Whether the listing of this input can continue after a position."""
    if after is None:
        return False
    return after.paths == _paths_hash(settings, after.path) and settings.kind in (None, after.kind)


def read_unit(unit: Unit, done: BitMap, access: Access, left_out: LeftOut) -> Iterator[Sample | None]:
    """Yield the unit's samples as its kind's `read` does. Metadata has its names in the output."""
    samples = KINDS[unit.kind].read(unit, done, access, left_out)
    return renamed_samples(samples, access.input.rename) if access.input.rename else samples


def _planned(access: Access, known: Container[Stored], after: Position | None, left_out: LeftOut) -> Iterator[Unit]:
    if not goes_on(after, access.input):
        after = None
    listing = Listing(access, after)
    for number in range(listing.first, len(access.input.paths)):
        try:
            if after and number < after.path:
                deque(listing.objects(number), maxlen=0)  # planned before; listed again to recognize its objects
            else:
                kind = after.kind if after and number == after.path else None
                yield from _plan_path(number, listing, access, known, kind, left_out)
        except OSError as error:
            raise not_listed(access.input.paths[number], error) from error


def _paths_hash(settings: Input, path: int) -> str:
    wanted = [*settings.paths[: path + 1], *(["", "hidden"] if settings.hidden else ())]
    return sha256("\0".join(wanted).encode("utf-8", "surrogateescape")).hexdigest()


def _plan_path(
    number: int, listing: Listing, access: Access, known: Container[Stored], kind: str | None, left_out: LeftOut
) -> Iterator[Unit]:
    sorting = _sorting(access.input.paths[number], listing.objects(number), access, kind)
    kind, paths = sorting.kind, _paths_hash(access.input, number)
    for unit in KINDS[kind].plan(sorting.objects(known), access):
        last = unit.entries[-1].stored.path
        name, linked = sorting.planned(last, left_out), listing.linked
        position = Position(paths=paths, path=number, name=name, object=last, kind=kind, linked=linked)
        yield replace(unit, position=position)
    sorting.end(left_out)


def _sorting(path: str, items: Iterator[Found | Passed], access: Access, known: str | None) -> Sorting:
    """The objects that a path names. Raises RecipeError if a job that reads no images cannot read the recipe's kind."""
    wanted = access.input.kind
    if access.images:
        return Sorting(path, items, TAKES, wanted, known)
    if wanted not in (None, *WITHOUT_IMAGES):
        raise RecipeError(f"input.kind: {wanted} has no rows without images; this job reads parquet or a manifest.")
    return Sorting(path, items, {kind: TAKES[kind] for kind in WITHOUT_IMAGES}, wanted, known)
