"""Every page of one prefix's listing, in order of keys; a long one is listed from several keys on at the same time.

A page says where the next one begins, so that pages of one prefix come one after another, each after a store's whole
latency. A store also lists what stands after any key that it is given (StartAfter). After the first pages, keys further
on are guessed from those that were seen, and each of the ranges between them is listed by itself, up to the key where
the next range begins. Whatever the guesses, no key is listed twice or lost: a good one only has a few pages before the
next. A range without keys makes the guesses coarser, and one with many is cut again.
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

# Pages that come one after another before anything is guessed: shorter listings cost no request more.
FIRST_PAGES = 4
# Ranges at the same time, and the pages of one: what is held is at most twice their product, of a thousand keys each.
MOST_RANGES, PAGES = 16, 8
# Keys that a range should have: some pages, so that the page that ends it costs little, and fewer than PAGES.
AIMED_KEYS = 6500
COARSER = 4  # times as wide are the guesses after a range without keys


@dataclass(frozen=True)
class Page:
    """Objects and sub-prefixes in order of keys, and the token with which the next page is asked for."""

    children: list[Child]
    token: str | None


# Fetches a page: what stands after a path, or after the page that gave a token, or from the start.
Fetch = Callable[[str | None, str | None], Page]


class StartAfterIgnored(OSError):
    """The store lists keys before the one that it was to start after."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "the store lists keys before the one that it was to start after")


class Listing:
    """The pages of a prefix; the first one is fetched at once, the others while those before them are in use."""

    def __init__(self, pool: ThreadPoolExecutor, folder: str, fetch: Fetch) -> None:
        self._pool = pool
        self._folder = folder
        self._fetch = fetch
        self._first = pool.submit(fetch, None, None)

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
        """Every page after those seen; the last child that was seen is an object."""
        cuts = Cuts.of(self._folder, seen)
        frontier: str | None = seen[-1].path  # where the last range ends; None where it has no end
        ranges: deque[_Range] = deque()
        most = 2  # ranges, growing with what was listed: what is guessed beyond the last key is asked for in vain
        beyond = ""  # the first key after the ranges that were yielded, where it is known
        while frontier or ranges:
            while frontier and len(ranges) < most:
                until = cuts.after(max(frontier, beyond))
                ranges.append(self._range(frontier, None, until))
                frontier = until
            head = ranges.popleft()
            pages, token, beyond = head.fetched.result()
            yield from pages
            if not (token or beyond):
                break  # there is no key after these
            while ranges and ranges[0].until and ranges[0].until < beyond:
                ranges.popleft().fetched.cancel()  # it has no key
            found = list(chain.from_iterable(pages))
            cuts = Cuts.of(self._folder, found) if len(found) > 1 else cuts.coarser()
            if token:
                after = found[-1].path if found else head.after
                ranges.extendleft(reversed(self._cut_again(cuts, after, token, head.until, most)))
            most = min(MOST_RANGES, 2 * most) if found else max(2, most // 2)
        for later in ranges:
            later.fetched.cancel()

    def _cut_again(self, cuts: Cuts, after: str, token: str, until: str | None, most: int) -> list[_Range]:
        """What is left of a range that had more keys than were guessed, in several ranges."""
        ranges: list[_Range] = []
        while len(ranges) < most - 1 and (cut := cuts.after(after)) and (until is None or cut < until):
            ranges.append(self._range(after, None if ranges else token, cut))
            after = cut
        return [*ranges, self._range(after, None if ranges else token, until)]

    def _range(self, after: str, token: str | None, until: str | None) -> _Range:
        return _Range(self._pool.submit(_pages, self._fetch, after, token, until), after, until)


@dataclass(frozen=True)
class _Range:
    """Keys after `after`, up to and with `until` or to the end: their pages as `_pages` gives them."""

    fetched: Future[tuple[list[list[Child]], str | None, str]]
    after: str
    until: str | None


def _pages(
    fetch: Fetch, after: str | None, token: str | None, until: str | None
) -> tuple[list[list[Child]], str | None, str]:
    """At most PAGES pages of a range, the token of what is left of it, and the first key after it if it was seen.

    Without both there is nothing more in the whole prefix.
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
    """Guesses of keys, by taking names for numbers whose digits are characters of an alphabet that was seen.

    A cut has no slash, so that all keys of a sub-prefix are on one side of it.
    """

    folder: str
    alphabet: str
    width: int
    span: int

    @classmethod
    def of(cls, folder: str, seen: Sequence[Child]) -> Cuts:
        """Cuts as far from each other as AIMED_KEYS are where some children were seen, which are in order."""
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
        """Cuts that are farther from each other."""
        return replace(self, span=self.span * COARSER)

    def after(self, path: str) -> str | None:
        """A key that comes after a path; None where the alphabet has none."""
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
