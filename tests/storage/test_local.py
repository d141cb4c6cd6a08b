"""Local storage: objects are written whole or not at all, and read only as the version that was planned."""

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from caprl_ray.storage import SourceChanged, Storage, Stored, local, local_listing
from caprl_ray.storage.stored import Listed, Passed
from caprl_ray.storage.wanted import Wanted

STORAGE = Storage()


def test_a_walk_goes_on_after_any_object_without_listing_what_is_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "a/1.jpg", "a/b/2.jpg", "a/b.jpg", "a-/3.jpg", "b/c/4.jpg", "b/5.jpg", "ü/6.jpg"):
        STORAGE.put(str(tmp_path / name), b"")
    walked = list(STORAGE.walk(str(tmp_path)))
    scanned, scan = [], os.scandir
    monkeypatch.setattr(local.os, "scandir", lambda path: scanned.append(str(path)) or scan(path))
    for number, stored in enumerate(walked):
        scanned.clear()
        assert list(STORAGE.walk(str(tmp_path), stored.path)) == walked[number + 1 :]
        assert all(
            folder == str(tmp_path) or folder + "/" > stored.path or stored.path.startswith(folder + "/")
            for folder in scanned
        )


def test_a_file_that_goes_while_it_is_listed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        STORAGE.put(str(tmp_path / name), b"")

    class Gone:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path, self.is_dir, self.is_symlink = entry.name, entry.path, entry.is_dir, entry.is_symlink

        def stat(self) -> os.stat_result:
            return os.stat(self.path + "-gone" if self.name == "b" else self.path)

    scan = os.scandir
    monkeypatch.setattr(local.os, "scandir", lambda path: map(Gone, scan(path)))
    assert [stored.path[-1] for stored in STORAGE.walk(str(tmp_path))] == ["a", "c"]


def test_put_replaces_an_object_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "object")
    STORAGE.put(path, b"a longer content")
    STORAGE.put(path, b"new")
    assert STORAGE.read(path) == b"new"
    assert os.listdir(tmp_path / "deep") == ["object"]
    mask = os.umask(0)
    os.umask(mask)
    assert os.stat(path).st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_put_that_fails_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = str(tmp_path / "object")
    STORAGE.put(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(local.os, step, broken)
        with pytest.raises(OSError, match="No space"):
            STORAGE.put(path, b"new")
    assert STORAGE.read(path) == b"old"
    assert os.listdir(tmp_path) == ["object"]


def test_where_links_do_not_exist_a_new_object_still_replaces_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(local.os, "link", refused)
    path = str(tmp_path / "new" / "a")
    stored = Storage().create(path, b"first")
    with pytest.raises(FileExistsError):
        Storage().create(path, b"second")
    assert Storage().read(path) == b"first" and stored.size == 5
    monkeypatch.setattr(local.os, "replace", refused)
    with pytest.raises(PermissionError):
        Storage().create(str(tmp_path / "new" / "b"), b"third")
    assert os.listdir(tmp_path / "new") == ["a"]


def test_a_folder_whose_names_go_while_they_are_read_has_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("images/a", "images/b", "far/c"):
        STORAGE.put(str(tmp_path / name), b"")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "far")
    listed = os.stat

    class Gone:
        """What `scandir` found before another process removed `b`."""

        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path, self.is_file = entry.name, entry.path, entry.is_file

        def stat(self) -> os.stat_result:
            return listed(self.path + "-gone" if self.name == "b" else self.path)

    class Scan(list[Gone]):
        def __enter__(self) -> "Scan":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    scan = os.scandir
    with monkeypatch.context() as patch:
        patch.setattr(local.os, "scandir", lambda path: Scan(map(Gone, scan(path))))
        assert [stored.path[-1] for stored in STORAGE.objects(str(tmp_path / "images"), "")] == ["a"]

    def gone(path: Any, **named: Any) -> os.stat_result:
        return listed(f"{path}-gone" if str(path).rstrip("/") == str(tmp_path / "far") else path, **named)

    monkeypatch.setattr(local_listing.os, "stat", gone)
    found = list(STORAGE.find(Wanted(folder=f"{tmp_path}/images/")))
    assert [passed.reason for passed in found if isinstance(passed, Passed)] == ["link"]
    assert [entry.stored.path[-1] for entry in found if isinstance(entry, Listed)] == ["a", "b"]


def test_an_object_that_changed_is_not_opened_as_the_planned_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345")
    planned = STORAGE.lookup(str(path))
    assert isinstance(planned, Stored)
    with STORAGE.open(planned) as stream:
        assert stream.read() == b"12345"
    path.write_bytes(b"67890")
    os.utime(path, ns=(0, 0))
    with pytest.raises(SourceChanged):
        STORAGE.open(planned)


def test_a_pipe_is_not_opened_in_place_of_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    assert STORAGE.lookup(str(tmp_path / "a.jpg")) is None
    with pytest.raises(FileNotFoundError):
        STORAGE.open(Stored(path=str(tmp_path / "a.jpg"), size=1, version="v"))


def test_a_path_at_which_nothing_can_be_is_absent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nothing")
    for name in ("nothing", "file/x", "loop", "loop/x", "broken", "x" * 300):
        assert STORAGE.lookup(f"{tmp_path}/{name}") is None


def test_no_pipe_and_no_device_is_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="no file that can be replaced"):
        STORAGE.put(str(tmp_path / "pipe"), b"x")
    assert os.listdir(tmp_path) == ["pipe"] and not (tmp_path / "pipe").is_file()


@pytest.mark.parametrize("name", ["a#b.jpg", "a?b.jpg", "a%23b.jpg", "a b.jpg", "ü.jpg"])
def test_a_file_uri_may_be_encoded_or_not(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    for uri in {(tmp_path / name).as_uri(), f"file://localhost{tmp_path}/{name}".replace("%", "%25")}:
        found = STORAGE.lookup(uri)
        assert isinstance(found, Stored) and found.path == str(tmp_path / name)


def test_a_glob_over_many_folders_takes_time_by_their_number(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        folder = tmp_path / str(count)
        for number in range(count):
            (folder / f"{number:06d}").mkdir(parents=True)
            (folder / f"{number:06d}" / "a").touch()
        began = time.process_time()
        assert sum(1 for _ in STORAGE.find(STORAGE.wanted(f"{folder}/*"))) == count
        return time.process_time() - began

    assert seconds(6_000) < 30 * seconds(600)  # ten times as many; a quadratic search takes 100 times


def test_only_leftovers_of_killed_writers_are_swept(tmp_path: Path) -> None:
    for name in (".tmp-old", ".tmp-new", "old"):
        (tmp_path / name).touch()
    for name in (".tmp-old", "old"):
        os.utime(tmp_path / name, (1, 1))
    STORAGE.sweep(str(tmp_path))
    STORAGE.sweep(str(tmp_path / "nowhere"))
    assert sorted(os.listdir(tmp_path)) == [".tmp-new", "old"]


def test_lookups_of_many_names_are_begun_a_few_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "1").touch()
    asked = 0

    def names() -> Iterator[str]:
        nonlocal asked
        for number in range(10**9):
            asked += 1
            yield str(tmp_path / str(number))

    found = STORAGE.lookup_all(names())
    assert [bool(next(found)) for _ in range(3)] == [False, True, False]
    assert asked < 1000
    found.close()
