"""List all keys of one prefix in order. A long listing runs as several ranges at the same time.

Only a page tells where the next one begins. So the pages of a prefix arrive one after another, each after the store's
full latency. But a store can also list from any key (StartAfter). After the first pages, later keys are guessed from
those that were seen, and the ranges between the guesses are listed at the same time. A wrong guess costs requests, but
no key is listed twice or lost. A good guess leaves a few pages per range. A range without keys makes the guesses
coarser, and a range with many keys is split again.
"""

from __future__ import annotations

import errno
import string
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, takewhile

from caprl_ray.storage.stored import Folder, Stored

Child = Stored | Folder

# Pages that are listed one after another before keys are guessed. A shorter listing needs no additional request.
FIRST_PAGES = 4
# Most ranges at the same time, and most pages of a range. Memory holds at most twice their product in pages, of a
# thousand keys each.
MOST_RANGES, PAGES = 16, 8
# Keys to aim at per range: several pages, so that a partly filled last page costs little, but fewer than PAGES.
AIMED_KEYS = 6500
COARSER = 4  # factor by which guesses widen after a range without keys


@dataclass(frozen=True)
class Page:
    """Objects and sub-prefixes in order of keys, and the token for the next page."""

    children: list[Child]
    token: str | None


# Fetches a page: after a path, after the page that gave a token, or from the start.
Fetch = Callable[[str | None, str | None], Page]


class StartAfterIgnored(OSError):
    """The store lists keys before the one that it should start after."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the store ignores StartAfter: it lists keys before the given one")


class Listing:
    """Iterates over the pages of a prefix, or of its keys after a path. The first page is fetched at once, the others
    while earlier pages are in use."""

    def __init__(self, pool: ThreadPoolExecutor, folder: str, fetch: Fetch, after: str | None = None) -> None:
        self._pool = pool
        self._folder = folder
        self._fetch = fetch
        self._first = pool.submit(fetch, after, None)

    def __iter__(self) -> Iterator[list[Child]]:
        page, seen, in_ranges = self._first.result(), 1, True
        while page.token:
            if seen >= FIRST_PAGES and in_ranges and page.children and isinstance(page.children[-1], Stored):
                yield page.children
                rest = self._in_ranges(page.children)
                try:
                    following = next(rest)
                except StartAfterIgnored:
                    in_ranges, page = False, self._fetch(None, page.token)
                    continue
                yield following
                yield from rest
                return
            next_page = self._pool.submit(self._fetch, None, page.token)
            yield page.children
            page, seen = next_page.result(), seen + 1
        yield page.children

    def _in_ranges(self, seen: list[Child]) -> Iterator[list[Child]]:
        """Every page after those seen. The last child that was seen must be an object."""
        cuts = Cuts.of(self._folder, seen)
        frontier: str | None = seen[-1].path  # end of the last range; None if it has no end
        ranges: deque[_Range] = deque()
        most = 2  # ranges at the same time; grows while keys are found, because guesses beyond the last key are wasted
        beyond = ""  # the first key after the ranges that were yielded, if known
        while frontier or ranges:
            while frontier and len(ranges) < most:
                until = cuts.after(max(frontier, beyond))
                ranges.append(self._range(frontier, None, until))
                frontier = until
            head = ranges.popleft()
            pages, token, beyond = head.fetched.result()
            yield from pages
            if not (token or beyond):
                break  # the prefix has no more keys
            while ranges and ranges[0].until and ranges[0].until < beyond:
                ranges.popleft().fetched.cancel()  # this range has no keys
            found = list(chain.from_iterable(pages))
            cuts = Cuts.of(self._folder, found) if len(found) > 1 else cuts.coarser()
            if token:
                after = found[-1].path if found else head.after
                ranges.extendleft(reversed(self._cut_again(cuts, after, token, head.until, most)))
            most = min(MOST_RANGES, 2 * most) if found else max(2, most // 2)
        for later in ranges:
            later.fetched.cancel()

    def _cut_again(self, cuts: Cuts, after: str, token: str, until: str | None, most: int) -> list[_Range]:
        """Split the rest of a range that has more keys than expected into several ranges."""
        ranges: list[_Range] = []
        while len(ranges) < most - 1 and (cut := cuts.after(after)) and (until is None or cut < until):
            ranges.append(self._range(after, None if ranges else token, cut))
            after = cut
        return [*ranges, self._range(after, None if ranges else token, until)]

    def _range(self, after: str, token: str | None, until: str | None) -> _Range:
        return _Range(self._pool.submit(_pages, self._fetch, after, token, until), after, until)


@dataclass(frozen=True)
class _Range:
    """The keys after `after`, up to and including `until`, or to the end if it is None. `fetched`: from `_pages`."""

    fetched: Future[tuple[list[list[Child]], str | None, str]]
    after: str
    until: str | None


def _pages(
    fetch: Fetch, after: str | None, token: str | None, until: str | None
) -> tuple[list[list[Child]], str | None, str]:
    """At most PAGES pages of a range, the token of its rest, and the first key after the range if it was seen.

    Without token and key, the whole prefix has no more keys.
    """
    pages = []
    for _ in range(PAGES):
        page = fetch(None if token else after, token)
        if not token and after and page.children and page.children[0].path <= after:
            raise StartAfterIgnored
        pages.append([child for child in page.children if until is None or child.path <= until])
        token = page.token
        if len(pages[-1]) < len(page.children):
            return pages, None, page.children[len(pages[-1])].path
        if not token:
            break
    return pages, token, ""


@dataclass(frozen=True)
class Cuts:
    """Guesses keys at which to cut. Names are read as numbers whose digits are the characters seen so far.

    A cut has no slash, so all keys of a sub-prefix are on one side of it.
    """

    folder: str
    alphabet: str
    width: int
    span: int

    @classmethod
    def of(cls, folder: str, seen: Sequence[Child]) -> Cuts:
        """Cuts about AIMED_KEYS apart, estimated from `seen`, some children in order."""
        names = [child.path.removeprefix(folder) for child in seen]
        same = takewhile(lambda pair: pair[0] == pair[1], zip(names[0], names[-1], strict=False))
        width = sum(1 for _ in same) + 4
        characters = set().union(*(name[:width] for name in names)) - {"/"}
        if characters & set(string.digits):
            characters |= set(string.digits)
        cuts = cls(folder, "".join(sorted(characters)), width, 1)
        span = (cuts._number(names[-1]) - cuts._number(names[0])) * AIMED_KEYS // len(names)
        return replace(cuts, span=max(1, span))

    def coarser(self) -> Cuts:
        """The same with a larger distance between cuts."""
        return replace(self, span=self.span * COARSER)

    def after(self, path: str) -> str | None:
        """The next cut after a path; None if the alphabet has none."""
        number, name = self._number(path.removeprefix(self.folder)) + self.span, ""
        for _ in range(self.width):
            number, digit = divmod(number, len(self.alphabet))
            name = self.alphabet[digit] + name
        return self.folder + name if not number and self.folder + name > path else None

    def _number(self, name: str) -> int:
        number = 0
        for character in name[: self.width].ljust(self.width, "\0"):
            digit = min(bisect_left(self.alphabet, character), len(self.alphabet) - 1)
            number = number * len(self.alphabet) + digit
        return number
