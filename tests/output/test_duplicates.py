"""Repeated images and captions of an output, with as much memory as there is and with hardly any."""

import json
import random
from collections import defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray import cli, plan
from caprl_ray.caption.columns import CAPTION
from caprl_ray.commands.duplicates import duplicates
from caprl_ray.output import duplicates as module
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.partitions import Limits
from caprl_ray.plan import Entry, Unit
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.rows.schema import row_id, row_schema
from caprl_ray.storage import Storage, Stored
from tests.s3_server import BUCKET, S3Server

UNITS, UNIT_ROWS, OBJECT_ROWS = 6, 500, 170
SMALL = Limits(files=7, rows=64)


def rows_of_a_run() -> list[dict[str, Any]]:
    """3,000 rows: one image 400 times with ever other captions, 300 in pairs, and 250 images with one caption."""
    rng, rows = random.Random(1), []
    for number in range(UNITS * UNIT_ROWS):
        image, caption = f"image {number}", f"caption {number} " * 5
        if number % 15 in (1, 4):
            image = "gone"
        elif number % 10 == 2:
            image = f"image {number - number % 20}"
        elif number % 12 == 3:
            caption = "A white picture."
        rows.append({"image": image, "caption": caption})
    rng.shuffle(rows)
    return [
        {
            "id": row_id(*divmod(number, UNIT_ROWS)),
            "unit": number // UNIT_ROWS,
            "index": number % UNIT_ROWS,
            "unit_rows": UNIT_ROWS if number % UNIT_ROWS == UNIT_ROWS - 1 else None,
            "source": f"/{number // UNIT_ROWS}.tar",
            "key": f"{number:05d}",
            "sha256": sha256(row["image"].encode()).hexdigest(),
            "caption": row["caption"],
            "flags": [],
        }
        for number, row in enumerate(rows)
    ]


ROWS = rows_of_a_run()


def write(storage: Storage, out: str, rows: list[dict[str, Any]] = ROWS) -> None:
    entries = [Entry(stored=Stored(path=f"/{n}.jpg", size=1, version="v"), key=f"{n}") for n in range(UNIT_ROWS)]
    plan.store(storage, out, [Unit(kind="files", rows=UNIT_ROWS, entries=entries)] * UNITS)
    sink, schema = CommittedRows(storage, out, 1, CAPTION, 1), row_schema(pa.schema([]), CAPTION)
    for start in range(0, len(rows), OBJECT_ROWS):
        sink.write([pa.Table.from_pylist(rows[start : start + OBJECT_ROWS], schema=schema)], None)


def by(name: str) -> dict[str, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for row in ROWS:
        groups[row[name]].append(row)
    return dict(groups)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    write(Storage(), str(folder))
    return folder


@pytest.mark.parametrize("limits", [None, SMALL, Limits(files=1, rows=300), Limits(files=64, rows=1000)])
def test_every_repeated_image_and_caption_is_counted_however_little_memory_there_is(
    output: Path, tmp_path: Path, limits: Limits | None
) -> None:
    listing = tmp_path / "list.parquet"
    report = duplicates(Storage(), str(output), listing=str(listing), limits=limits, temporary=str(tmp_path)).report()
    repeated = {image: rows for image, rows in by("sha256").items() if len(rows) > 1}
    assert report["rows"] == len(ROWS)
    assert report["images"]["groups"] == len(repeated)
    assert report["images"]["rows"] == sum(map(len, repeated.values()))
    first, second, *_ = report["images"]["largest"]
    assert (first["sha256"], first["rows"]) == (sha256(b"gone").hexdigest(), 400)
    assert second["rows"] == max(len(rows) for image, rows in repeated.items() if image != first["sha256"])
    ours = {row["id"]: row for row in ROWS}
    examples = [ours[example["id"]] for example in first["examples"]]
    assert len(examples) == 2 and all(row["sha256"] == first["sha256"] for row in examples)

    captions = {text: rows for text, rows in by("caption").items() if len({row["sha256"] for row in rows}) > 1}
    assert report["captions"]["groups"] == len(captions)
    assert report["captions"]["rows"] == sum(map(len, captions.values()))
    largest = report["captions"]["largest"][0]
    white = captions["A white picture."]
    assert largest["caption"] == "A white picture." and largest["rows"] == len(white)
    assert largest["images"] == len({row["sha256"] for row in white})

    listed = pq.read_table(listing).to_pylist()
    groups = defaultdict(dict)
    for row in listed:
        groups[row["group"]][row["id"]] = row["keep"]
    assert sum(map(len, groups.values())) == len(listed)  # no row twice
    assert {image[:32]: {row["id"] for row in rows} for image, rows in repeated.items()} == {
        group: set(rows) for group, rows in groups.items()
    }
    for rows in groups.values():
        assert [id_ for id_, keep in rows.items() if keep] == [min(rows)]
    assert list(tmp_path.iterdir()) == [listing]  # nothing temporary is left


def test_the_same_captions_of_the_same_image_are_no_fault(tmp_path: Path) -> None:
    rows = [row | {"sha256": sha256(b"one").hexdigest(), "caption": "The one."} for row in ROWS[:500]]
    write(Storage(), str(tmp_path), rows)
    report = duplicates(Storage(), str(tmp_path), limits=SMALL).report()
    assert (report["images"]["groups"], report["images"]["rows"]) == (1, 500)
    assert report["captions"] == {"groups": 0, "rows": 0, "largest": []}


def test_a_row_that_stands_in_two_objects_counts_once(tmp_path: Path) -> None:
    write(Storage(), str(tmp_path), ROWS[:100])
    once = duplicates(Storage(), str(tmp_path)).report()
    schema = row_schema(pa.schema([]), CAPTION)
    again = [row | {"caption": "another"} for row in ROWS[30:60]]
    CommittedRows(Storage(), str(tmp_path), 1, CAPTION, 2).write([pa.Table.from_pylist(again, schema=schema)], None)
    twice = duplicates(Storage(), str(tmp_path), limits=SMALL).report()
    assert twice["rows"] == once["rows"] == 100
    assert (twice["images"]["groups"], twice["images"]["rows"]) == (once["images"]["groups"], once["images"]["rows"])


def test_an_object_is_read_in_parts(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = duplicates(Storage(), str(output)).report()
    monkeypatch.setattr(module, "BATCH", 7)
    assert duplicates(Storage(), str(output)).report() == whole


def test_the_command_writes_json_and_list_and_names_what_it_found(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file, listing = tmp_path / "found.json", tmp_path / "list.parquet"
    assert cli.main(["duplicates", str(output), "--json", str(json_file), "--list", str(listing)]) == 0
    text = capsys.readouterr().out
    report = json.loads(json_file.read_text())
    assert report == duplicates(Storage(), str(output)).report()
    assert f"400 rows: {sha256(b'gone').hexdigest()}" in text and "A white picture." in text
    assert pq.read_schema(listing).names == ["id", "group", "keep"]
    assert cli.main(["duplicates", str(tmp_path)]) == 2
    assert "there is no plan in this folder" in capsys.readouterr().err
    assert cli.main(["duplicates", str(output), "--temp", str(tmp_path / "none")]) == 2
    assert "--temp" in capsys.readouterr().err


def test_an_output_in_a_bucket(s3: S3Server) -> None:
    out = f"s3://{BUCKET}/out"
    storage = Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1"))
    write(storage, out, ROWS[:340])
    found = duplicates(storage, out, listing=f"s3://{BUCKET}/list.parquet", limits=SMALL)
    listed = pq.read_table(pa.BufferReader(storage.read(f"s3://{BUCKET}/list.parquet")))
    assert listed.num_rows == found.found.images.rows > 0
    assert listed.filter(listed["keep"]).num_rows == found.found.images.groups
