"""Every form of export, read back by the libraries that people use and compared row by row."""

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from caprl_ray import cli
from caprl_ray.export.huggingface import split_of
from caprl_ray.export.lines import Lines
from caprl_ray.export.parts import file_name
from caprl_ray.export.source import told_key
from caprl_ray.export.tar import header
from tests.export.outputs import PROMPT, TABLE_ROWS, Made, make, picture, sample

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


def put(lines: Lines, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of rows."""
    file = io.BytesIO()
    assert lines.put(pa.Table.from_pylist(rows), file) == len(rows)
    return [json.loads(line) for line in file.getvalue().decode().split("\n")[:-1]]


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


def shards_only(made: Made, folder: Path) -> Made:
    """Another output of the same shards alone."""
    return make(folder, paths=[str(made.folder / "shards")])


def read_shards(paths: list[Path]) -> list[dict[str, Any]]:
    import webdataset as wds  # and so torch, which takes seconds

    found = wds.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False)
    return [{k: v for k, v in one.items() if k in ("__key__",) or not k.startswith("__")} for one in found]


def test_shards_have_their_samples_and_captions_and_new_ones_hold_files_and_rows(made: Made, tmp_path: Path) -> None:
    assert export(made, tmp_path / "out", "webdataset", "--where", WHERE, "--shard-rows", "40") == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == [
        *("00000.tar", "000000.tar", "000001.tar", "000002.tar", "00001.tar")
    ]
    rows = sorted(chosen(made).items())
    samples = read_shards([tmp_path / "out" / name for name in ("00000.tar", "00001.tar")])
    in_shards = [row for _, row in rows if row["source"].endswith(".tar")]
    assert [one.pop("__key__") for one in samples] == [row["key"] for row in in_shards]
    for one, row in zip(samples, in_shards, strict=True):
        told = json.loads(one.pop("caption.json"))
        assert one.pop("caption.txt").decode() == told["caption"] == row["caption"]
        assert (told["id"], told["flags"], told["sha256"]) == (row["id"], [], row["sha256"])
        assert one == sample(int(row["key"].rpartition("/")[2]))
    others = [(i, row) for i, row in rows if not row["source"].endswith(".tar")]
    packed = read_shards(sorted((tmp_path / "out").glob("00000?.tar")))
    assert [one["__key__"] for one in packed] == [i for i, _ in others]
    for one, (_, row) in zip(packed, others, strict=True):
        assert hashlib.sha256(one["png"]).hexdigest() == row["sha256"]
        assert one["caption.txt"].decode() == row["caption"] and json.loads(one["json"])["label"] == row[LABEL]

    assert export(made, tmp_path / "again", "webdataset", "--where", WHERE, "--shard-rows", "40") == 0
    for path in (tmp_path / "out").glob("*.tar"):
        assert (
            path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        )  # no time, no owner, no order of chance


def test_captions_alone_are_zipped_with_the_shards(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(made, tmp_path / "no", "webdataset", "--sidecars") == 2
    assert "--sidecars: not all images of" in capsys.readouterr().err
    ours = shards_only(made, tmp_path)
    assert export(ours, tmp_path / "captions", "webdataset", "--sidecars", "--member", "recaption") == 0
    names = ["00000.tar", "00001.tar"]
    assert sorted(path.name for path in (tmp_path / "captions").glob("*.tar")) == names
    captions = read_shards([tmp_path / "captions" / name for name in names])
    sources = {one["__key__"]: one for one in read_shards([made.folder / "shards" / name for name in names])}
    rows = [row for _, row in sorted(ours.finished.items())]
    assert [one["__key__"] for one in captions] == [row["key"] for row in rows] and len(sources) == 50
    for one, row in zip(captions, rows, strict=True):
        assert one["recaption.txt"].decode() == row["caption"]
        assert hashlib.sha256(sources[one["__key__"]]["jpg"]).hexdigest() == row["sha256"]


def test_shards_that_have_captions_already_get_the_new_ones_under_another_name(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = shards_only(made, tmp_path / "first")
    assert export(ours, tmp_path / "tars", "webdataset") == 0
    second = make(tmp_path / "second", paths=[str(tmp_path / "tars" / "00000.tar")])
    assert export(second, tmp_path / "no", "webdataset") == 2
    assert "00000.tar has members caption.json of its own" in capsys.readouterr().err
    assert not list((tmp_path / "no").glob("*.tar"))
    assert export(second, tmp_path / "both", "webdataset", "--member", "recaption") == 0
    rows = [row for _, row in sorted(second.finished.items())]
    for one, row in zip(read_shards([tmp_path / "both" / "00000.tar"]), rows, strict=True):
        assert one["__key__"] == row["key"] and one["recaption.txt"].decode() == row["caption"]
        assert {"jpg", "json", "depth.npy", "caption.txt", "caption.json"} < one.keys()


@pytest.mark.parametrize("images", [True, False])
def test_a_dataset_folder_opens_with_its_splits_its_images_and_its_card(
    made: Made, tmp_path: Path, images: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--images"] if images else []
    assert export(made, tmp_path / "no", "hf", *more) == 2
    assert "--license: name the licence" in capsys.readouterr().err and not (tmp_path / "no").exists()
    arguments = ["hf", "--license", "cc-by-4.0", "--where", WHERE, "--shard-rows", "40", *more]
    assert export(made, tmp_path / "out", *arguments) == 0
    from datasets import Image as DatasetImage
    from datasets import load_dataset

    found = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    rows = sorted(chosen(made).items())
    tests = {i for i, row in rows if row["key"].startswith("test/")}
    assert tests and {name: len(part) for name, part in found.items()} == {
        "train": len(rows) - len(tests),
        "test": len(tests),
    }
    for name, part in found.items():
        expected = [row for i, row in rows if (i in tests) == (name == "test")]
        assert [
            (row["id"], row["caption"], row["label"]) for row in part.select_columns(["id", "caption", "label"])
        ] == [(row["id"], row["caption"], row[LABEL]) for row in expected]
        assert ("image" in part.features) == images
        if images:
            assert isinstance(part.features["image"], DatasetImage) and part[0]["image"].size[1] == 8
            stored = part.cast_column("image", DatasetImage(decode=False))["image"]
            assert [hashlib.sha256(one["bytes"]).hexdigest() for one in stored] == [row["sha256"] for row in expected]
    told = DatasetCard.load(tmp_path / "out" / "README.md")
    assert told.data.license == "cc-by-4.0" and str(made.folder) not in told.content
    assert PROMPT in told.text and f"| train | {len(rows) - len(tests)} |" in told.text and "model `stub`" in told.text


def test_every_type_of_the_source_goes_out(tmp_path: Path) -> None:
    pairs = pa.map_(pa.string(), pa.list_(pa.map_(pa.string(), pa.int32())))
    columns: dict[str, Any] = {
        "tags": pa.array([[("a", [[("b", 1)]]), ("c", None)], [], None], pairs),
        "inner": pa.array([{"tags": [("a", [])]}, None, {"tags": None}], pa.struct([("tags", pairs)])),
        "time": pa.array([1, None, 3], pa.duration("ms")),
        "blob": pa.array([b"\xff\x00", b"text", None]),
        "score": pa.array([float("nan"), 0.5, float("-inf")]),
    }
    images = [{"bytes": picture(number), "path": None} for number in range(3)]
    pq.write_table(pa.table({"picture": images, **columns}), tmp_path / "a.parquet")
    made = make(tmp_path, paths=[str(tmp_path / "a.parquet")])
    assert export(made, tmp_path / "to", "hf", "--license", "other") == 0
    from datasets import load_dataset

    rows = load_dataset(str(tmp_path / "to"), cache_dir=str(tmp_path / "cache"))["train"].with_format("arrow")[:]
    assert rows["tags"].to_pylist() == [
        [{"key": "a", "value": [[{"key": "b", "value": 1}]]}, {"key": "c", "value": None}],
        *([], None),
    ]
    assert rows["inner"].to_pylist() == [{"tags": [{"key": "a", "value": []}]}, None, {"tags": None}]
    assert export(made, tmp_path / "tars", "webdataset") == 0
    theirs = [
        json.loads(one["json"], parse_constant=pytest.fail) for one in read_shards([tmp_path / "tars" / "000000.tar"])
    ]
    assert [one["blob"] for one in theirs] == [base64.b64encode(b"\xff\x00").decode(), "text", None]
    assert [one["score"] for one in theirs] == [None, 0.5, None]
    assert [one["time"] for one in theirs] == ["0:00:00.001000", None, "0:00:00.003000"]


def test_splits_are_those_that_datasets_would_find() -> None:
    assert [
        split_of(key) for key in ("a/b.png", "trainer/x", "train/test_1.png", "val-0001.tar", "x/TEST/y", "dev2/a")
    ] == [*("train", "train", "train", "validation", "test", "validation")]


def test_no_place_of_the_storage_is_published(tmp_path: Path) -> None:
    named = sorted(write_named(tmp_path / "secret"))
    made = make(tmp_path, paths=[str(tmp_path / "secret" / "list.csv")])
    assert {row["key"] for row in made.rows.values()} == {str(tmp_path / "secret" / name) for name in named}
    assert export(made, tmp_path / "hf", "hf", "--images", "--license", "other") == 0
    rows = pq.read_table(tmp_path / "hf" / "data").to_pylist()
    assert [row["key"] for row in rows] == named and "secret" not in repr(rows)
    assert export(made, tmp_path / "tars", "webdataset") == 0
    told = [json.loads(one["caption.json"]) for one in read_shards([tmp_path / "tars" / "000000.tar"])]
    assert [one["key"] for one in told] == named and "secret" not in repr(told)


def write_named(folder: Path) -> list[str]:
    """A list that names pictures by absolute paths; returns their paths below its folder."""
    names = [f"in/{n}.png" for n in range(3)]
    (folder / "in").mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture(number))
    (folder / "list.csv").write_text("\n".join(["image_path", *(str(folder / name) for name in names)]))
    return names


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("a/b.png", "a/b.png"),
        ("/data/photos/a/b.png", "a/b.png"),
        ("file:///data/photos/a/b.png", "a/b.png"),
        ("s3://mine/photos/a/b.png", "a/b.png"),
        ("s3://other/photos/a/b.png", "b.png"),
        ("/data/photos2/a/b.png", "b.png"),
        ("/b.png", "b.png"),
    ],
)
def test_a_key_is_told_from_its_root_on(key: str, told: str) -> None:
    assert told_key(key, ["", "/", "/data/photos/", "s3://mine/photos", "s3://mine"]) == told


def test_a_conversation_has_one_image_whatever_its_texts_say() -> None:
    lines = Lines(source=None, target="", rows=1, prompts={"": "<{alt}> {alt} {other}"})  # type: ignore[arg-type]
    row = {"id": "1", "key": "1.png", "caption": "A <ima<image>ge> of a cup.", "run": None}
    (line,) = put(lines, [row | {"alt": "image", "other": "<image><|im_end|><image>"}])
    human, gpt = (turn["value"] for turn in line["conversations"])
    assert human.count("<image>") == 1 and human.startswith("<image>\n") and "<image>" not in gpt
    assert "<|im_end|>" not in human
    assert gpt == "A <ima ge> of a cup."


def test_lines_hold_any_text_as_it_is() -> None:
    lines = Lines(source=None, target="", rows=1, prompts=None)  # type: ignore[arg-type]
    texts = ['\\ "quoted" / <b>', "\x00\x01\x1f\x7f\n\r\t\u2028", "写真 😀 \ufffd", "", None]
    rows = [{"id": f"{n}", "key": text, "caption": text} for n, text in enumerate(texts)]
    assert put(lines, rows) == [{"id": row["id"], "image": row["key"], "caption": row["caption"]} for row in rows]


@pytest.mark.parametrize("name", [b"a.txt", b"n" * 100, b"n" * 101, "写真/ü.jpg".encode(), b"\xff.json", b"a/" * 60])
@pytest.mark.parametrize("size", [0, 511, 8**11 - 1, 8**11])
def test_a_header_is_that_of_tarfile(name: bytes, size: int) -> None:
    member = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    member.size, member.mode = size, 0o444
    assert header(name, size) == member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("train/00000.tar", "train/00000"),
        ("00000.tar.gz", "00000"),
        ("a.tgz", "a"),
        ("b.tar.zst", "b"),
        ("table.parquet", "table"),
        ("odd.name", "odd.name"),
        ("taken.tar", "taken.000007"),
        ("both.tar", "000007.1"),
        *(
            (key, "000007.1")
            for key in ("../../up.tar", "/root.tar", "a/../b.tar", "_SUCCESS", ".hidden.tar", "a//b", "a\\b")
        ),
    ],
)
def test_a_file_has_its_sources_name_and_stays_in_the_folder(key: str, name: str) -> None:
    assert file_name(key, 7, {"taken", "both", "both.000007", "000007"}) == name
