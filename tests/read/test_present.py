"""Sources that changed since the plan: their rows are captioned or kept, and none is joined wrongly."""

import io
import os
import tarfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray import plan, sources
from caprl_ray.caption.columns import CAPTION
from caprl_ray.output import ledger
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.committed import read_committed
from caprl_ray.output.held import held_rows
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.repair import repair
from caprl_ray.read.datasource import Reading, accepting, read_units, remaining
from caprl_ray.read.present import Accept
from caprl_ray.recipe.input import Input
from caprl_ray.rows.schema import row_schema
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage

STORAGE = Storage()
CHANGED = frozenset({"source_changed"})
MENDED = frozenset({"truncated_unit"})


class Dataset:
    """A source and an output, captioned without Ray. The caption of a finished row is the digest of its picture."""

    def __init__(self, source: Path, out: Path) -> None:
        self.out = str(out)
        self.access = Access(storage=STORAGE, input=Input(paths=[str(source)]), max_bytes=10_000)
        plan.store(STORAGE, self.out, sources.plan_units(self.access))
        self.runs = 0

    def run(
        self, retry: Collection[str] = (), accept: Accept = Accept.NONE, *, limit: int | None = None, mend: bool = True
    ) -> Ledger:
        """One run, or its first `limit` rows. Without `mend` it dies before its repair."""
        stored, self.runs = plan.load(STORAGE, self.out), self.runs + 1
        schema = row_schema(stored.columns, CAPTION)
        work = remaining(stored.units, read_committed(STORAGE, self.out, retry))
        work = accepting(work, retry, accept, STORAGE, lambda units: held_rows(STORAGE, self.out, units))
        found = [schema.empty_table(), *read_units(work, schema, Reading(access=self.access))]
        rows = pa.concat_tables(found).slice(0, limit).to_pylist()
        captioned = [row | {"caption": None if row["code"] else row["sha256"]} for row in rows]
        captioned = [row | {"flags": ["truncated"] if row["index"] == 1 else []} for row in captioned]
        sink = CommittedRows(STORAGE, self.out, 1, CAPTION, self.runs, f"recipe {self.runs}")
        sink.write([pa.Table.from_pylist(captioned, schema=schema)], None)
        if mend:
            repair(STORAGE, self.out, read_committed(STORAGE, self.out))
        return ledger.balance(stored.units, read_committed(STORAGE, self.out), "captioned")

    def rows(self, folder: str = "data") -> list[dict[str, Any]]:
        place = Path(self.out, folder)
        return pq.read_table(place).to_pylist() if place.exists() and list(place.iterdir()) else []


def picture(number: int) -> bytes:
    return b"picture %d " % number * 60


def tar(numbers: Collection[int]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for place, number in enumerate(numbers):
            info = tarfile.TarInfo(f"{place}.jpg")
            info.size = len(picture(number))
            archive.addfile(info, io.BytesIO(picture(number)))
    return buffer.getvalue()


def touch(path: Path) -> None:
    os.utime(path, (1_700_000_000, 1_700_000_000))


def kept(dataset: Dataset) -> dict[str, str]:
    return {row["id"]: row["sha256"] for row in dataset.rows()}


def test_a_shard_cut_short_and_mended_is_captioned_further_and_the_rows_so_far_stay(tmp_path: Path) -> None:
    shard, whole = tmp_path / "0.tar", tar(range(9))
    shard.write_bytes(whole[: len(tar(range(4))) // 2])
    dataset = Dataset(shard, tmp_path / "out")
    first = dataset.run()
    assert first.balanced and (first.finished > 0, first.failed, first.ended) == (True, 1, 1)
    before = kept(dataset)
    shard.write_bytes(whole)
    assert dataset.run().finished == first.finished
    dataset.run(MENDED, limit=2, mend=False)  # killed midway
    second = dataset.run(MENDED)
    assert second.balanced and (second.finished, second.failed, second.duplicate, second.ended) == (9, 0, 0, 0)
    assert before.items() <= kept(dataset).items()
    assert second.counts.runs == Counter(row["run"] for row in dataset.rows()) and len(second.counts.runs) > 1
    assert second.summary() == "9 images: 9 captioned (1 truncated), 0 failed"
    assert [row["key"] for row in sorted(dataset.rows(), key=lambda row: row["index"])] == [str(n) for n in range(9)]


def test_a_shard_with_another_picture_at_a_finished_place_is_not_joined(tmp_path: Path) -> None:
    shard = tmp_path / "0.tar"
    shard.write_bytes(tar(range(6)))
    dataset = Dataset(shard, tmp_path / "out")
    dataset.run(limit=3)
    before = kept(dataset)
    shard.write_bytes(tar([0, 5, 2, 3, 4, 1]))
    for retry in ((), CHANGED):
        found = dataset.run(retry, Accept.TOUCHED)
        assert found.balanced and (found.finished, found.failed, kept(dataset)) == (3, 1, before)
    (row,) = dataset.rows("failed")
    size = shard.stat().st_size
    assert row["code"] == "source_changed" and row["attempts"] == 2
    assert row["detail"].startswith(f"planned: {size} bytes of 20") and f"; found: {size} bytes of 20" in row["detail"]


@pytest.mark.parametrize(
    ("accept", "done", "captioned"), [(Accept.NONE, 3, 3), (Accept.SAME_ROWS, 3, 6), (Accept.SAME_ROWS, 0, 0)]
)
def test_a_touched_shard_goes_on_if_its_rows_prove_that_it_is_the_same(
    tmp_path: Path, accept: Accept, done: int, captioned: int
) -> None:
    shard = tmp_path / "0.tar"
    shard.write_bytes(tar(range(6)))
    dataset = Dataset(shard, tmp_path / "out")
    if done:
        dataset.run(limit=done)
    touch(shard)
    assert dataset.run(accept=accept).finished == captioned
    assert dataset.run(CHANGED).finished == 6


def test_files_that_changed_are_captioned_as_they_are_now_and_the_others_are_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    dataset = Dataset(folder, tmp_path / "out")
    dataset.run(limit=1)
    before = kept(dataset)
    for number in (0, 1):
        touch(folder / f"{number}.jpg")
    (folder / "2.jpg").write_bytes(picture(20))
    assert (touched := dataset.run(accept=Accept.TOUCHED)).balanced and (touched.finished, touched.failed) == (3, 1)
    (folder / "3.jpg").touch()  # finished, so it is not looked up
    assert (found := dataset.run(CHANGED)).balanced and (found.finished, found.failed) == (4, 0)
    assert before.items() <= kept(dataset).items()


def test_a_parquet_file_that_was_cut_short_is_captioned_when_it_is_whole(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    table = pa.table({"image": [picture(n) for n in range(5)], "text": list("abcde")})
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    pq.write_table(table, tmp_path / "in" / "b.parquet")
    whole = (tmp_path / "in" / "b.parquet").read_bytes()
    (tmp_path / "in" / "b.parquet").write_bytes(whole[:-50])
    dataset = Dataset(tmp_path / "in", tmp_path / "out")
    first = dataset.run()
    assert (first.finished, first.failed, first.lost) == (5, 1, 1)
    assert "6 images: 5 captioned (1 truncated), 1 failed (truncated_unit 1); 1 unit lost" in first.summary()
    pq.write_table(table.append_column("more", pa.array(range(5))), tmp_path / "in" / "b.parquet")
    assert dataset.run(MENDED).lost == 1
    assert "the column more that the plan does not have" in dataset.rows("failed")[0]["detail"]
    (tmp_path / "in" / "b.parquet").write_bytes(whole)
    second = dataset.run(MENDED)
    assert second.balanced and (second.finished, second.failed, second.lost) == (10, 0, 0)
    assert sorted(row["text"] for row in dataset.rows()) == sorted("abcde" * 2)


def parquet(path: Path, groups: list[int], size: int | None = None) -> int:
    """A file with so many rows in each row group, padded to `size`. Returns its size."""
    schema, pad = pa.schema([("image", pa.binary())]), 0
    for _ in range(5):
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
            number = 0
            for rows in groups:
                writer.write_table(pa.table({"image": [picture(number + n) for n in range(rows)]}, schema))
                number += rows
            if pad:
                writer.add_key_value_metadata({"pad": "x" * pad})
        found = path.stat().st_size
        if size is None or found == size:
            return found
        pad += size - found
    raise AssertionError("no padding gives this size")


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([1, 2], "planned: 3 row groups; found: 2"),
        ([1, 2, 2, 1], "planned: 3 row groups; found: 4"),
        ([2, 2, 1], "planned: 1 rows in these row groups; found: 2"),
    ],
)
def test_a_parquet_file_of_the_same_size_with_other_row_groups_loses_no_row_unsaid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: list[int], said: str
) -> None:
    monkeypatch.setattr("caprl_ray.sources.parquet.UNIT_ROWS", 2)
    file = tmp_path / "a.parquet"
    size = parquet(file, [1, 2, 2]) + 4_000
    parquet(file, [1, 2, 2], size)
    dataset = Dataset(file, tmp_path / "out")
    assert parquet(file, groups, size) == size
    touch(file)
    found = dataset.run(accept=Accept.TOUCHED)
    assert found.balanced and found.finished + found.failed == 5
    failed = {row["index"]: row for row in dataset.rows("failed") if row["unit"] == 0}
    assert failed[0]["code"] == "source_changed" and failed[0]["detail"] == said
    assert parquet(file, [1, 2, 2], size) == size
    assert dataset.run(CHANGED).finished == 5  # the planned row groups again


def test_a_row_with_a_very_long_key_proves_that_its_shard_is_the_same(tmp_path: Path) -> None:
    shard, long = tmp_path / "0.tar", "k" * 5_000
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"{long}{number}.jpg")
            info.size = len(picture(number))
            archive.addfile(info, io.BytesIO(picture(number)))
    shard.write_bytes(buffer.getvalue())
    dataset = Dataset(shard, tmp_path / "out")
    dataset.run(limit=1)
    assert "sha256:" in dataset.rows()[0]["key"]
    touch(shard)
    assert dataset.run(accept=Accept.TOUCHED).finished == 3
