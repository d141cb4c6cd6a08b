"""Manifests: the rows of a list of images and the values of its columns. Files that are not lists are refused."""

import gzip
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from caprl_ray import plan, sources
from caprl_ray.errors import RecipeError
from caprl_ray.read.unit import unit_rows
from caprl_ray.rows.schema import row_schema
from caprl_ray.sources import manifest
from caprl_ray.sources.manifest_text import Manifest
from caprl_ray.storage import Storage
from tests.sources.tables import access_to, content, metadata_of, planned, rows_of, table_of

IMAGES = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(IMAGES):
        (tmp_path / f"photos/{number}.jpg").write_bytes(content(number))
    return tmp_path


def listed(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def outcomes(rows: list[dict[str, Any]]) -> list[tuple[bytes | str, str | None]]:
    return [(row["code"] or row["encoded"], row["detail"]) for row in rows]


def test_values_of_csv_come_out_as_they_are_written(folder: Path) -> None:
    rows = ['0,photos/0.jpg,007,"two\r\nlines, ""quoted"""', "", "1,photos/1.jpg,1e5,", "2,photos/2.jpg,NA, é "]
    text = "\r\n".join(["\ufeff,image_path,id,alt", *rows])
    table = table_of(access_to(listed(folder, "list.csv", text)))
    assert table["encoded"].to_pylist() == [content(n) for n in range(3)]
    assert table["key"].to_pylist() == [f"photos/{n}.jpg" for n in range(3)]
    assert metadata_of(table).to_pydict() == {
        "Unnamed: 0": ["0", "1", "2"],
        "id": ["007", "1e5", "NA"],
        "alt": ['two\r\nlines, "quoted"', None, " é "],
    }


def test_json_tells_types_and_a_column_of_several_is_text(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "photos/0.jpg", "n": 1, "wide": 1, "mixed": 5, "day": "2026-01-02", "turns": [{"from": "human"}]},
        {"image": "photos/1.jpg", "n": -(2**62) - 1, "wide": 0.5, "mixed": "007", "ok": True, "turns": None},
        {"image": "photos/2.jpg", "n": None, "wide": None, "mixed": 2**70},
    ]
    text = "\n\n".join(json.dumps(row) for row in rows)
    for name, content_ in (("a.jsonl", text.encode()), ("b.ndjson.gz", gzip.compress(text.encode()))):
        found = metadata_of(table_of(access_to(listed(folder, name, content_))))
        assert found.schema.types == [pa.int64(), pa.float64(), pa.string(), pa.string(), pa.string(), pa.bool_()]
        assert found.to_pydict() == {
            "n": [1, -(2**62) - 1, None],
            "wide": [1.0, 0.5, None],
            "mixed": ["5", "007", str(2**70)],
            "day": ["2026-01-02", None, None],
            "turns": ['[{"from": "human"}]', None, None],
            "ok": [None, True, None],
        }


@pytest.mark.parametrize(
    ("name", "lines", "said"),
    [
        (
            "a.csv",
            [b"image,n", b"photos/0.jpg", b'photos/0.jpg,"a"b', b"photos/\xff.jpg,1"],
            "line 2: 1 fields, and the",
        ),
        ("a.tsv", [b"image\tn", b"photos/0.jpg\t1\t2", b'photos/0.jpg\t"x"y', b"\xff\t1"], "line 2: 3 fields, and the"),
        ("a.jsonl", [b'{"image": "x"}', b"{", b"[1]", b'{"image": "a.jpg", "x": ["\\uD800"]}'], "line 2: not JSON"),
        ("a.jsonl", [b'{"image": "x"}', b"[" * 10_000, b"3", b'{"image": "\xff"}'], "line 2: JSON nested too deeply"),
    ],
)
def test_a_line_that_is_no_row_fails_alone_and_names_itself(
    folder: Path, name: str, lines: list[bytes], said: str
) -> None:
    good = {"csv": b"photos/4.jpg,1", "tsv": b"photos/4.jpg\t1", "jsonl": b'{"image": "photos/4.jpg"}'}
    path = listed(folder, name, b"\n".join([*lines, good[name.rpartition(".")[2]]]))
    rows = rows_of(access_to(path))[-4:]
    assert [row["code"] for row in rows] == ["bad_line"] * 3 + [None] and rows[3]["encoded"] == content(4)
    assert rows[0]["detail"].startswith(said) and rows[2]["detail"] == "line 4: not UTF-8"
    assert [row["key"].rpartition(":")[2] for row in rows[:3]] == [str(row["index"]) for row in rows[:3]]


def test_a_later_list_whose_rows_are_all_faulty_ends_no_run(folder: Path) -> None:
    listed(folder, "a.csv", "image,n\nphotos/0.jpg,1\n")
    listed(folder, "b.csv", "image,n\nphotos/1.jpg\n")
    rows = rows_of(access_to(folder / "*.csv"))
    assert outcomes(rows) == [(content(0), None), ("bad_line", "line 2: 1 fields, and the header has 2")]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", b"image,n,n\n", "line 1: 2 columns named 'n'"),
        ("a.csv", b"im\xffage\n", "line 1: text that is not UTF-8"),
        ("a.csv", "image\nx.jpg\n".encode("utf-16"), "is UTF-16; write it as UTF-8"),
        ("a.csv", "image,n\nx.jpg,1\n".encode("utf-16-le"), "is UTF-16; write it as UTF-8"),
        (
            "a.csv",
            b"photo,n\nx.jpg,1\n",
            "no column that holds images by its type and name (photo, n); set input.image_column",
        ),
        ("a.csv", b"image;n\nx.jpg;1\n", "has ';' between its columns; write it with commas"),
        (
            "a.csv",
            b"image,n\nx.jpg,1,\ny.jpg,2,\n",
            "no row in its first lines (line 2: 3 fields, and the header has 2)",
        ),
        ("a.csv", b'image,n\na.jpg,"' + b"a,b\n" * 2**16, "that begins in line 2; close its quote"),
        ("a.jsonl", b'{"image": "' + b"a" * 2**20 + b'"}', "that begins in line 1"),
        (
            "a.json",
            b'{\n  "images": [\n    "a.jpg"\n  ]\n}',
            "no row in its first lines (line 1: not JSON (",
        ),
        ("a.json", b'[{"image": "a.jpg"}]', "jq -c '.[]' FILE > FILE.jsonl"),
        ("a.csv.gz", gzip.compress(b"image\n" + b"a.jpg\n" * 9, mtime=0)[:-9], "stream is damaged or ends early"),
        (
            "a.csv",
            b"image," + b",".join(b"%d" % n for n in range(1000)) + b"\n",
            "has more than 1,000 columns in line 1",
        ),
        (
            "a.jsonl",
            b'{"image": "a.jpg"}\n' + json.dumps(dict.fromkeys(range(1001))).encode(),
            "has more than 1,000 columns in line 2; keep those that are needed",
        ),
        (
            "a.jsonl",
            b"".join(b'{"image": "a.jpg", "%d": 1}\n' % n for n in range(1000)),
            "has more than 1,000 columns up to line 1000, or too long names",
        ),
        ("a.csv", b"image\nhttps://example.org/a.jpg\n", "holds web addresses"),
        ("a.csv", b"image\n../b/a.jpg\n", "set input.image_roots="),
    ],
)
def test_a_file_that_is_no_list_is_refused_in_one_sentence(folder: Path, name: str, text: bytes, sentence: str) -> None:
    path = listed(folder / "photos", name, text)
    with pytest.raises(RecipeError) as error:
        planned(access_to(path))
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_path_where_nothing_is_says_what_may_be_wrong_with_it(folder: Path) -> None:
    text = "image\nphotos\\0.jpg\nphotos/0.jpg \nphotos/0.jpg\nphotos/9.jpg\n"
    assert outcomes(rows_of(access_to(listed(folder, "a.csv", text)))) == [
        ("source_missing", "the path has backslashes, as on Windows; write it with slashes"),
        ("source_missing", "the path ends with a space"),
        (content(0), None),
        ("source_missing", ""),
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz"])
def test_units_are_ranges_of_lines_and_each_reads_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(manifest, "UNIT_ROWS", 3)
    if name == "a.jsonl":
        text = b"".join(b'{"image": "photos/%d.jpg", "n": "%d\xc3\xa9"}\n\n' % (n % IMAGES, n) for n in range(10))
    else:
        text = b"image,n\r\n" + b"".join(b'photos/%d.jpg,"%d\xc3\xa9"\r\n' % (n % IMAGES, n) for n in range(10))
    path = listed(folder, name, gzip.compress(text) if name.endswith("gz") else text)
    access = access_to(path)
    plan.store(Storage(), str(folder / "out"), sources.plan_units(access))
    stored = plan.load(Storage(), str(folder / "out"))
    assert [ref.rows for ref in stored.units] == [3, 3, 3, 1]
    assert [manifest.row(ref.load(Storage()), 2) for ref in stored.units] == [2, 5, 8, 11]  # also of rows not read
    for number, ref in enumerate(stored.units):
        rows = unit_rows(
            number, ref.load(Storage()), schema=row_schema(stored.columns), access=access, done=BitMap([1])
        )
        wanted = [3 * number + place for place in range(ref.rows or 0) if place != 1]
        assert [(row["encoded"], row["meta:n"][0].as_py()) for row in rows] == [
            (content(n % IMAGES), f"{n}é") for n in wanted
        ]


def test_planning_holds_no_rows_of_a_list(folder: Path) -> None:
    text = json.dumps({"image": "photos/0.jpg"} | {f"column {n}": "" for n in range(999)})
    path = listed(folder, "a.jsonl", f"{text}\n" * 500)
    tracemalloc.start()
    try:
        assert planned(access_to(path))[0][0].rows == 500
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


@given(st.lists(st.sampled_from(["a", ",", '"', '""', "\n", "\r\n", "\r", "é", " ", '",', ',"', '"\n']), max_size=40))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_a_list_is_cut_its_rows_are_the_same(folder: Path, parts: list[str]) -> None:
    path = listed(folder, "a.csv", "path,n\n" + "".join(parts))
    with path.open("rb") as stream:
        whole = list(Manifest(stream, "a.csv").rows())
    start, line = 7, 1
    for row in whole:
        with path.open("rb") as stream:
            lines = plan.Lines(start=start, end=row.end, row=0, line=line)
            assert list(Manifest(stream, "a.csv").rows(lines)) == [row]
        start, line = row.end, row.last


def test_a_list_that_changed_and_kept_its_size_is_noticed_by_its_rows(folder: Path) -> None:
    path = listed(folder, "a.csv", "image,n\nphotos/0.jpg,1\nphotos/1.jpg,2\nphotos/2.jpg,3\n")
    access = access_to(path)
    units, columns = planned(access)
    path.write_text(path.read_text().replace("\nphotos/1", " photos/1"))
    changed = manifest.Entry(stored=planned(access)[0][0].entries[0].stored, key="a.csv")
    for entries, code in ((units[0].entries, "source_changed"), ([changed], "source_changed")):
        unit = plan.Unit(kind="manifest", rows=3, entries=entries, lines=units[0].lines)
        rows = list(unit_rows(0, unit, schema=row_schema(columns), access=access, rows=3))
        assert rows[-1]["code"] == code and rows[-1]["unit_rows"] == 3


def test_a_list_without_rows_has_no_unit(folder: Path) -> None:
    for text in ("", "image,n\n", "\n\n"):
        assert planned(access_to(listed(folder, "a.csv", text)))[0] == []


def test_a_list_counts_only_where_it_is_asked_for(folder: Path) -> None:
    listed(folder, "photos/metadata.csv", "image\n0.jpg\n1.jpg\n")
    assert [unit.kind for unit in planned(access_to(folder / "photos"))[0]] == ["files"]
    for path, more in (("photos/*.csv", {}), ("photos", {"kind": "manifest"}), ("photos/metadata.csv", {})):
        units, _ = planned(access_to(folder / path, **more))
        assert [(unit.kind, unit.rows) for unit in units] == [("manifest", 2)]


def test_a_job_without_images_reads_the_rows_of_a_list_and_looks_for_no_picture(tmp_path: Path) -> None:
    """It finds lists in a folder too, where captioning leaves them out. An export's own files are not lists."""
    rows: list[Any] = [{"image": "nowhere/0.jpg", "n": 1}, {"n": 2}, {}, {"image": None, "more": "x"}]
    lines = [*map(json.dumps, rows), '{"image" 5}', "[1]"]
    listed(tmp_path, "a.jsonl", "\n".join(lines))
    listed(tmp_path, "b.csv", "image,n\nnowhere/1.jpg,7\n")
    (tmp_path / "_export").mkdir()
    listed(tmp_path, "_export/done.json", "[]")
    access = replace(access_to(tmp_path, columns={"drop": ["n"]}), images=False)
    units, columns = planned(access)
    assert [unit.rows for unit in units] == [6, 1] and columns.names == ["image", "more"]
    samples = [sample for unit in units for sample in sources.read_unit(unit, BitMap([1]), access, plan.LeftOut())]
    texts = [{name: value[0].as_py() for name, value in one.metadata.items()} for one in samples if one]
    assert texts == [{"image": "nowhere/0.jpg"}, {}, {"image": None, "more": "x"}, {}, {}, {"image": "nowhere/1.jpg"}]
    failed = [(one.row, one.failure.code, one.failure.detail) for one in samples if one and one.failure]
    assert [one[:2] for one in failed] == [(4, "bad_line"), (5, "bad_line")]
    assert failed[0][2].startswith("line 5: not JSON") and failed[1][2] == "line 6: JSON, but not an object"
