"""The plan: which units an input becomes, and that they are kept as they are."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from caprl_ray import plan, sources
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.plan import Entry, Unit
from caprl_ray.recipe.input import Input
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage import local as local_storage
from tests.s3_server import BUCKET, S3Server


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def units_of(*paths: object, kind: Any = None) -> list[Unit]:
    settings = Input(paths=[str(path) for path in paths], kind=kind)
    return list(sources.plan_units(Access(storage=Storage(), input=settings, max_bytes=1000)))


def keys(units: list[Unit]) -> list[str]:
    return [entry.key for unit in units for entry in unit.entries]


def test_kinds_are_inferred_from_names_for_each_path(tmp_path: Path) -> None:
    touch(
        tmp_path, "images/a.JPG", "images/b.webp", "images/notes.txt", "shards/0.tar", "shards/1.tar.gz", "shards/2.TGZ"
    )
    touch(tmp_path, "shards/0.json")
    units = units_of(tmp_path / "images", tmp_path / "shards")
    assert [(unit.kind, unit.rows) for unit in units] == [("files", 2), *[("webdataset", None)] * 3]
    assert keys(units) == ["a.JPG", "b.webp", "0.tar", "1.tar.gz", "2.TGZ"]


def test_a_folder_of_both_kinds_is_refused_unless_the_kind_is_given(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.tar")
    with pytest.raises(RecipeError, match=r"input\.paths: .* files and webdataset, such as .*/b\.tar; set input\.kind"):
        units_of(tmp_path)
    assert keys(units_of(tmp_path, kind="files")) == ["a.jpg"]
    assert keys(units_of(tmp_path, kind="webdataset")) == ["b.tar"]


def test_names_that_say_nothing_are_refused_unless_the_kind_is_given(tmp_path: Path) -> None:
    touch(tmp_path, "image")
    with pytest.raises(RecipeError, match=r"no file named like an image, a shard or parquet"):
        units_of(tmp_path / "image")
    assert keys(units_of(tmp_path / "image", kind="files")) == ["image"]


def test_a_brace_range_must_be_there_as_a_whole(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number:03d}.tar" for number in (8, 9, 10, 12)))
    assert keys(units_of(f"{tmp_path}/{{008..010}}.tar")) == ["008.tar", "009.tar", "010.tar"]
    with pytest.raises(RecipeError, match=r"names 5 paths, of which .*/011\.tar does not exist"):
        units_of(f"{tmp_path}/{{008..012}}.tar")


def test_globs_and_prefixes_are_expanded_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b2.tar", "a1.tar", "a10.tar", "a2.tar", "deep/er/a3.tar")
    assert keys(units_of(f"{tmp_path}/a*.tar")) == ["a1.tar", "a10.tar", "a2.tar"]
    assert keys(units_of(f"{tmp_path}/?2.tar")) == ["a2.tar", "b2.tar"]
    assert keys(units_of(f"{tmp_path}/**/a3.tar")) == ["a3.tar"]
    assert keys(units_of(f"{tmp_path}/a1")) == ["a1.tar", "a10.tar"]
    with pytest.raises(RecipeError, match=r"nothing was found at .*/c"):
        units_of(f"{tmp_path}/c")


def test_names_with_magic_characters_are_found_as_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].jpg", "a1.jpg", "b{1..2}.jpg", "ü %20.jpg")
    assert keys(units_of(tmp_path / "a[1].jpg", tmp_path / "b{1..2}.jpg")) == ["a[1].jpg", "b{1..2}.jpg"]
    assert keys(units_of((tmp_path / "ü %20.jpg").as_uri())) == ["ü %20.jpg"]


def test_a_folders_order_is_that_of_the_paths_whatever_the_order_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a/z.jpg", "a-b.jpg", "a.jpg", "a0.jpg", "b/a/c.jpg", "b/a.jpg", "B.jpg"]
    touch(tmp_path, *names)
    real = os.scandir
    for reverse in (False, True):
        monkeypatch.setattr(
            local_storage.os, "scandir", lambda f, r=reverse: sorted(real(f), key=lambda entry: entry.name, reverse=r)
        )
        assert keys(units_of(tmp_path)) == sorted(names)


def test_a_unit_of_files_holds_a_thousand(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number:04d}.png" for number in range(2500)))
    units = units_of(tmp_path)
    assert [unit.rows for unit in units] == [1000, 1000, 500]
    assert keys(units) == [f"{number:04d}.png" for number in range(2500)]


def test_a_plan_is_read_back_as_it_was_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.parts, "ENTRIES_PER_ROW_GROUP", 3)
    units = [
        Unit(
            kind="webdataset" if number % 2 else "files",
            rows=None if number % 2 else count,
            entries=[
                Entry(stored=Stored(path=f"/ü/{number}/{n}", size=10**n, version=f"v{n}"), key=f"k{n}")
                for n in range(count)
            ],
        )
        for number, count in enumerate([2, 1, 2, 1, 1, 5, 1])
    ]
    assert plan.load(Storage(), str(tmp_path)).units == []
    plan.store(Storage(), str(tmp_path), iter(units))
    refs = plan.load(Storage(), str(tmp_path)).units
    assert [ref.unit for ref in refs] == list(range(len(units)))
    assert len({ref.row_group for ref in refs}) > 2
    assert [ref.load(Storage()) for ref in refs] == units
    assert [(r.kind, r.rows, r.bytes) for r in refs] == [
        (u.kind, u.rows, sum(e.stored.size for e in u.entries)) for u in units
    ]


def test_loading_a_unit_fetches_one_row_group_of_a_large_plan(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan.stored, "PIECE", 8 * 1024)
    storage, out = Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1")), f"s3://{BUCKET}/out"
    rng = random.Random(1)
    units = [
        Unit(kind="files", rows=1000, entries=[entry(f"{n}/{rng.random()}") for n in range(1000)]) for _ in range(40)
    ]
    plan.store(storage, out, iter(units))
    size = storage.objects(f"{out}/plan", ".parquet")[0].size
    refs = plan.load(storage, out).units
    s3.requests.clear()
    assert refs[21].load(storage) == units[21]
    fetched = sum(length(request.range) for request in s3.requests)
    assert {request.method for request in s3.requests} == {"GET"}
    assert 0 < fetched < size / 3


def test_a_plan_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    plan.store(Storage(), str(tmp_path), [Unit(kind="files", rows=1, entries=[entry("a")])])
    (ref,) = plan.load(Storage(), str(tmp_path)).units
    (tmp_path / "plan/00000.parquet").write_bytes(b"no parquet")
    with pytest.raises(SystemFailure, match=r"plan/00000\.parquet: the plan cannot be read"):
        plan.load(Storage(), str(tmp_path))
    with pytest.raises(SystemFailure, match=r"the plan cannot be read \(changed since it was planned\)"):
        ref.load(Storage())


def entry(name: str) -> Entry:
    return Entry(stored=Stored(path=f"/images/{name}", size=1, version="v"), key=name)


def length(range_: str | None) -> int:
    first, last = str(range_).removeprefix("bytes=").split("-")
    return int(last) - int(first) + 1


def test_a_plan_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    touch(tmp_path, "out")
    with pytest.raises(SystemFailure, match=r"^output\.path: .* cannot be written"):
        plan.store(Storage(), str(tmp_path / "out"), [])


@pytest.mark.parametrize("path", ["abfs://bucket/{0..3}.tar", "ftp://host/x/*.tar"])
def test_other_storage_is_refused_in_one_sentence(path: str) -> None:
    with pytest.raises(RecipeError) as error:
        units_of(path)
    scheme = path.partition("://")[0]
    assert f"{scheme}://" in str(error.value) and "not supported" in str(error.value)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_a_glob_takes_each_image_once_and_nothing_that_lies_beside_them(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("a.jpg", "b.jpg", "notes.txt"):
        (tmp_path / "d" / name).touch()
    (tmp_path / "d" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    for pattern in ("d/**", "d/*", "d*"):
        units = units_of(tmp_path / pattern)
        assert [entry.stored.path.rpartition("/")[2] for unit in units for entry in unit.entries] == ["a.jpg", "b.jpg"]


def test_a_brace_range_may_have_one_element(tmp_path: Path) -> None:
    for name in ("00", "0"):
        (tmp_path / f"{name}.tar").touch()
    (unit,) = units_of(tmp_path / "{00..00}.tar")
    assert unit.entries[0].key == "00.tar"
    (tmp_path / "9000000.tar").touch()
    stepped = units_of(tmp_path / "{0..9000000..9000000}.tar")
    assert [unit.entries[0].key for unit in stepped] == ["0.tar", "9000000.tar"]
