"""Every form of export, read back by the libraries that people use and compared row by row."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from caprl_ray import cli
from tests.export.outputs import PROMPT, TABLE_ROWS, Made, make

LABEL = "meta:label"
WHERE = "flags = [] and caption_tokens > 32"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


def export(made: Made, out: Path | str, *arguments: str) -> int:
    return cli.main(["export", str(made.path), "--out", str(out), "--to", *arguments])


def chosen(made: Made) -> dict[str, dict[str, Any]]:
    """The rows that WHERE picks."""
    return {i: row for i, row in made.finished.items() if not row["flags"] and row["caption_tokens"] > 32}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(out.glob("*.jsonl")) for line in path.read_text().splitlines()]


def test_lines_hold_every_caption_once_in_order(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(made, tmp_path / "all", "jsonl") == 0
    expected = [{"id": i, "image": row["key"], "caption": row["caption"]} for i, row in sorted(made.finished.items())]
    assert lines(tmp_path / "all") == expected
    by_duckdb = duckdb.sql(f"SELECT id, image, caption FROM '{tmp_path}/all/*.jsonl' ORDER BY id").fetchall()
    assert by_duckdb == [tuple(row.values()) for row in expected]
    count, failed = len(expected), len(made.rows) - len(expected)
    assert f"{count} rows exported to 1 file, 0 left out, {failed} failed, 0 missing: {len(made.rows)} rows" in (
        capsys.readouterr().out
    )
    assert export(made, tmp_path / "some", "jsonl", "--where", WHERE, "--form", "llava", "--shard-rows", "40") == 0
    turns = [
        {"id": i, "image": row["key"], "conversations": [
            {"from": "human", "value": f"<image>\n{PROMPT}"}, {"from": "gpt", "value": row["caption"]},
        ]}
        for i, row in sorted(chosen(made).items())
    ]  # fmt: skip
    assert lines(tmp_path / "some") == turns and len(list((tmp_path / "some").glob("*.jsonl"))) > 2
    assert f"{count - len(turns)} left out" in capsys.readouterr().out


def test_parquet_stands_beside_its_source_row_by_row(made: Made, tmp_path: Path) -> None:
    assert export(made, tmp_path, "parquet", "--where", WHERE) == 0
    source = pq.read_table(made.folder / "table" / "train-00000-of-00001.parquet")
    table = pq.read_table(tmp_path / "train-00000-of-00001.parquet")
    assert source.num_rows == table.num_rows == TABLE_ROWS
    wanted = {row[LABEL]: row for row in chosen(made).values() if row[LABEL]}
    joined = duckdb.sql('SELECT label, caption, flags, id FROM source POSITIONAL JOIN "table"').fetchall()
    assert [(row[0], row[1], row[2]) for row in joined] == [
        (label, wanted[label]["caption"], []) if label in wanted else (label, None, None)
        for label in source["label"].to_pylist()
    ]
    assert [row[3] for row in joined] == sorted(i for i, row in made.rows.items() if row[LABEL])
    for name, count in (("000000", 30), ("00000", 25), ("00001", 25)):
        frame = pd.read_parquet(tmp_path / f"{name}.parquet")
        assert len(frame) == count and list(frame["index"]) == list(range(count))
        known = {row["id"]: row["caption"] for row in chosen(made).values()}
        assert [known.get(i) for i in frame["id"]] == [
            text if isinstance(text, str) else None for text in frame["caption"]
        ]
    everything = pd.read_parquet(tmp_path)  # the folder as a whole
    assert len(everything) == len(made.rows) and everything["caption"].notna().sum() == len(chosen(made))
