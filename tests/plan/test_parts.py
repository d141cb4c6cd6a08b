"""A plan is stored in parts as it is made. A planning that was stopped goes on after the last of them."""

import io
import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray import cli, plan, sources
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.commands.plan import overview
from caprl_ray.errors import Abandoned, RecipeError, SystemFailure
from caprl_ray.output.folder import Output
from caprl_ray.plan import Entry, Planning, Unit
from caprl_ray.plan.known import Example, PlannedPaths, PlannedVersions
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.sources import files
from caprl_ray.storage import SourceChanged, Storage, Stored, local
from tests.s3_server import BUCKET, S3Server

STORAGE = Storage()
NAMES = sorted(
    [f"{folder}{number:02d}.jpg" for folder in ("", "a/", "a/b/", "a.b/", "a0/", "c/") for number in range(7)]
    + ["a.jpg", "a-.jpg", "a/b.jpg", "c/ü/x.jpg", "c/~.jpg", "d//e.jpg"]
)


class Killed(BaseException):
    """Ends a planning where SIGKILL would."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of three files, and a part for each unit."""
    monkeypatch.setattr(files, "FILES_PER_UNIT", 3)
    monkeypatch.setattr(plan.parts, "FIRST_PART_S", 0.0)
    monkeypatch.setattr(plan.parts, "PART_S", 0.0)


def killed_after(monkeypatch: pytest.MonkeyPatch, units: int) -> None:
    """End the next planning after so many units."""
    listed = sources.plan_units

    def deadly(*arguments: Any) -> Iterator[Unit]:
        found = listed(*arguments)
        for _, unit in zip(range(units), found, strict=False):
            yield unit
        monkeypatch.setattr(sources, "plan_units", listed)
        raise Killed

    monkeypatch.setattr(sources, "plan_units", deadly)


def output_of(recipe: Recipe, *, extend: bool = False) -> Output:
    return Output.open(caption_job(recipe), extend=extend)


def recipe_of(out: object, *paths: object, **sections: Any) -> Recipe:
    document = demo_recipe([Path("x")], Path("y")) | {"output": {"path": str(out)}, "model": {"source": "stub"}}
    return parse(document | {"input": {"paths": [str(path) for path in paths]}} | sections)


def entry(name: str) -> Entry:
    return Entry(stored=Stored(path=f"/images/{name}", size=1, version="v"), key=name)


def planned(recipe: Recipe) -> list[str]:
    """The paths of the stored plan, in its order."""
    storage = Storage(recipe.storage)
    stored = plan.load(storage, recipe.output.path)
    assert stored.complete and [ref.unit for ref in stored.units] == list(range(len(stored.units)))
    return [entry.stored.path for ref in stored.units for entry in ref.load(storage).entries]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    return tmp_path / "in"


# Stored parts


def test_parts_are_bounded_and_each_unit_is_read_from_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.parts, "ENTRIES_PER_ROW_GROUP", 3)
    monkeypatch.setattr(plan.parts, "ROW_GROUPS_PER_PART", 2)
    units = [Unit(kind="files", rows=2, entries=[entry(f"{n}/{i}") for i in range(2)]) for n in range(25)]
    plan.store(STORAGE, str(tmp_path), iter(units))
    stored = plan.load(STORAGE, str(tmp_path))
    assert stored.complete and stored.objects == 7
    assert [ref.load(STORAGE) for ref in stored.units] == units
    groups = [pq.read_metadata(path).num_row_groups for path in sorted((tmp_path / "plan").iterdir())]
    assert groups == [2] * 6 + [1]


def test_units_of_one_file_are_not_parted_and_columns_are_those_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan.parts, "FIRST_PART_S", 0.0)
    kinds = [pa.int32(), pa.int32(), pa.int64(), pa.int32()]
    units = [
        Unit(kind="parquet", rows=1, entries=[entry("ab"[n // 2])], columns=pa.schema([("x", kind)]), more=n % 2 == 0)
        for n, kind in enumerate(kinds)
    ]
    plan.store(STORAGE, str(tmp_path), iter(units))
    stored = plan.load(STORAGE, str(tmp_path))
    assert [ref.object.path[-13:] for ref in stored.units] == ["00000.parquet"] * 2 + ["00001.parquet"] * 2
    assert stored.columns == pa.schema([("x", pa.int64())])


def test_a_plan_of_an_older_version_is_complete_and_is_extended(tmp_path: Path) -> None:
    old = tmp_path / "plan" / "00000.parquet"
    plan.store(STORAGE, str(tmp_path), [Unit(kind="files", rows=1, entries=[entry("a")])])
    table = pq.read_table(old)
    metadata = {key: value for key, value in pq.read_metadata(old).metadata.items() if key != b"caprl_ray.end"}
    with pq.ParquetWriter(old, table.schema.remove_metadata()) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(metadata)
    stored = plan.load(STORAGE, str(tmp_path))
    assert stored.complete and plan.closed(STORAGE, str(tmp_path))
    assert "/images/a" in PlannedPaths(STORAGE, str(tmp_path))
    plan.store(STORAGE, str(tmp_path), [Unit(kind="files", rows=1, entries=[entry("b")])], stored)
    longer = plan.load(STORAGE, str(tmp_path))
    assert longer.complete and [ref.load(STORAGE).entries[0].key for ref in longer.units] == ["a", "b"]


def test_a_part_that_another_run_has_written_is_not_replaced(tmp_path: Path) -> None:
    units = [Unit(kind="files", rows=1, entries=[entry("a")])]
    plan.store(STORAGE, str(tmp_path), units)
    plan.store(STORAGE, str(tmp_path), units)  # the same: its own write, whose answer was lost
    with pytest.raises(SystemFailure, match=r"another run has written .*00000\.parquet; run the same command again"):
        plan.store(STORAGE, str(tmp_path), [Unit(kind="files", rows=1, entries=[entry("b")])])
    (ref,) = plan.load(STORAGE, str(tmp_path)).units
    assert ref.load(STORAGE).entries == [entry("a")]


def test_the_end_of_a_run_waits_for_a_part_that_is_being_stored_and_for_none_after_it() -> None:
    planning, storing, stored = Planning(), threading.Event(), threading.Event()

    def store() -> None:
        with planning.storing():
            storing.set()
            assert not stored.wait(0.2)
            stored.set()

    thread = threading.Thread(target=store)
    thread.start()
    assert storing.wait(5)
    planning.leave()
    assert stored.is_set()
    thread.join()
    with pytest.raises(Abandoned), planning.storing():
        pass


# A planning that was stopped


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "paths", [("{}",), ("{}/{{a,a.b,a0,c}}",), ("{}/**",), ("{}/c", "{}/a", "{}/a.b/", "{}/[0-9]*")]
)
def test_a_planning_goes_on_where_it_was_killed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: tuple[str, ...]
) -> None:
    where = [path.format(folder) for path in paths]
    for name in ("-.txt", "a/b/05.txt", "a.b/~.txt", "c/~~.txt"):
        (folder / name).write_bytes(b"x")
    whole = recipe_of(tmp_path / "whole", *where)
    left_out = output_of(whole).plan().left_out.report()
    assert left_out["unknown_ending"]["count"] >= 3
    expected = planned(whole)
    parts = len(list((tmp_path / "whole" / "plan").iterdir()))
    assert parts > 5
    for kill in range(parts):
        recipe = recipe_of(tmp_path / f"out-{kill}", *where)
        for again in (kill, 1):
            killed_after(monkeypatch, again)
            with pytest.raises(Killed):
                output_of(recipe).plan()
        stored = plan.load(STORAGE, recipe.output.path)
        assert not stored.complete and not plan.closed(STORAGE, recipe.output.path)
        assert output_of(recipe).plan().left_out.report() == left_out
        assert planned(recipe) == expected


@pytest.mark.usefixtures("small")
def test_what_was_listed_in_a_bucket_is_not_listed_again(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.fill(f"in/{folder}/{number:05d}.jpg" for folder in "ab" for number in range(2000))
    monkeypatch.setattr(files, "FILES_PER_UNIT", 500)
    storage = {"storage": {"endpoint": s3.endpoint, "region": "us-east-1"}}
    recipe = recipe_of(f"s3://{BUCKET}/out", f"s3://{BUCKET}/in/", **storage)
    killed_after(monkeypatch, 7)
    with pytest.raises(Killed):
        output_of(recipe).plan()
    s3.requests.clear()
    output_of(recipe).plan()
    listed = [request.query for request in s3.of("GET") if "prefix=in%2Fa" in request.query]
    assert not listed
    assert planned(recipe) == [f"s3://{BUCKET}/in/{f}/{n:05d}.jpg" for f in "ab" for n in range(2000)]


@pytest.mark.usefixtures("small")
def test_other_paths_and_new_files_are_planned_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_after(monkeypatch, 4)
    with pytest.raises(Killed):
        output_of(recipe_of(tmp_path / "out", folder)).plan()
    (tmp_path / "more").mkdir()
    for path in (folder / "00-new.jpg", folder / "zz.jpg", folder / "-.txt", tmp_path / "more" / "x.jpg"):
        path.write_bytes(b"x")
    recipe = recipe_of(tmp_path / "out", tmp_path / "more", folder)
    stored = output_of(recipe).plan()
    found = planned(recipe)
    assert len(found) == len(set(found)) == len(NAMES) + 3
    assert stored.left_out.report() == {"unknown_ending": {"count": 1, "example": str(folder / "-.txt")}}
    (folder / "zzz.jpg").write_bytes(b"x")
    (folder / "zzz.txt").write_bytes(b"x")  # an extension lists everything again, and counts it so
    assert output_of(recipe, extend=True).plan().left_out.report()["unknown_ending"]["count"] == 2
    assert overview(recipe).report()["left_out"]["unknown_ending"]["count"] == 2
    assert f"left out: 2 files of other kinds (such as {folder}/-.txt)" in overview(recipe).summary()


@pytest.mark.usefixtures("small")
def test_an_unfinished_plan_binds_no_recipe(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_after(monkeypatch, 4)
    with pytest.raises(Killed):
        output_of(recipe_of(tmp_path / "out", folder)).plan()
    other = recipe_of(tmp_path / "out", folder / "c", sampling={"temperature": 0.5})
    output_of(other).plan()
    assert planned(other) == [str(folder / name) for name in NAMES if name.startswith("c/")]
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["fingerprint"]["sampling.temperature"] == 0.5
    with pytest.raises(RecipeError, match="belongs to another recipe"):
        output_of(recipe_of(tmp_path / "out", folder))


@pytest.mark.usefixtures("small")
def test_an_extension_that_was_killed_goes_on_and_verify_says_that_it_is_not_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output_of(recipe_of(tmp_path / "out", folder / "c")).plan()
    first = planned(recipe_of(tmp_path / "out", folder / "c"))
    wider = recipe_of(tmp_path / "out", folder)
    killed_after(monkeypatch, 5)
    with pytest.raises(Killed):
        output_of(wider, extend=True).plan()
    assert plan.closed(STORAGE, str(tmp_path / "out"))
    assert cli.main(["verify", str(tmp_path / "out")]) == 3
    assert "the input is not planned to its end" in capsys.readouterr().out
    assert overview(wider).summary().startswith("the plan that the output holds so far; a run goes on with it")
    output_of(wider).plan()
    assert planned(wider) == first + [str(folder / name) for name in NAMES if not name.startswith("c/")]


@pytest.mark.usefixtures("small")
def test_the_recipe_before_an_extension_ends_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, wider = recipe_of(tmp_path / "out", folder / "c"), recipe_of(tmp_path / "out", folder)
    output_of(recipe).plan()
    killed_after(monkeypatch, 2)
    with pytest.raises(Killed):
        output_of(wider, extend=True).plan()
    output_of(recipe).plan()
    with pytest.raises(RecipeError, match=rf"and not of {folder}; --extend adds it"):
        output_of(wider)
    output_of(wider, extend=True).plan()
    assert sorted(planned(wider)) == sorted(str(folder / name) for name in NAMES)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("other", ["hidden files", "more paths"])
def test_an_unfinished_plan_keeps_no_files_that_the_recipe_does_not_take(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    (folder / "c" / ".0.jpg").write_bytes(b"x")
    wanted = recipe_of(tmp_path / "out", folder / "c")
    hidden = wanted.model_copy(update={"input": wanted.input.model_copy(update={"hidden": True})})
    more = recipe_of(tmp_path / "out", folder / "c", folder / "a0")
    for recipe, units in [(hidden, 2)] if other == "hidden files" else [(wanted, 1), (more, 4)]:
        killed_after(monkeypatch, units)
        with pytest.raises(Killed):
            output_of(recipe).plan()
    output_of(wanted).plan()
    assert planned(wanted) == [str(folder / name) for name in NAMES if name.startswith("c/")]


@pytest.mark.usefixtures("small")
@pytest.mark.usefixtures("small")
def test_a_jobs_check_sees_all_units_of_a_plan_that_goes_on_and_what_it_refuses_is_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_twins(units: Iterator[Unit]) -> Iterator[Unit]:
        names = set[str]()
        for unit in units:
            for one in unit.entries:
                if (name := one.key.rpartition("/")[2]) in names:
                    raise RecipeError(f"score.join: {name} is there twice.")
                names.add(name)
            yield unit

    (tmp_path / "in" / "z").mkdir(parents=True)
    names = [f"{number}.jpg" for number in range(9)]
    for name in [*names, "z/0.jpg"]:
        (tmp_path / "in" / name).touch()
    output = output_of(recipe_of(tmp_path / "out", tmp_path / "in"))
    output = replace(output, job=replace(output.job, check_units=without_twins))
    killed_after(monkeypatch, 2)
    with pytest.raises(Killed):
        output.plan()
    assert plan.load(STORAGE, output.path).objects == 2
    with pytest.raises(RecipeError, match="is there twice"):
        output.plan()
    (tmp_path / "in" / "z" / "0.jpg").unlink()
    output.plan()
    assert planned(output.job.recipe) == [str(tmp_path / "in" / name) for name in names]


def test_an_extension_that_is_refused_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "out", folder / "c")
    output_of(recipe).plan()
    before = planned(recipe)
    pq.write_table(pa.table({"image": [b"x"], "text": ["t"]}), tmp_path / "x.parquet")
    with pytest.raises(RecipeError, match="add the column text"):
        output_of(recipe_of(tmp_path / "out", folder, tmp_path / "x.parquet"), extend=True).plan()
    assert planned(recipe) == before
    with pytest.raises(RecipeError, match=rf"input.paths: .*/out holds the plan of .*/c, and not of {folder};"):
        output_of(recipe_of(tmp_path / "out", folder))


# Sources that cannot be read while they are planned


def parquet_files(folder: Path) -> Recipe:
    """Four files, and the output in the same folder."""
    (folder / "out").mkdir()
    for name in "abcd":
        pq.write_table(pa.table({"image": [name.encode()] * 5, "text": [name] * 5}), folder / f"{name}.parquet")
    return recipe_of(folder / "out", folder)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (PermissionError(13, "Permission denied"), r"\(Permission denied\); make it readable or remove it, and"),
        (FileNotFoundError(2, "gone"), r"\(removed since it was listed\); run the same command again"),
        (SourceChanged(116, "changed"), r"\(changed since it was listed\); run the same command again"),
        (OSError(5, "Input/output error"), r"\(Input/output error\); run the same command again"),
    ],
)
def test_a_file_that_cannot_be_opened_stops_planning_with_its_name_and_the_next_run_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError, said: str
) -> None:
    recipe, opened = parquet_files(tmp_path), local.LocalStore.open

    def denied(self: Any, stored: Stored, piece: int | None) -> Any:
        if stored.path.endswith("c.parquet"):
            raise fault
        return opened(self, stored, piece)

    with monkeypatch.context() as patched:
        patched.setattr(local.LocalStore, "open", denied)
        with pytest.raises(SystemFailure, match=rf"^input: .*/c\.parquet cannot be planned {said}"):
            output_of(recipe).plan()
    assert sum(ref.rows or 0 for ref in output_of(recipe).plan().units) == 20
    assert [Path(path).name for path in planned(recipe)] == [f"{name}.parquet" for name in "abcd"]


def test_an_object_that_is_replaced_while_it_is_planned_is_planned_by_the_next_run(s3: S3Server) -> None:
    def content(rows: int) -> bytes:
        pq.write_table(pa.table({"image": [b"x"] * rows}), buffer := io.BytesIO())
        return buffer.getvalue()

    for name in "ab":
        s3.put(f"in/{name}.parquet", content(3))
    storage = {"storage": {"endpoint": s3.endpoint, "region": "us-east-1"}}
    recipe = recipe_of(f"s3://{BUCKET}/out", f"s3://{BUCKET}/in/", **storage)
    s3.fault = replaced(s3, "in/b.parquet", content(7))
    with pytest.raises(SystemFailure, match=r"in/b\.parquet cannot be planned \(changed since it was listed\)"):
        output_of(recipe).plan()
    assert [ref.rows for ref in output_of(recipe).plan().units] == [3, 7]


def replaced(s3: S3Server, key: str, content: bytes) -> Callable[[Any], None]:
    """Replace an object when it is first read."""

    def fault(request: Any) -> None:
        if request.method == "GET" and request.key == key:
            s3.fault = None
            s3.put(key, content)

    return fault


def test_a_file_that_is_no_parquet_ends_as_one_failed_row(tmp_path: Path) -> None:
    recipe = parquet_files(tmp_path)
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    assert [ref.rows for ref in output_of(recipe).plan().units] == [5, None, 5, 5]


@pytest.mark.parametrize("pattern", ["*/*/*.jpg", "**/*.jpg", "a/**", "a/b/*"])
def test_a_folder_that_cannot_be_listed_stops_planning_below_a_glob_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    scan, shut = local.os.scandir, str(folder / "a/b")

    def denied(path: Any) -> Any:
        if str(path).rstrip("/") == shut:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    recipe = recipe_of(tmp_path / "out", folder / pattern)
    with monkeypatch.context() as patched:
        patched.setattr(local.os, "scandir", denied)
        with pytest.raises(SystemFailure, match=rf"is not listed: permission denied at {shut}; make it readable"):
            output_of(recipe).plan()
    output_of(recipe).plan()
    assert str(folder / "a/b/00.jpg") in planned(recipe)


def test_what_is_left_out_before_a_listing_fails_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/0.jpg", "a/z/.h.jpg", "b/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    recipe = recipe_of(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    scan = local.os.scandir

    def denied(path: Any) -> Any:
        if str(path).rstrip("/") == str(tmp_path / "b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    with monkeypatch.context() as patched:
        patched.setattr(local.os, "scandir", denied)
        with pytest.raises(SystemFailure, match="permission denied"):
            output_of(recipe).plan()
    assert plan.load(STORAGE, recipe.output.path).end.position  # the next run goes on behind a/0.jpg
    assert output_of(recipe).plan().left_out.report()["hidden"]["count"] == 1
    assert len(planned(recipe)) == 2


# Planned paths, in memory


@pytest.mark.parametrize(("kind", "bytes_each"), [(PlannedPaths, 17), (PlannedVersions, 26)])
def test_the_paths_of_a_plan_take_few_bytes_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[PlannedPaths | PlannedVersions], bytes_each: int
) -> None:
    monkeypatch.setattr(plan.known, "UNITS_AT_ONCE", 4)
    count = 100
    units = (Unit(kind="files", rows=1000, entries=[entry(f"{n}/{i}") for i in range(1000)]) for n in range(count))
    plan.store(STORAGE, str(tmp_path), units)
    tracemalloc.start()
    try:
        known = kind(STORAGE, str(tmp_path))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < bytes_each * 1000 * count and peak < kept + 3 * 2**20
    there = [(entry(f"{n}/{n % 1000}").stored, entry(f"{n}/{1000 + n}").stored) for n in range(count)]
    assert all(one in known and other not in known for one, other in there)


def test_versions_are_compared_and_a_path_that_storage_cannot_tell_of_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{n:03d}" for n in range(200)]
    units = [Unit(kind="files", rows=1, entries=[entry(name)]) for name in [*names, names[7], names[8]]]
    plan.store(STORAGE, str(tmp_path), units)
    known = PlannedVersions(STORAGE, str(tmp_path))
    listed = [replace(entry(name).stored, version="w" if name == "003" else "v") for name in names[:50]]
    assert all(stored in known for stored in [*listed[:-1], replace(listed[-1], size=2)])
    assert (known.touched, known.changed) == (Example(1, "/images/003"), Example(1, "/images/049"))
    together, most = 0, 0

    def lookup(_: Storage, path: str) -> Stored | None:
        nonlocal together, most
        together += 1
        most = max(most, together)
        time.sleep(0.005)
        together -= 1
        if path == "/images/060":
            raise OSError(5, "Input/output error")
        return entry("061").stored if path == "/images/061" else None

    monkeypatch.setattr(Storage, "lookup", lookup)
    assert known.removed(100) == Example(98, "/images/050") and most > 1


def test_paths_whose_hashes_end_in_zeros_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.known, "_hash", lambda path: path.encode().ljust(16, b"\0"))
    names = ["a", "ab", "a\x01", "b"]
    units = [
        Unit(kind="files", rows=1, entries=[replace(entry(n), stored=Stored(path=n, size=1, version=""))])
        for n in names
    ]
    plan.store(STORAGE, str(tmp_path), units)
    known = PlannedPaths(STORAGE, str(tmp_path))
    assert all(name in known for name in names) and not any(name in known for name in ("", "abc", "c", "A"))
