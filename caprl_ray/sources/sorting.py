"""Sort the objects of one path of the recipe: those of one kind are planned, the others are left out and counted."""

from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping
from itertools import chain

from caprl_ray.errors import RecipeError
from caprl_ray.plan import LeftOut
from caprl_ray.sources import manifest_text
from caprl_ray.sources.source import Found
from caprl_ray.storage import Passed, Stored

MANIFEST = "manifest"  # a kind that counts only if it is asked for
Takes = Mapping[str, Callable[[Stored], bool]]  # whether a kind takes an object, by its name


class Sorting:
    """The objects of one path of the recipe. All are of one kind. If it is not given, their names tell it.

    `wanted`: the recipe's kind. `known`: the kind that earlier planning found. Raises RecipeError as soon as a path
    turns out to be of two kinds or of none.
    """

    def __init__(
        self, path: str, items: Iterator[Found | Passed], takes: Takes, wanted: str | None, known: str | None
    ) -> None:
        self._path = path
        # Folders of images often hold a list of them. It is left out, unless it is asked for or no images are read.
        asked = manifest_text.named(path) or MANIFEST in (wanted, known) or "files" not in takes
        self._takes = {kind: rule for kind, rule in takes.items() if asked or kind != MANIFEST}
        self._kinds = " or ".join(takes)
        self._named = "an image, a shard or parquet" if "files" in takes else "parquet or JSON lines"
        self._wanted = wanted
        self._items = items
        self._begun: deque[tuple[Found, LeftOut | None]] = deque()  # yielded, and not yet in a unit
        self.left_out = LeftOut()
        """What was left out after the last object that was yielded. `end` counts it."""
        self._likely = wanted or known
        self.kind = self._likely = wanted or known or self._infer()

    def objects(self, planned: Container[Stored]) -> Iterator[Found]:
        """The objects that are not planned yet."""
        for found in self._of_kind():
            if found.again:
                self.left_out.add("overlap", found.stored.path)
            elif found.stored not in planned:
                self._begun.append((found, self.left_out or None))
                if self.left_out:
                    self.left_out = LeftOut()
                yield found

    def planned(self, last: str, left_out: LeftOut) -> int:
        """Count what was left out before the object `last` of a unit. Returns the number of the name that found it."""
        while True:
            found, before = self._begun[0]
            if before:
                left_out.merge(before)
                self._begun[0] = (found, None)  # further units of the object may follow
            if found.stored.path == last:
                return found.name
            self._begun.popleft()

    def end(self, left_out: LeftOut) -> None:
        """Count the rest at the end of the path, also what was left out before objects that make no unit."""
        for _, before in self._begun:
            left_out.merge(before or LeftOut())
        left_out.merge(self.left_out)

    def _of_kind(self) -> Iterator[Found]:
        for item in self._items:
            if isinstance(item, Passed):
                self.left_out.add(item.reason, item.path)
            elif self._is_hidden(item):
                self._leave(item, "hidden")
            else:
                kind = self._kind_of(item)
                if kind not in (None, self.kind) and not self._wanted:
                    raise self._mixed(item, str(kind))
                if item.named or kind == self.kind:
                    yield item
                else:
                    self._leave(item, "unknown_ending")

    def _leave(self, item: Found, reason: str) -> None:
        if not item.again:
            self.left_out.add(reason, item.stored.path)

    def _kind_of(self, item: Found) -> str | None:
        # This kind is tried first, because most objects are of it.
        if self._likely and self._takes[self._likely](item.stored):
            return self._likely
        return next((kind for kind, takes in self._takes.items() if takes(item.stored)), None)

    def _is_hidden(self, item: Found) -> bool:
        tables = (self._takes[kind] for kind in ("parquet", MANIFEST) if kind in self._takes)
        return item.hidden_table and any(takes(item.stored) for takes in tables)

    def _mixed(self, item: Found, kind: str) -> RecipeError:
        return RecipeError(
            f"input.paths: {self._path} holds {' and '.join(sorted([self.kind, kind]))}, such as {item.stored.path}; "
            f"set input.kind to {self._kinds}, or name the folders."
        )

    def _infer(self) -> str:
        """The kind of the first object whose name tells one. Objects before it are kept or counted."""
        kept: list[Found] = []  # objects that the recipe names, whatever their endings
        for item in self._items:
            if isinstance(item, Passed):
                self.left_out.add(item.reason, item.path)
            elif self._is_hidden(item):
                self._leave(item, "hidden")
            elif kind := self._kind_of(item):
                self._items = chain(kept, [item], self._items)
                return kind
            elif item.named:
                kept.append(item)
            else:
                self._leave(item, "unknown_ending")
        for item in kept:
            self._leave(item, "unknown_ending")
        left = f" (left out: {self.left_out.summary()})" if self.left_out else ""
        raise RecipeError(
            f"input.paths: {self._path} holds no file named like {self._named}{left}; set input.kind to {self._kinds}."
        )
