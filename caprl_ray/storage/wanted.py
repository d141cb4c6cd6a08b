"""Decide by names alone which objects below a folder a listing takes. All stores use these rules.

A pattern is matched name by name. `*`, `?` and `[…]` match within a name, `**` any number of folders. An object is also
taken if one of its folders matches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape, has_magic
from re import search

from caprl_ray.storage.stored import Listed, Passed, Stored

# The arguments are a name, and whether it is a folder's. Returns the reason to pass it over, or None to take it.
Rule = Callable[[str, bool], str | None]
# How far a folder has matched: the indices of those names of the pattern that may match next. The index after the last
# name means that everything below the folder is taken.
States = frozenset[int]
NONE: States = frozenset()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The objects below `folder`, which ends with a slash, that match the names `parts`. Without parts, all objects.

    `folders_only`: takes only objects below a folder that matches. `rule`: tells which names are passed over, unless
    the pattern spells them out. A name of the pattern that begins with a dot takes hidden names.
    """

    folder: str
    parts: tuple[str, ...] = ()
    folders_only: bool = False
    rule: Rule | None = None

    @classmethod
    def of(cls, root: str, pattern: str, rule: Rule | None = None) -> Wanted:
        """The objects that match a pattern below `root`, or begin with it if it has no `*`, `?` or `[`."""
        *folders, last = pattern.split("/")
        if not has_magic(pattern):
            return cls(folder=_folder(root, folders), parts=(escape(last) + "*",), rule=rule)
        names = [*folders, last] if last else folders
        literal = next(number for number, name in enumerate(names) if has_magic(name))
        parts = tuple(names[literal:])
        return cls(folder=_folder(root, names[:literal]), parts=parts, folders_only=not last, rule=rule)

    def begin(self) -> States:
        """The states of `folder` itself."""
        return self._closed({0})

    def whole(self, states: States) -> bool:
        """Whether everything below a folder is taken."""
        return len(self.parts) in states

    def everything(self, states: States) -> bool:
        """Whether every object below a folder is taken."""
        last = () if self.folders_only else (len(self.parts) - 1,)
        return self.whole(states) or any(state in states and self.parts[state] == "*" for state in last)

    def deep(self, states: States) -> bool:
        """Whether objects at any depth below a folder may be taken, so that a flat listing wastes little."""
        return self.everything(states) or any(self.parts[state] == "**" for state in states)

    def head(self, states: States) -> str:
        """The common beginning of all names in a folder that can match."""
        if len(states) != 1 or self.whole(states):
            return ""
        magic = search(r"[*?\[]", part := self.parts[min(states)])
        return part[: magic.start()] if magic else part

    def below(self, states: States, name: str) -> States | str:
        """The states of the subfolder `name`, NONE if nothing in it can match, or the reason to pass it over."""
        found = self._matched(states, name)
        return self._reason(states, name, folder=True) or self._closed(found) if found else NONE

    def takes(self, states: States, name: str) -> bool | str:
        """Whether a file is taken, or the reason to pass it over."""
        if self.whole(states):
            return (self.rule and self.rule(name, False)) or True
        if self.folders_only:
            return False
        taken = len(self.parts) in self._matched(states, name)
        return (self._reason(states, name, folder=False) or True) if taken else False

    def reaches(self, name: str) -> bool:
        """Whether a listing takes the object with this path below the folder."""
        *folders, last = name.split("/")
        states = self.begin()
        for folder in folders:
            within = self.below(states, folder)
            if isinstance(within, str):
                return False
            states = within
        return self.takes(states, last) is True

    def _matched(self, states: States, name: str) -> set[int]:
        found = set()
        for state in states:
            if state == len(self.parts) or self.parts[state] == "**":
                found.add(state)
            elif fnmatchcase(name, self.parts[state]):
                found.add(state + 1)
        return found

    def _closed(self, states: set[int]) -> States:
        """Add the states after each `**`, which may also match no folder at all."""
        for number, part in enumerate(self.parts):
            if part == "**" and number in states:
                states.add(number + 1)
        return frozenset(states)

    def _reason(self, states: States, name: str, *, folder: bool) -> str | None:
        reason = self.rule(name, folder) if self.rule else None
        if reason is None:
            return None
        said = [self.parts[state] for state in states if state < len(self.parts) and self.parts[state] != "**"]
        said = [part for part in said if fnmatchcase(name, part)]
        if any(not has_magic(part) or (reason == "hidden" and part.startswith(".")) for part in said):
            return None
        return reason


def _folder(root: str, names: list[str]) -> str:
    return root + "".join(name + "/" for name in names)


class Sieve:
    """Selects wanted objects from a flat, ordered listing below one folder."""

    def __init__(self, wanted: Wanted, states: States, folder: str) -> None:
        self._wanted = wanted
        self._folder = folder
        self._begin = states
        self._last, self._states, self._whole = "", states, folder if wanted.whole(states) else ""
        self._passed = ""  # the folder that was passed over last

    def of(self, found: Iterator[Stored]) -> Iterator[Listed | Passed]:
        """The wanted and the skipped objects; a skipped folder appears once."""
        for stored in found:
            if self._passed and stored.path.startswith(self._passed):
                continue
            path = stored.path[len(self._folder) :]
            folders, name = path[: path.rfind("/") + 1], path[path.rfind("/") + 1 :]
            if folders != self._last:
                reason = self._enter(folders)
                if reason:
                    yield Passed(path=self._passed, reason=reason)
                    continue
            taken = self._wanted.takes(self._states, name)
            if isinstance(taken, str):
                yield Passed(path=stored.path, reason=taken)
            elif taken:
                yield listed(stored, self._whole)

    def _enter(self, folders: str) -> str | None:
        """Go to another folder. Returns the reason to pass over one of its folders, if there is one."""
        states, path = self._begin, self._folder
        whole = path if self._wanted.whole(states) else ""
        for name in folders.split("/")[:-1]:
            path += name + "/"
            within = self._wanted.below(states, name)
            if isinstance(within, str):
                self._passed = path
                return within
            states = within
            whole = whole or (path if self._wanted.whole(states) else "")
        self._last, self._states, self._whole = folders, states, whole
        return None


def listed(stored: Stored, whole: str, real: str | None = None) -> Listed:
    """An object with its key. `whole` is the folder that is taken as a whole, or empty."""
    key = stored.path[len(whole) :] if whole else stored.path.rpartition("/")[2]
    return Listed(stored=stored, key=key, real=real)
