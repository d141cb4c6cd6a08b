"""`plan --duplicates` samples an input and finds the images that it repeats. No Ray is needed."""

import io
import json
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray import cli, plan, sources
from caprl_ray.commands import sample as module
from caprl_ray.commands.frequent import frequent
from caprl_ray.commands.sample import shared_out
from caprl_ray.recipe.load import parse
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage

GONE, OLD = b"GIF89a not available", b"GIF89a deleted"
SHARDS, SHARD_ROWS, FILES = 12, 50, 1300


def content(number: int) -> bytes:
    """Every tenth image is gone, every 25th of the others deleted."""
    return GONE if number % 10 == 3 else OLD if number % 25 == 1 else b"%06d" % number


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images three times: 1,300 files, 12 shards of 50 samples, a parquet file of 600 rows."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("files", "shards", "table"):
        (folder / name).mkdir()
    for number in range(FILES):
        (folder / "files" / f"{number:05d}.gif").write_bytes(content(number))
    for shard in range(SHARDS):
        with tarfile.open(folder / "shards" / f"{shard:03d}.tar", "w") as tar:
            for number in range(SHARD_ROWS * shard, SHARD_ROWS * (shard + 1)):
                info = tarfile.TarInfo(f"{number:05d}.gif")
                info.size = len(content(number))
                tar.addfile(info, io.BytesIO(content(number)))
    rows = [{"image": content(number), "n": number} for number in range(SHARDS * SHARD_ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "table" / "a.parquet", row_group_size=100)
    return folder


def recipe_of(folder: Path, out: Path, **settings: Any) -> Any:
    return parse({"input": {"paths": [str(folder)]} | settings, "output": {"path": str(out)}})


@pytest.mark.parametrize(("kind", "rows"), [("files", FILES), ("shards", 600), ("table", 600)])
def test_a_whole_input_is_counted_exactly(images: Path, tmp_path: Path, kind: str, rows: int) -> None:
    found = frequent(recipe_of(images / kind, tmp_path))
    gone = sum(content(number) == GONE for number in range(rows))
    old = sum(content(number) == OLD for number in range(rows))
    assert (found.rows, found.without, found.listed) == (rows, 0, 0)
    assert found.most == [(sha256(GONE).hexdigest(), gone), (sha256(OLD).hexdigest(), old)]
    assert len(found.counts) == rows - gone - old + 2
    assert all(len(found.places[digest]) == 3 for digest, _ in found.most)


@pytest.mark.parametrize("kind", ["files", "shards", "table"])
def test_a_sample_is_spread_is_the_same_each_time_and_holds_frequent_images(
    images: Path, tmp_path: Path, kind: str
) -> None:
    found = frequent(recipe_of(images / kind, tmp_path), 240)
    assert found.rows == 240
    assert found.most[0][0] == sha256(GONE).hexdigest() and 10 <= found.most[0][1] <= 40
    assert found.report() == frequent(recipe_of(images / kind, tmp_path), 240).report()
    if kind == "shards":
        assert len({source for places in found.places.values() for source, _ in places}) == SHARDS


def test_the_stored_plan_is_sampled_and_what_is_listed_counts_apart(images: Path, tmp_path: Path) -> None:
    recipe = recipe_of(images / "files", tmp_path, placeholders=[sha256(GONE).hexdigest()])
    plan.store(Storage(), str(tmp_path), sources.plan_units(Access.of(recipe)))
    (images / "files" / "99999.gif").write_bytes(OLD)  # it is not in the plan
    try:
        found = frequent(recipe, FILES)
    finally:
        (images / "files" / "99999.gif").unlink()
    assert (found.rows, found.listed) == (FILES, 130)
    assert [digest for digest, _ in found.most] == [sha256(OLD).hexdigest()]
    assert found.override() == f"input.placeholders=[{sha256(GONE).hexdigest()},{sha256(OLD).hexdigest()}]"


def test_an_image_that_cannot_be_read_is_not_counted(images: Path, tmp_path: Path) -> None:
    whole = (images / "shards" / "000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: 1024 * 20 + 100])
    found = frequent(recipe_of(tmp_path / "cut.tar", tmp_path / "out"))
    assert (found.rows, found.without) == (20, 1)


def test_memory_does_not_grow_with_the_units(monkeypatch: pytest.MonkeyPatch, images: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(sources.files, "FILES_PER_UNIT", 10)
    monkeypatch.setattr(module, "MOST_UNITS", 7)
    access = Access.of(recipe_of(images / "files", tmp_path))
    kept = module.chosen_units(access.storage, plan.EMPTY, sources.plan_units(access), 21)
    assert len(kept) == 7 and all(3 <= len(unit.entries) == unit.rows <= 10 for unit in kept)
    assert max(unit.entries[0].key for unit in kept) > "00650"  # not only from the start


@pytest.mark.parametrize(
    ("lengths", "sample", "shares"),
    [
        ([100, 100], 10, [5, 5]),
        ([2, 100, 100], 12, [2, 5, 5]),
        ([None, 3, None], 13, [5, 3, 5]),
        ([4, 4], 100, [4, 4]),
        ([None, None, None], 2, [1, 1, 0]),
    ],
)
def test_the_sample_is_shared_out_evenly(lengths: list[int | None], sample: int, shares: list[int]) -> None:
    assert shared_out(lengths, sample) == shares


def test_the_command_prints_text_that_ends_with_the_override_or_json(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"input: {{paths: [{images / 'shards'}]}}\noutput: {{path: {tmp_path / 'out'}}}\n")
    assert cli.main(["plan", str(recipe), "--duplicates", "--sample", "180"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith(f"'input.placeholders=[{sha256(GONE).hexdigest()},") and last.endswith("]'")
    assert cli.main(["plan", str(recipe), last.strip("'"), "--duplicates", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == 600 and report["most_frequent"] == [] and report["override"] is None
    assert report["placeholders"] == sum(content(number) in (GONE, OLD) for number in range(600))
    (tmp_path / "gone.txt").write_text("")
    assert cli.main(["plan", str(recipe), f"input.placeholders={tmp_path / 'gone.txt'}", "--duplicates"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        f"add their lines to {tmp_path / 'gone.txt'}",
        sha256(GONE).hexdigest(),
        sha256(OLD).hexdigest(),
    ]
    assert cli.main(["plan", str(recipe), "--sample", "5"]) == 2
    assert not (tmp_path / "out").exists()
