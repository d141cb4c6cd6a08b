"""Local storage: objects are written whole or not at all, and read only as the version that was planned."""

import os
from pathlib import Path

import pytest

from caprl_ray.storage import SourceChanged, Storage, Stored, local

STORAGE = Storage()


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
