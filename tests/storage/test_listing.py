"""Listing one prefix in several ranges gives each key once and in order, whatever the keys and the guesses."""

import random
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caprl_ray.storage import listing
from caprl_ray.storage.listing import Listing, Page
from caprl_ray.storage.stored import Folder, Stored

BASE = "s3://bucket/images/"
LAST = "\U0010ffff"


class Bucket:
    """A sorted listing in pages, like that of S3. `starts` records the key from which each page was requested."""

    def __init__(self, names: list[str], *, page: int, folders: bool = False, ignores_start: bool = False) -> None:
        self.keys = sorted({BASE + name for name in names})
        self._page, self._folders, self._ignores_start = page, folders, ignores_start
        self.starts: list[str | None] = []

    def fetch(self, after: str | None, token: str | None) -> Page:
        self.starts.append(after)
        start = token or ("" if self._ignores_start else after) or ""
        position, found = bisect_right(self.keys, start), []
        while len(found) < self._page and position < len(self.keys):
            key, (first, slash, _) = self.keys[position], self.keys[position].removeprefix(BASE).partition("/")
            if slash and self._folders:
                found.append(Folder(path=f"{BASE}{first}/"))
                position = bisect_right(self.keys, f"{BASE}{first}/{LAST}")
            else:
                found.append(Stored(path=key, size=1, version=""))
                position += 1
        last = self.keys[position - 1] if position < len(self.keys) else None
        return Page(found, last)

    def children(self) -> list[str]:
        names = [key.removeprefix(BASE).partition("/") for key in self.keys]
        return sorted(
            {BASE + (first + slash + ("" if self._folders and slash else rest)) for first, slash, rest in names}
        )


def listed(bucket: Bucket) -> list[str]:
    with ThreadPoolExecutor(4) as pool:
        return [child.path for page in Listing(pool, BASE, bucket.fetch) for child in page]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of a few pages, although a page here has ten keys instead of a thousand."""
    monkeypatch.setattr(listing, "AIMED_KEYS", 65)


RNG = random.Random(1)
NAMES = {
    "counted": [f"{n:09d}.jpg" for n in range(5_000)],
    "not padded": [f"img_{n}.jpg" for n in range(5_000)],
    "steps": [f"{n * 7919:012d}.jpg" for n in range(5_000)],
    "hashes": [f"{RNG.getrandbits(128):032x}.jpg" for n in range(5_000)],
    "classes": [f"{c}_{n:05d}.jpg" for c in ("ant", "cat", "zebra", "Ünder", "~x", "写真", "😀") for n in range(700)],
    "clusters": [f"n{RNG.randrange(10**8):08d}_{n}.JPEG" for _ in range(60) for n in RNG.sample(range(10**5), 80)],
}


@pytest.mark.parametrize("kind", NAMES)
def test_long_listings_are_whole_in_order_and_mostly_in_ranges(kind: str) -> None:
    bucket = Bucket(NAMES[kind], page=10)
    assert listed(bucket) == bucket.keys
    pages = len(bucket.keys) / 10
    assert sum(start is not None for start in bucket.starts) > pages / 30  # at least that many ranges
    assert len(bucket.starts) < (3 * pages if kind == "clusters" else 1.4 * pages)


@pytest.mark.parametrize("count", [0, 1, 10, 11, 40, 41, 47, 90])
def test_short_listings_cost_hardly_more_than_their_pages(count: int) -> None:
    bucket = Bucket([f"{n:09d}.jpg" for n in range(count)], page=10)
    assert listed(bucket) == bucket.keys
    assert len(bucket.starts) <= max(1, -(-count // 10)) + (6 if count > 40 else 0)


def test_sub_prefixes_between_the_objects_come_once() -> None:
    names = [f"{n:05d}.jpg" for n in range(2_000)] + [f"{n:05d}/{m}" for n in range(0, 2_000, 3) for m in "ab"]
    bucket = Bucket(names, page=10, folders=True)
    assert listed(bucket) == bucket.children()
    assert any(bucket.starts)


def test_a_store_that_cannot_start_after_a_key_is_listed_page_by_page() -> None:
    bucket = Bucket(NAMES["counted"], page=10, ignores_start=True)
    assert listed(bucket) == bucket.keys
    assert len(bucket.starts) < 510


def test_a_fault_in_any_range_is_the_listings() -> None:
    bucket = Bucket(NAMES["counted"], page=10)

    def fetch(after: str | None, token: str | None) -> Page:
        if len(bucket.starts) > 100:
            raise OSError("the store is gone")
        return bucket.fetch(after, token)

    with ThreadPoolExecutor(4) as pool, pytest.raises(OSError, match="the store is gone"):
        list(Listing(pool, BASE, fetch))


@settings(max_examples=300, deadline=None)
@given(
    prefix=st.text("a0/", max_size=12),
    names=st.lists(st.text("0129aZ~. _-/üé写😀", min_size=1, max_size=8), max_size=300),
    page=st.integers(2, 9),
    folders=st.booleans(),
)
def test_whatever_the_names_no_key_is_lost_or_comes_twice(
    prefix: str, names: list[str], page: int, folders: bool
) -> None:
    bucket = Bucket([prefix + name for name in names], page=page, folders=folders)
    assert listed(bucket) == bucket.children()
