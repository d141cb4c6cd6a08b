"""The objects that a plan takes from its input, and those that it leaves out and counts."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray import plan, sources
from caprl_ray.errors import RecipeError, RowFailure, SystemFailure
from caprl_ray.output.objects import Written
from caprl_ray.plan import LeftOut
from caprl_ray.plan.known import Seen
from caprl_ray.recipe.input import Input
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.sources import files
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage
from caprl_ray.text import as_named, readable
from tests.s3_server import BUCKET, S3Server


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def planned(*paths: object, storage: Storage | None = None, out: str | None = None, **fields: Any) -> Any:
    """The keys of the plan, and the counts of what is left out."""
    settings = Input(paths=[str(path) for path in paths], **fields)
    access, left_out = Access(storage=storage or Storage(), input=settings, max_bytes=1000, output=out), LeftOut()
    units = list(sources.plan_units(access, left_out=left_out))
    counts = {reason: told["count"] for reason, told in left_out.report().items()}
    return [entry.key for unit in units for entry in unit.entries], counts


@pytest.fixture
def remote(s3: S3Server) -> Storage:
    return Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1"))


def test_an_object_is_planned_once_however_many_paths_reach_it(tmp_path: Path, s3: S3Server, remote: Storage) -> None:
    names = ["set/0.jpg", "set/1.jpg", "set/extra/2.jpg", "set/extra/n.txt", "set-b/3.jpg"]
    touch(tmp_path, *names)
    s3.fill(names)
    for root, storage in ((str(tmp_path), Storage()), (f"s3://{BUCKET}", remote)):
        paths = [f"{root}/{path}" for path in ("set", "set/extra", "set/0.jpg", "set{,-b}/*.jpg", "set-b")]
        keys, counts = planned(*paths, storage=storage)
        assert keys == ["0.jpg", "1.jpg", "extra/2.jpg", "3.jpg"]
        assert counts == {"overlap": 5, "unknown_ending": 1}
    assert planned(tmp_path / "set", tmp_path / "x" / ".." / "set") == (
        ["0.jpg", "1.jpg", "extra/2.jpg"],
        {"overlap": 3, "unknown_ending": 1},
    )


def test_disjoint_prefixes_of_a_bucket_cost_no_memory(s3: S3Server, remote: Storage, monkeypatch: Any) -> None:
    s3.fill(f"part-{folder}/{number}.jpg" for folder in (1, 10, 2) for number in range(3))
    monkeypatch.setattr(Seen, "add", None)
    for paths in ([f"s3://{BUCKET}/part-{{1,10,2}}"], [f"s3://{BUCKET}/part-{n}/*.jpg" for n in (1, 10, 2)]):
        assert len(planned(*paths, storage=remote)[0]) == 9


def test_linked_folders_are_listed_once_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "set/part1/a.jpg", "disk/b.jpg", "disk/deep/c.jpg", "other/d.jpg")
    for link, target in {
        "set/part2": "../disk",
        "set/part3": "../disk/deep",  # reached through part2 as well
        "set/self": ".",
        "set/z.jpg": "part1/a.jpg",
        "set/d.jpg": "../other/d.jpg",
        "set/gone.jpg": "nowhere",
        "set/round.jpg": "round.jpg",
        "disk/back": "../set",
        "disk/here": ".",
        "set/kernel": "/proc/self",
    }.items():
        (tmp_path / link).symlink_to(target)
    os.mkfifo(tmp_path / "set/pipe.jpg")
    os.link(tmp_path / "set/part1/a.jpg", tmp_path / "set/part1/hard.jpg")
    expected = ["d.jpg", "part1/a.jpg", "part1/hard.jpg", "part2/b.jpg", "part2/deep/c.jpg"]
    counts = {"link": 2, "overlap": 5, "special": 2}
    assert planned(tmp_path / "set") == (expected, counts)
    for pattern in ("set/*", "set/**", "set/**/*.jpg"):
        keys, found = planned(tmp_path / pattern)
        assert sorted(key.rpartition("/")[2] for key in keys) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "hard.jpg"]
        assert found == counts
    assert planned(tmp_path / "set", tmp_path / "disk")[0] == expected
    (tmp_path / "link").symlink_to("set")
    assert planned(tmp_path / "link") == (expected, counts)
    assert planned(tmp_path / "link", tmp_path / "set/part1")[1]["overlap"] == counts["overlap"] + 2


def test_a_planning_among_links_and_overlaps_goes_on_and_counts_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(files, "FILES_PER_UNIT", 2)
    touch(tmp_path, *(f"set/{n}.jpg" for n in range(5)), "disk/a/x.jpg", "disk/a/y.jpg", "disk/b.jpg", "set/.h")
    (tmp_path / "set/1-link").symlink_to("../disk/a")
    (tmp_path / "set/3-link").symlink_to("../disk")
    for paths in ([tmp_path / "set"], [tmp_path / "set/1*", tmp_path / "set", tmp_path / "disk"]):
        settings = Input(paths=[str(path) for path in paths])
        access, whole = Access(storage=Storage(), input=settings, max_bytes=1000), LeftOut()
        units = list(sources.plan_units(access, left_out=whole))
        assert len(units) > 3 and whole.report()["overlap"]["count"] >= 2
        assert sources.goes_on(units[0].position, settings)
        assert not sources.goes_on(units[0].position, settings.model_copy(update={"hidden": True}))
        for number in range(1, len(units)):
            left_out = LeftOut()
            begun = sources.plan_units(access, left_out=left_out)
            first = [next(begun) for _ in range(number)]
            known = {entry.stored.path for unit in first for entry in unit.entries}
            rest = list(sources.plan_units(access, known, first[-1].position, (), left_out))
            assert [unit.entries for unit in [*first, *rest]] == [unit.entries for unit in units]
            assert left_out.report() == whole.report()


def test_housekeeping_and_hidden_names_are_passed_over_and_counted(tmp_path: Path) -> None:
    images = ["a.jpg", "_good/b.jpg"]
    passed = [
        "._a.jpg",
        "__MACOSX/._a.jpg",
        "x/.ipynb_checkpoints/a.jpg",
        "x/@eaDir/a.jpg",
        ".Trash-1000/a.jpg",
        "x/Thumbs.db",
    ]
    touch(tmp_path / "photos", *images, *passed, ".DS_Store", ".git/a.jpg", "x/.b.jpg")
    assert planned(tmp_path / "photos") == (sorted(images), {"hidden": 1, "housekeeping": 8})
    assert planned(tmp_path / "photos", hidden=True)[0] == [*sorted(images), "x/.b.jpg"]
    assert planned(tmp_path / "photos/x/.b.jpg", tmp_path / "photos/.git")[0] == [".b.jpg", "a.jpg"]


def test_tables_also_hide_by_an_underscore(tmp_path: Path) -> None:
    table = b"no parquet"  # becomes one failed row
    for name in (
        "0.parquet",
        "_1.parquet",
        "_x/2.parquet",
        "_year=1/3.parquet",
        "_temporary/4.parquet",
        "_delta_log/5.parquet",
    ):
        touch(tmp_path, name)
        (tmp_path / name).write_bytes(table)
    touch(tmp_path, "_SUCCESS")
    assert planned(tmp_path) == (["0.parquet", "_year=1/3.parquet"], {"hidden": 2, "housekeeping": 3})
    assert planned(tmp_path, hidden=True)[0] == ["0.parquet", "_1.parquet", "_x/2.parquet", "_year=1/3.parquet"]
    assert planned(tmp_path / "_x", f"{tmp_path}/_*.parquet")[0] == ["2.parquet", "_1.parquet"]


def test_what_comes_before_a_table_without_rows_is_counted(tmp_path: Path) -> None:
    for name, rows in (("a.parquet", 1), ("c.parquet", 0)):
        pq.write_table(pa.table({"image": pa.array([b"x"] * rows, pa.binary())}), tmp_path / name)
    touch(tmp_path, "b/_b.parquet", "d.txt")
    assert planned(tmp_path) == (["a.parquet"], {"hidden": 1, "unknown_ending": 1})


def test_outputs_are_no_input_unless_their_rows_are_named(tmp_path: Path, s3: S3Server, remote: Storage) -> None:
    row, run = f"{1:06d}-{'ab' * 16}.parquet", json.dumps({"fingerprint": {}}).encode()
    contents = {f"in/old/data/{row}": b"no parquet", "in/old/run.json": run}
    of_part = f"{Written(number=1, part='2of12').name}-{'ab' * 16}.parquet"
    contents |= {f"in/parts/data/{of_part}": b"no parquet", "in/parts/run.json": run}
    contents |= {
        "in/old/plan/00000.parquet": b"",
        f"in/old/evaluations/images-{'ab' * 8}/00000.parquet": b"no parquet",
        f"in/theirs/data/{row}": b"no parquet",
        "in/t.parquet": b"no parquet",
    }
    contents |= {"in/own/x.parquet": b"no parquet"}
    for name, content in contents.items():
        touch(tmp_path, name)
        (tmp_path / name).write_bytes(content)
        s3.put(name, content)
    for root, storage in ((str(tmp_path), Storage()), (f"s3://{BUCKET}", remote)):
        for path in ("in", "in/*", "in/**/*.parquet"):
            keys, counts = planned(f"{root}/{path}", storage=storage, out=f"{root}/in/own")
            assert [key.rpartition("/")[2] for key in keys] == ["t.parquet", row]
            assert counts == {"own_output": 3}
        assert planned(f"{root}/in/old/data", storage=storage)[0] == [row]
        assert planned(f"{root}/in/[ot]*/data/*.parquet", storage=storage)[0] == [row, row]
        with pytest.raises(RecipeError, match=r"left out: 1 output of a run \(.*/in/old/\)"):
            planned(f"{root}/in/old", storage=storage)


def test_a_second_kind_is_refused_however_late_it_shows(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number:04d}.jpg" for number in range(5000)), "z.tar")
    with pytest.raises(RecipeError, match=r"holds files and webdataset, such as .*/z\.tar; set input\.kind to"):
        planned(tmp_path)
    keys, counts = planned(tmp_path, kind="files")
    assert len(keys) == 5000 and counts == {"unknown_ending": 1}
    touch(tmp_path / "late", *(f"{number:04d}.txt" for number in range(1500)), "z.jpg")
    assert planned(tmp_path / "late") == (["z.jpg"], {"unknown_ending": 1500})


def test_names_that_are_not_utf8_are_planned_and_read(tmp_path: Path) -> None:
    names = [b"caf\xe9.jpg", b"a\\xe9.jpg", "ü.jpg".encode(), b"\xff\xfe.jpg"]
    for name in names:
        (tmp_path / "in").mkdir(exist_ok=True)
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name)).write_bytes(name)
    access = Access(storage=Storage(), input=Input(paths=[str(tmp_path / "in")]), max_bytes=1000)
    plan.store(Storage(), str(tmp_path / "out"), sources.plan_units(access))
    (ref,) = plan.load(Storage(), str(tmp_path / "out")).units
    from pyroaring import BitMap

    found = {
        sample.key: sample.image
        for sample in sources.read_unit(ref.load(Storage()), BitMap(), access, LeftOut())
        if sample
    }
    assert found == {
        r"caf\xe9.jpg": names[0],
        r"a\x5cxe9.jpg": names[1],
        "ü.jpg": names[2],
        r"\xff\xfe.jpg": names[3],
    }
    for name in names:
        assert os.fsencode(as_named(readable(os.fsdecode(name)))) == name
        readable(os.fsdecode(name)).encode()
    again = list(sources.plan_units(access, plan.known.PlannedPaths(Storage(), str(tmp_path / "out"))))
    assert again == []


def test_a_set_of_paths_knows_all_that_were_added(monkeypatch: Any) -> None:
    monkeypatch.setattr(plan.known, "RECENT", 8)
    seen = Seen()
    assert all(seen.add(f"{number}") for number in range(1000))
    assert not any(seen.add(f"{number}") for number in range(1000))
    assert seen.add("new") and not seen.add("new")


def test_an_archived_object_is_reported_as_archived(s3: S3Server, remote: Storage) -> None:
    s3.put("in/a.jpg", b"x")
    s3.put("in/b.jpg", b"x")
    s3.put("t/c.parquet", b"no parquet")
    s3.fault = lambda request: "archived" if request.method == "GET" and request.key == "in/a.jpg" else None
    access = Access(storage=remote, input=Input(paths=[f"s3://{BUCKET}/in"]), max_bytes=1000)
    (unit,) = sources.plan_units(access)
    from pyroaring import BitMap

    first, second = (sample for sample in sources.read_unit(unit, BitMap(), access, LeftOut()) if sample)
    assert isinstance(first.failure, RowFailure) and second.image == b"x"
    assert (first.failure.code, first.failure.detail) == ("source_unreadable", "archived in Glacier: restore it")
    s3.fault = lambda request: "archived" if request.key == "t/c.parquet" and request.method == "GET" else None
    with pytest.raises(
        SystemFailure, match=r"t/c\.parquet cannot be planned \(archived in Glacier: restore it\); run the same"
    ):
        planned(f"s3://{BUCKET}/t", storage=remote)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("KeyCount", None),
        ("IsTruncated", None),
        ("ETag", "lacks ETag"),
        ("NextContinuationToken", "lacks NextContinuation"),
    ],
)
def test_a_listing_that_lacks_a_field_is_understood_or_refused(
    s3: S3Server, remote: Storage, missing: str, said: str | None
) -> None:
    s3.fill(f"in/{number:04d}.jpg" for number in range(1001 if missing == "NextContinuationToken" else 3))
    s3.without = missing
    if said:
        with pytest.raises(SystemFailure, match=rf"cannot be listed.* \(the store's answer {said}.*\)"):
            planned(f"s3://{BUCKET}/in", storage=remote)
    else:
        assert len(planned(f"s3://{BUCKET}/in", storage=remote)[0]) == 3
