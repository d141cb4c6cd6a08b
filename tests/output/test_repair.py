"""Rows to retry and superseded rows, compared with a plain reading of the rule; which objects are read for them."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pytest
from pyarrow import Table

from caprl_ray.caption.columns import CAPTION
from caprl_ray.output import scan
from caprl_ray.output.committed import read_committed
from caprl_ray.output.objects import DATA, FAILED, parquet_bytes
from caprl_ray.output.repair import repair
from caprl_ray.rows.schema import data_schema, failed_schema
from caprl_ray.sources.samples import METADATA
from caprl_ray.storage import Storage, Stored, join

SCHEMAS = {DATA: data_schema(METADATA, CAPTION), FAILED: failed_schema(METADATA)}
CODES = ("source_missing", "image_corrupt", "caption_empty")
Row = dict[str, Any]


def put(out: Path, folder: str, name: str, rows: Sequence[Row]) -> None:
    schema = SCHEMAS[folder]
    table = Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema=schema)
    Storage().put(join(str(out), folder, f"{name}.parquet"), parquet_bytes(table))


def stand(out: Path, folder: str) -> list[Row]:
    """All rows of a folder in the order of objects and places."""
    paths = sorted((out / folder).glob("*.parquet")) if (out / folder).exists() else []
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def some_output(out: Path, seed: int) -> None:
    """Objects of random rows, many of which stand several times, in `data`, in `failed` and in both."""
    rng = random.Random(seed)
    for folder in (DATA, FAILED):
        for number in range(rng.randint(1, 7)):
            rows = []
            for _ in range(rng.randint(1, 12)):
                row: Row = {"unit": rng.choice([0, 3, 70_000]), "index": rng.choice([0, 1, 2, 5, 2**31 + 1])}
                row["attempts"] = rng.randint(1, 3)
                rows.append(row | ({"code": rng.choice(CODES)} if folder == FAILED else {}))
            put(out, folder, f"{number:02d}", rows)


def expected(out: Path) -> dict[str, list[tuple[int, int, int]]]:
    """The rows that count by the rule: data over failed, then the most attempts."""
    best: dict[tuple[int, int], tuple[int, int]] = {}
    for folder in (FAILED, DATA):
        for row in stand(out, folder):
            key, rank = (row["unit"], row["index"]), (int(folder == DATA), row["attempts"])
            best[key] = max(best.get(key, rank), rank)
    kept: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for (unit, index), (in_data, attempts) in sorted(best.items()):
        kept[DATA if in_data else FAILED].append((unit, index, attempts))
    return kept


def check_repair(out: Path) -> None:
    wanted, before = expected(out), len(stand(out, DATA)) + len(stand(out, FAILED))
    removed = repair(Storage(), str(out), read_committed(Storage(), str(out)))
    left = {folder: sorted((r["unit"], r["index"], r["attempts"]) for r in stand(out, folder)) for folder in SCHEMAS}
    assert left == {folder: wanted[folder] for folder in SCHEMAS}
    assert removed == before - sum(map(len, wanted.values()))
    assert not repair(Storage(), str(out), read_committed(Storage(), str(out)))


@pytest.mark.parametrize("seed", range(12))
def test_the_row_that_counts_is_left_once(tmp_path: Path, seed: int) -> None:
    some_output(tmp_path, seed)
    check_repair(tmp_path)


@pytest.mark.usefixtures("ray_cluster")
def test_in_tasks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "OBJECTS_PER_TASK", 2)
    for seed in range(3):
        some_output(tmp_path / str(seed), seed)
        check_repair(tmp_path / str(seed))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("codes", [CODES, CODES[:1]])
def test_failed_rows_are_retried_by_their_latest_failure(tmp_path: Path, seed: int, codes: tuple[str, ...]) -> None:
    some_output(tmp_path, seed)
    data = {(row["unit"], row["index"]) for row in stand(tmp_path, DATA)}
    latest: dict[tuple[int, int], tuple[int, set[str]]] = {}
    for row in stand(tmp_path, FAILED):
        key = (row["unit"], row["index"])
        attempts, said = latest.get(key, (0, set()))
        if row["attempts"] >= attempts:
            latest[key] = row["attempts"], {row["code"]} | (said if row["attempts"] == attempts else set())
    found = {
        (unit, index): failure
        for unit, rows in read_committed(Storage(), str(tmp_path), codes).items()
        for failure, indices in rows.retry.items()
        for index in indices
    }
    for key, (attempts, said) in latest.items():
        if key not in data and said <= set(codes):
            assert found[key][0] == attempts and found[key][1] in said
    # Of two failures with as many attempts either may be the one that counts.
    assert found.keys() <= {key for key, (_, said) in latest.items() if key not in data and said & set(codes)}
    assert not any(unit.retry for unit in read_committed(Storage(), str(tmp_path)).values())


@dataclass(frozen=True)
class Recorded(Storage):
    """Storage that remembers which objects were opened."""

    opened: list[str] = field(default_factory=list)

    def open(self, stored: Stored, *, piece: int | None = None) -> BinaryIO:
        self.opened.append("/".join(stored.path.split("/")[-2:]).removesuffix(".parquet"))
        return super().open(stored, piece=piece)


def rows_of(unit: int, *indices: int, **more: Any) -> list[Row]:
    return [{"unit": unit, "index": index, "attempts": 1} | more for index in indices]


def test_after_a_retry_no_object_of_data_is_opened_and_only_affected_ones_are_read_whole(tmp_path: Path) -> None:
    put(tmp_path, DATA, "old", rows_of(0, 0, 1, 2) + rows_of(9, 0))
    put(tmp_path, FAILED, "old", rows_of(0, 3, 4, code="image_corrupt"))
    put(tmp_path, FAILED, "other", rows_of(5, 0, 1, code="image_corrupt"))
    put(tmp_path, DATA, "new", rows_of(0, 3, attempts=2))
    put(tmp_path, FAILED, "new", rows_of(0, 4, attempts=2, code="image_corrupt"))
    storage = Recorded()
    assert repair(storage, str(tmp_path), read_committed(Storage(), str(tmp_path))) == 2
    assert sorted(storage.opened) == ["failed/new", "failed/old", "failed/old", "failed/other"]
    assert not (tmp_path / FAILED / "old.parquet").exists()  # no row of it is left
    assert [row["attempts"] for row in stand(tmp_path, FAILED)] == [2, 1, 1]


def test_an_interrupted_repair_runs_again(tmp_path: Path) -> None:
    some_output(tmp_path, 1)
    wanted, units = expected(tmp_path), read_committed(Storage(), str(tmp_path))

    class Full(Storage):
        def put(self, path: str, content: bytes) -> None:
            raise OSError(28, "no space left", path)

        def delete(self, path: str) -> None:
            raise OSError(28, "no space left", path)

    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    with pytest.raises(OSError, match="no space left"):
        repair(Full(), str(tmp_path), units)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    assert expected(tmp_path) == wanted
    check_repair(tmp_path)
