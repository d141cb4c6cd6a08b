"""Patterns take the same names from local folders and from S3, and pass over the same names."""

from pathlib import Path

import pytest

from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.sources.passed_over import reason
from caprl_ray.storage import Listed, Passed, Storage
from tests.s3_server import BUCKET, S3Server

NAMES = [
    *(".cache/a.jpg", ".h.jpg", "._a.jpg", "@eaDir/a.jpg", "[x].jpg", "a.jpg", "a1.jpg", "a10.jpg", "b.txt"),
    *("d-/a.jpg", "d.jpg", "d/.g/x.jpg", "d/Thumbs.db", "d/a.jpg", "d/e.jpg", "d/e/a.jpg", "d/e/f/a.jpg"),
    *("x.jpg/y.txt", "ü é/~.jpg"),
]
SEEN = [name for name in NAMES if not name.startswith((".", "@")) and name not in ("d/.g/x.jpg", "d/Thumbs.db")]
HIDDEN = [("._a.jpg", "housekeeping"), (".cache/", "hidden"), (".h.jpg", "hidden"), ("@eaDir/", "housekeeping")]
BELOW = [("d/.g/", "hidden"), ("d/Thumbs.db", "housekeeping")]

# A pattern, the names that it takes, and the names that it passes over with the reasons.
PATTERNS = [
    ("*", SEEN, [*HIDDEN, *BELOW]),
    ("**", SEEN, [*HIDDEN, *BELOW]),
    ("", SEEN, [*HIDDEN, *BELOW]),
    ("*.jpg", ["[x].jpg", "a.jpg", "a1.jpg", "a10.jpg", "d.jpg", "x.jpg/y.txt"], [HIDDEN[0], HIDDEN[2]]),
    ("?.jpg", ["a.jpg", "d.jpg", "x.jpg/y.txt"], []),
    ("a1", ["a1.jpg", "a10.jpg"], []),
    ("d", ["d-/a.jpg", "d.jpg", "d/a.jpg", "d/e.jpg", "d/e/a.jpg", "d/e/f/a.jpg"], BELOW),
    ("[ab]*", ["a.jpg", "a1.jpg", "a10.jpg", "b.txt"], []),
    ("[!a-z]*.jpg", ["[x].jpg"], [HIDDEN[0], HIDDEN[2]]),
    ("[[]x[]].jpg", ["[x].jpg"], []),
    ("*/*.jpg", ["d-/a.jpg", "d/a.jpg", "d/e.jpg", "ü é/~.jpg"], [HIDDEN[1], HIDDEN[3]]),
    ("*/e/*", ["d/e/a.jpg", "d/e/f/a.jpg"], [HIDDEN[1], HIDDEN[3]]),
    ("d/*", ["d/a.jpg", "d/e.jpg", "d/e/a.jpg", "d/e/f/a.jpg"], BELOW),
    ("d/*/", ["d/e/a.jpg", "d/e/f/a.jpg"], [BELOW[0]]),
    ("d/**/a.jpg", ["d/a.jpg", "d/e/a.jpg", "d/e/f/a.jpg"], [BELOW[0]]),
    ("**/e/**/*.jpg", ["d/e/a.jpg", "d/e/f/a.jpg"], [HIDDEN[1], HIDDEN[3], BELOW[0]]),
    (".*", [".cache/a.jpg", ".h.jpg"], [HIDDEN[0]]),
    (".cache/*", [".cache/a.jpg"], []),
    ("*/.g/*", ["d/.g/x.jpg"], [HIDDEN[1], HIDDEN[3]]),
    ("@eaDir/?.jpg", ["@eaDir/a.jpg"], []),
    ("nothing/*", [], []),
    ("a.jpg/*", [], []),
]


@pytest.fixture
def places(tmp_path: Path, s3: S3Server) -> list[tuple[Storage, str]]:
    """The same names in a folder and in a bucket."""
    for name in NAMES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    s3.fill([f"in/{name}" for name in NAMES] + ["in/", "in/d/"])
    remote = Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1"))
    return [(Storage(), f"{tmp_path}/in/"), (remote, f"s3://{BUCKET}/in/")]


def test_patterns_take_the_same_names_everywhere(places: list[tuple[Storage, str]]) -> None:
    for storage, folder in places:
        for pattern, taken, passed in PATTERNS:
            found = list(storage.find(storage.wanted(folder + pattern, reason)))
            objects = [item.stored.path for item in found if isinstance(item, Listed)]
            assert objects == [folder + name for name in sorted(taken)], (folder, pattern)
            others = [(item.path, item.reason) for item in found if isinstance(item, Passed)]
            assert others == [(folder + name, why) for name, why in sorted(passed)], (folder, pattern)
            keys = [item.key for item in found if isinstance(item, Listed)]
            assert keys == [key_of(name, pattern) for name in sorted(taken)], (folder, pattern)


def key_of(name: str, pattern: str) -> str:
    """The path below the folder that is taken as a whole, which is the one that the pattern's last name matches."""
    if pattern == "**":
        return name
    depth = pattern.count("/") + (not pattern.endswith("/"))
    return (
        name.split("/", depth)[depth] if "**" not in pattern and name.count("/") >= depth else name.rpartition("/")[2]
    )


def test_a_listing_goes_on_after_any_object(places: list[tuple[Storage, str]]) -> None:
    for storage, folder in places:
        for pattern in ("*", "**/a.jpg", "*/*.jpg", "d/*"):
            wanted = storage.wanted(folder + pattern, reason)
            whole = list(storage.find(wanted))
            for number, item in enumerate(whole):
                if isinstance(item, Listed):
                    assert list(storage.find(wanted, item.stored.path)) == whole[number + 1 :]


def test_keys_that_no_folder_could_hold_are_listed_once_each(s3: S3Server) -> None:
    names = ["p//b.jpg", "p/../x.jpg", "p/./y.jpg", "p/a.jpg", "p/p/d.jpg", "p/q//c.jpg", "p/z.jpg/"]
    for name in [*names, "/p/e.jpg", "p/m/"]:
        s3.put(name, name.encode() if name != "p/m/" else b"")
    storage, bucket = Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1")), f"s3://{BUCKET}/"
    for pattern, found in {
        "p/*": names,
        "p/**/*.jpg": names,
        "p/*/*.jpg": ["p//b.jpg", "p/../x.jpg", "p/./y.jpg", "p/p/d.jpg"],
        "p//*": ["p//b.jpg"],
        "/p/*": ["/p/e.jpg"],
        "**/*.jpg": ["/p/e.jpg", *names],
    }.items():
        items = [item for item in storage.find(storage.wanted(bucket + pattern)) if isinstance(item, Listed)]
        assert [item.stored.path.removeprefix(bucket) for item in items] == sorted(found), pattern
        for item in items:
            with storage.open(item.stored) as stream:
                assert stream.read() == item.stored.path.removeprefix(bucket).encode()
