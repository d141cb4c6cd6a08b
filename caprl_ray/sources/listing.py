"""List the objects that the recipe's paths name, each once, in the order of the paths."""

import re
from collections.abc import Iterator
from dataclasses import replace
from glob import has_magic
from itertools import islice, pairwise

from braceexpand import braceexpand

from caprl_ray.errors import RecipeError
from caprl_ray.plan import Position
from caprl_ray.plan.known import Seen
from caprl_ray.sources import passed_over
from caprl_ray.sources.own_output import OwnOutputs
from caprl_ray.sources.source import Access, Found, not_listed
from caprl_ray.storage import Folder, Listed, Passed, Storage, Stored, Wanted

MOST_NAMES = 1_000_000  # of a path with braces, which memory holds
RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?\}")  # the last is the step


class Listing:
    """One listing of the input, from its start or after a position.

    An object that was found before, by another path or through a link, is marked with `again`. This takes 16 bytes of
    memory for each object that a link leads to, and for every object if several paths of the recipe may reach the same.
    """

    def __init__(self, access: Access, after: Position | None) -> None:
        self._access = access
        self._after = after
        self._seen = Seen()
        self._outputs = OwnOutputs(access.storage, access.output)
        last = {after.path: after.object} if after else {}
        self._paths = [access.storage.pinned(path, last.get(n)) for n, path in enumerate(access.input.paths)]
        self._names = [_braces(path, access.storage) for path in self._paths]
        self._repeating = _repeating(self._names)
        self.linked = after is not None and after.linked
        """Whether a link has led to an object so far."""
        # List from the start where objects may be found twice, because only then the earlier ones are known.
        self._anew = after is not None and (self._repeating or self.linked)

    @property
    def first(self) -> int:
        """The number of the path that the listing begins with."""
        return self._after.path if self._after and not self._anew else 0

    def objects(self, number: int) -> Iterator[Found | Passed]:
        """The objects of the path number `number`, after the position. Raises RecipeError for a missing path."""
        path, names = self._paths[number], self._names[number]
        end = (self._after.path, self._after.name) if self._after else (-1, -1)
        if number == end[0] and end[1] >= len(names):  # a path with braces now exists as written
            end = (-1, -1)
        begin = 0 if self._anew or number != end[0] else end[1]
        for place, there in enumerate(self._access.storage.lookup_all(names[begin:]), begin):
            if there is None and names != [path] and not has_magic(names[place]):
                raise RecipeError(
                    f"input.paths: {path} names {len(names)} paths, of which {names[place]} does not exist."
                )
            last = self._after.object if self._after and (number, place) == end else None
            for item in self._found(names[place], there, place, last):
                new = self._new(item)
                if (number, place) < end or (last is not None and path_of(item) <= last):
                    continue
                if new:
                    yield item
                elif isinstance(item, Found):
                    yield replace(item, again=True)

    def _found(
        self, name: str, there: Stored | Folder | None, place: int, last: str | None
    ) -> Iterator[Found | Passed]:
        """The objects of a name without braces: a single object, everything below a folder, or all matches."""
        if isinstance(there, Stored):
            real = self._access.storage.real(there.path) if self._repeating else None
            yield Found(stored=there, key=there.path.rpartition("/")[2], named=True, name=place, real=real)
            return
        rule = passed_over.reason_unless_hidden if self._access.input.hidden else passed_over.reason
        storage, nothing = self._access.storage, last is None
        wanted = storage.wanted(name, rule) if there is None else Wanted(folder=there.path, rule=rule)
        real = storage.real(wanted.folder)
        root = real if real.endswith("/") else real + "/"
        for item in self._without_outputs(wanted, root, storage.find(wanted, None if self._anew else last)):
            nothing = False
            yield item if isinstance(item, Passed) else self._of(item, wanted, root, place)
        if nothing and there is None:
            raise RecipeError(f"input.paths: nothing was found at {name}.")

    def _of(self, item: Listed, wanted: Wanted, root: str, place: int) -> Found:
        below = item.stored.path[len(wanted.folder) :]
        linked = item.real is not None and item.real != root + below
        self.linked |= linked
        return Found(
            stored=item.stored,
            key=item.key,
            named=False,
            name=place,
            hidden_table=passed_over.underscored(below) and self._hides(wanted),
            real=item.real if linked or self._repeating else None,
        )

    def _hides(self, wanted: Wanted) -> bool:
        return not self._access.input.hidden and not any(part.startswith("_") for part in wanted.parts)

    def _without_outputs(
        self, wanted: Wanted, root: str, items: Iterator[Listed | Passed]
    ) -> Iterator[Listed | Passed]:
        """Pass over the outputs of this program, each once, unless the pattern names their folders."""
        if {"data", "failed"} & set(wanted.parts):
            yield from items
            return
        last = None
        for item in items:
            path = item.path if isinstance(item, Passed) else item.stored.path
            real = path if isinstance(item, Passed) else item.real or path
            if last is not None and real.startswith(last):
                continue
            output = self._outputs.folder(real, root)
            if output is None:
                yield item
            else:
                last = output
                yield Passed(path=path[: len(path) - len(real) + len(output)], reason="own_output")

    def _new(self, item: Found | Passed) -> bool:
        real = item.real if isinstance(item, Found) else None
        return not (self._repeating or real) or self._seen.add(real or path_of(item))


def path_of(item: Found | Passed) -> str:
    """The path of what a listing found or passed over."""
    return item.path if isinstance(item, Passed) else item.stored.path


def _repeating(paths: list[list[str]]) -> bool:
    """Whether names may reach the same object. In a store, two can if one begins with the other, up to a pattern."""
    if sum(map(len, paths)) < 2:
        return False
    if not all("://" in name and not name.startswith("file:") for names in paths for name in names):
        return True
    heads = sorted(_head(name, whole=len(names) > 1) for names in paths for name in names)
    return any(later.startswith(head) for head, later in pairwise(heads))


def _head(name: str, *, whole: bool) -> str:
    """The common beginning of all objects of a name. `whole`: the name is a full path, not a prefix."""
    head = re.split(r"[*?\[]", name)[0]
    return head + "/" * (whole and head == name and not name.endswith("/"))


def _braces(path: str, storage: Storage) -> list[str]:
    """Expand brace ranges, unless the path exists as written."""
    try:
        if "{" not in path or storage.lookup(path):
            return [path]
        ranges = ([int(number or 1) for number in found.groups()] for found in RANGE.finditer(path))
        # braceexpand holds each range
        few = all(abs(last - first) < MOST_NAMES * max(1, abs(step)) for first, last, step in ranges)
        names = list(islice(braceexpand(path), MOST_NAMES + 1)) if few else []
    except ValueError:
        raise RecipeError(f"input.paths: {path} has a brace that is not closed.") from None
    except OSError as error:
        raise not_listed(path, error) from error
    if not 0 < len(names) <= MOST_NAMES:
        raise RecipeError(f"input.paths: {path} names more than {MOST_NAMES:,} paths; name their folder.")
    return names
