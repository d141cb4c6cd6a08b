"""Parquet: units and image columns are found, and all other columns keep their values."""

import base64
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow.parquet import encryption
from pyroaring import BitMap

from caprl_ray import pipeline, plan, sources
from caprl_ray.caption.columns import CAPTION
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe, encode_scene
from caprl_ray.embedded.scenes import sample_scene
from caprl_ray.engines.stub import stub_caption
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.models.resolve import resolve
from caprl_ray.output.folder import Output
from caprl_ray.prepare.decode import Limits, prepare
from caprl_ray.read.unit import unit_rows
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.rows.schema import clashes, row_schema
from caprl_ray.sources import parquet, parquet_file
from caprl_ray.sources.image_column import image_column
from caprl_ray.storage import Storage, local, s3_stream
from tests.sources.tables import (
    HF_IMAGE,
    access_to,
    committed,
    content,
    contents,
    metadata_of,
    planned,
    rows_of,
    table_of,
    write,
)

# Pages of a megabyte, as `datasets` writes them. A reader holds at least one page.
SMALL_PAGES = {"use_content_defined_chunking": True, "use_dictionary": False}


# Units


def test_units_are_ranges_of_row_groups_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "UNIT_ROWS", 25)
    write(tmp_path / "a.parquet", {"image": contents(60)}, row_group_size=10)
    write(tmp_path / "b.parquet", {"image": contents(40)}, row_group_size=40)
    access = access_to(tmp_path)
    units, _ = planned(access)
    assert [(u.entries[0].key, u.row_groups, u.rows) for u in units] == [
        ("a.parquet", (0, 2), 20),
        ("a.parquet", (2, 4), 20),
        ("a.parquet", (4, 6), 20),
        ("b.parquet", (0, 1), 40),
    ]
    assert units == planned(access)[0]
    rows = rows_of(access)
    assert [row["encoded"] for row in rows] == contents(60) + contents(40)
    assert [row["key"] for row in rows] == [
        f"{f}.parquet:{n}" for f, count in (("a", 60), ("b", 40)) for n in range(count)
    ]
    assert {row["source"] for row in rows} == {str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")}
    assert [row["row"] for row in rows] == [*range(60), *range(40)]
    lost = [sources.KINDS["parquet"].row(unit, n) for unit in units for n in range(unit.rows or 0)]
    assert lost == [row["row"] for row in rows]
    assert [row["unit_rows"] for row in rows if row["unit_rows"]] == [20, 20, 20, 40]


def test_source_and_row_are_unique_where_neither_key_nor_index_is(tmp_path: Path) -> None:
    images = [{"bytes": content(n) if n % 7 else None, "path": "image.jpg" if n % 7 else None} for n in range(3000)]
    write(tmp_path / "in/a.parquet", {"image": pa.array(images, HF_IMAGE), "n": range(3000)}, row_group_size=500)
    output = committed(access_to(tmp_path / "in"), tmp_path / "out")
    for folder, wanted in (("data", range(3000)[1:7]), ("failed", range(1))):
        table = pq.read_table(output / folder)
        expected = [n for n in range(3000) if n % 7 in wanted]
        assert table["row"].to_pylist() == table["n"].to_pylist() == expected
        assert max(table["index"].to_pylist()) < 2000
    assert {*pq.read_table(output / "data")["key"].to_pylist()} == {"image.jpg"}
    (path,) = (output / "data").iterdir()
    group = pq.ParquetFile(path).metadata.row_group(0)
    (column,) = (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "row")
    assert column.total_compressed_size < group.num_rows  # under a byte a row


def test_a_unit_is_bounded_in_bytes_and_counts_only_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "UNIT_BYTES", 25_000)
    path = write(tmp_path / "a.parquet", {"image": contents(40, 1000)}, row_group_size=10, compression="none")
    units, _ = planned(access_to(path))
    assert [unit.row_groups for unit in units] == [(0, 2), (2, 4)]
    assert all(20_000 < (unit.bytes or 0) < 25_000 for unit in units)


def test_files_come_in_the_order_of_their_names_though_footers_are_read_together(tmp_path: Path) -> None:
    for number in range(40):
        write(tmp_path / f"{number:02d}.parquet", {"image": [content(number)]})
    assert [row["encoded"] for row in rows_of(access_to(tmp_path))] == contents(40)


def test_a_file_without_rows_has_no_unit(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": pa.array([], pa.null())})
    write(tmp_path / "b.parquet", {"image": contents(2)})
    assert [unit.entries[0].key for unit in planned(access_to(tmp_path))[0]] == ["b.parquet"]


def test_a_plan_stored_and_loaded_reads_the_same_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": contents(30), "n": list(range(30))}, row_group_size=10)
    access = access_to(path)
    plan.store(Storage(), str(tmp_path / "out"), sources.plan_units(access))
    stored = plan.load(Storage(), str(tmp_path / "out"))
    assert stored.columns.names == ["n"] and stored.columns.field("n").type == pa.int64()
    (ref,) = stored.units
    assert ref.rows == 30 and ref.bytes < path.stat().st_size and ref.load(Storage()).first_row == 0
    rows = unit_rows(0, ref.load(Storage()), schema=row_schema(stored.columns), access=access)
    assert [row["encoded"] for row in rows] == contents(30)


# The column of images


@pytest.mark.parametrize(
    ("fields", "said", "expected"),
    [
        ([("image", HF_IMAGE), ("image_path", pa.string())], None, ("image", ("bytes", "path"))),
        ([("picture", HF_IMAGE)], None, ("picture", ("bytes", "path"))),
        ([("image", HF_IMAGE), ("mask", HF_IMAGE)], None, ("image", ("bytes", "path"))),
        ([("image", HF_IMAGE), ("mask", HF_IMAGE)], "mask", ("mask", ("bytes", "path"))),
        ([("x", pa.struct([("bytes", pa.large_binary())])), ("data", pa.binary())], None, ("x", ("bytes",))),
        ([("jpg", pa.large_binary()), ("thumbnail", pa.binary())], None, ("jpg", ())),
        ([("thumbnail", pa.binary()), ("path", pa.string())], None, ("thumbnail", ())),
        ([("text", pa.string()), ("File_Name", pa.large_string())], None, ("File_Name", ())),
        ([("text", pa.string()), ("path", pa.string())], "text", ("text", ())),
    ],
)
def test_the_column_is_found_by_type_and_usual_names(fields: Any, said: str | None, expected: Any) -> None:
    found = image_column(pa.schema(fields), said, "a.parquet")
    assert (found.name, found.fields) == expected
    assert found.has_bytes == (
        not pa.types.is_string(pa.schema(fields).field(found.name).type) and found.name != "File_Name"
    )


@pytest.mark.parametrize(
    ("fields", "said", "sentence"),
    [
        (
            [("a", HF_IMAGE), ("b", HF_IMAGE)],
            None,
            r"more than one column .* a and b \(of a, b\); set input\.image_column",
        ),
        ([("jpg", pa.binary()), ("png", pa.binary())], None, r"more than one .* jpg and png"),
        ([("path", pa.string()), ("url", pa.string())], None, r"more than one .* path and url"),
        (
            [("text", pa.string()), ("n", pa.int64())],
            None,
            r"no column that holds images .*\(text, n\); set input\.image_c",
        ),
        ([("image", HF_IMAGE)], "img", r"^input\.image_column: .*a\.parquet has no column img; it has image"),
        (
            [("image", HF_IMAGE), ("n", pa.int64())],
            "n",
            r"^input\.image_column: column n of .*a\.parquet has the type int64",
        ),
    ],
)
def test_a_column_that_is_not_clear_is_refused_in_one_sentence(
    tmp_path: Path, fields: Any, said: str | None, sentence: str
) -> None:
    path = write(tmp_path / "a.parquet", {name: pa.nulls(1, kind) for name, kind in fields})
    with pytest.raises(RecipeError, match=sentence) as error:
        planned(access_to(path, image_column=said))
    assert str(error.value).endswith(".") and "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())])
def test_images_are_bytes_of_either_width_or_shared_by_rows(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array([b"one", b"", None, b"one"], pa.binary()).cast(kind)
    rows = rows_of(access_to(write(tmp_path / "a.parquet", {"image": column})))
    assert [row["encoded"] for row in rows] == [b"one", b"", None, b"one"]
    assert [row["code"] for row in rows] == [None, None, "no_image", None]


def test_a_struct_gives_its_bytes_or_else_the_file_at_its_path(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(content(1))
    column = [
        {"bytes": content(0), "path": "0.jpg", "width": 1},
        {"bytes": None, "path": "images/1.jpg", "width": 1},
        {"bytes": content(2), "path": None, "width": 1},
        {"bytes": None, "path": None, "width": 1},
        None,
    ]
    path = write(tmp_path / "a.parquet", {"image": column, "n": list(range(5))})
    table = table_of(access_to(path))
    rows = table.to_pylist()
    assert [row["encoded"] for row in rows] == [content(0), content(1), content(2), None, None]
    assert [row["key"] for row in rows] == ["0.jpg", "images/1.jpg", "a.parquet:2", "a.parquet:3", "a.parquet:4"]
    assert [row["source"] for row in rows] == [str(path), str(tmp_path / "images/1.jpg"), *[str(path)] * 3]
    assert [row["code"] for row in rows] == [None, None, None, "no_image", "no_image"]
    assert metadata_of(table).to_pydict() == {"n": [0, 1, 2, 3, 4]}


def test_paths_are_relative_to_the_file_or_absolute_and_each_bad_one_is_a_failed_row(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name in ("set/a.jpg", "set/deep/b.jpg", "outside/c.jpg", "outside/d e.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (folder / "big.jpg").write_bytes(bytes(2000))
    outside = str(tmp_path / "outside/c.jpg")
    paths = {
        "a.jpg": b"set/a.jpg",
        "deep/../deep/b.jpg": b"set/deep/b.jpg",
        outside: b"outside/c.jpg",
        (tmp_path / "outside/d e.jpg").as_uri(): b"outside/d e.jpg",
        "nowhere.jpg": "source_missing",
        "deep": "source_missing",
        "big.jpg": "image_too_large",
        "../outside/c.jpg": b"outside/c.jpg",
        "deep/../../outside/c.jpg": b"outside/c.jpg",
        "../elsewhere/c.jpg": "source_refused",
        "..": "source_refused",
        "gs://bucket/a.jpg": "source_refused",
        "s3:///a.jpg": "source_refused",
        "https://host/a.jpg?signature=secret": "source_refused",
        "nul\0.jpg": "source_refused",
        "x" * 300: "source_missing",
        "data:image/png;base64," + "A" * 5000: "image_too_large",
        "A" * 5000: "source_refused",
        "": "no_image",
    }
    columns = {"file_name": list(paths), "text": [str(number) for number in range(len(paths))]}
    access = access_to(write(folder / "list.parquet", columns), max_bytes=1000, image_roots=[str(tmp_path / "outside")])
    rows = rows_of(access)
    assert [row["encoded"] or row["code"] for row in rows] == list(paths.values())
    assert [row["key"] for row in rows[:4]] == list(paths)[:4]
    assert [row["source"] for row in rows[:3]] == [str(folder / "a.jpg"), str(folder / "deep/b.jpg"), outside]
    assert [row["meta:text"] for row in rows] == [str(n) for n in range(len(paths))]  # failed rows keep theirs, too
    assert not any("secret" in str(row) for row in rows)


def test_web_addresses_are_refused_when_planning(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"url": [None, "https://host/a.jpg?signature=secret"]})
    with pytest.raises(
        RecipeError, match=r"^input\.image_column: url of .*a\.parquet holds web addresses.*download"
    ) as error:
        planned(access_to(path))
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


# Every other column

ALL_TYPES: dict[str, pa.Array] = {
    "bool": pa.array([True, None, False]),
    "u64": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "i8": pa.array([-128, None, 127], pa.int8()),
    "f16": pa.array([1.5, None, -2], pa.float16()),
    "f32": pa.array([0.1, None, float("inf")], pa.float32()),
    "text": pa.array(["ü", None, ""]),
    "large_text": pa.array(["ü", None, ""], pa.large_string()),
    "blob": pa.array([b"\xff", None, b""]),
    "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
    "decimal": pa.array([Decimal("1.23"), None, Decimal("-9.99")], pa.decimal128(38, 2)),
    "decimal256": pa.array([Decimal("1.23"), None, Decimal("-9.99")], pa.decimal256(70, 2)),
    "date": pa.array([1, None, 10**7], pa.date32()),  # after the year 9999
    "ns": pa.array([1, None, 10**18 + 7], pa.timestamp("ns")),
    "ms": pa.array([1, None, 10**15], pa.timestamp("ms")),
    "zoned": pa.array([1, None, 10**15 + 7], pa.timestamp("us", "Europe/Berlin")),
    "time": pa.array([1, None, 10**12 + 7], pa.time64("ns")),
    "duration": pa.array([1, None, 10**15 + 7], pa.duration("ns")),
    "list": pa.array([["a", None], None, []]),
    "large_list": pa.array([[1], None, []], pa.large_list(pa.int16())),
    "vector": pa.array([[1, 2], None, [3, None]], pa.list_(pa.float32(), 2)),
    "map": pa.array([[("a", 1)], None, []], pa.map_(pa.string(), pa.int32())),
    "struct": pa.array(
        [{"a": 1, "b": [{"c": datetime(2020, 1, 1), "d": {"e": "f"}}]}, None, {"a": None, "b": None}],
        pa.struct(
            [
                ("a", pa.int8()),
                ("b", pa.list_(pa.struct([("c", pa.timestamp("ns")), ("d", pa.struct([("e", pa.string())]))]))),
            ]
        ),
    ),
    "boxes": pa.array([[[1.0, 2.0]], None, [[], None]], pa.list_(pa.list_(pa.float64()))),
    "nothing": pa.nulls(3),
    "with.dot": pa.array([1, None, 2]),
}


def test_every_type_comes_out_as_it_went_in(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {**ALL_TYPES, "image": contents(3)}, row_group_size=2)
    table = metadata_of(table_of(access_to(path)))
    assert table.schema.equals(pa.table(ALL_TYPES).schema)
    assert table.equals(pa.table(ALL_TYPES))


def test_dictionaries_and_views_come_out_as_their_values(tmp_path: Path) -> None:
    encoded = pa.dictionary(pa.int32(), pa.string())
    columns = {
        "label": pa.array(["a", None, "a"], encoded),
        "labels": pa.array([["a"], None, ["b", "a"]], pa.list_(encoded)),
        "view": pa.array(["a", None, ""], pa.string_view()),
    }
    path = write(tmp_path / "a.parquet", {**columns, "image": contents(3)})
    table = metadata_of(table_of(access_to(path)))
    assert table.schema.types == [pa.string(), pa.list_(pa.string()), pa.string()]
    assert table.to_pydict() == pa.table(columns).to_pydict()


VALUES = st.recursive(
    st.sampled_from(
        [
            (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
            (pa.string(), st.text(max_size=5)),
            (pa.float64(), st.floats(allow_nan=False)),
            (pa.timestamp("ns"), st.integers(-(2**63) + 1, 2**63 - 1)),
            (pa.binary(), st.binary(max_size=5)),
        ]
    ),
    lambda inner: st.one_of(
        inner.map(lambda i: (pa.list_(i[0]), st.lists(st.none() | i[1], max_size=3))),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda parts: (
                pa.struct([(str(n), part[0]) for n, part in enumerate(parts)]),
                st.fixed_dictionaries({str(n): st.none() | part[1] for n, part in enumerate(parts)}),
            )
        ),
        inner.map(
            lambda i: (
                pa.map_(pa.string(), i[0]),
                st.lists(st.tuples(st.text(max_size=2), st.none() | i[1]), max_size=3),
            )
        ),
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_nested_columns_of_any_shape_come_out_as_they_went_in(
    data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind, values = data.draw(VALUES)
    column = pa.array(data.draw(st.lists(st.none() | values, min_size=1, max_size=6)), kind)
    path = write(
        tmp_path_factory.mktemp("any") / "a.parquet", {"x": column, "image": contents(len(column))}, row_group_size=4
    )
    out = metadata_of(table_of(access_to(path)))["x"]
    assert out.type == kind and out.combine_chunks().equals(column)


def test_files_with_other_columns_and_wider_types_fit_together(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": contents(1), "n": pa.array([1], pa.int32()), "s": [{"x": 1}], "a": ["a"]})
    write(tmp_path / "b.parquet", {"image": contents(1), "n": pa.array([2**40]), "s": [{"y": 2}], "b": ["b"]})
    assert metadata_of(table_of(access_to(tmp_path))).to_pydict() == {
        "n": [1, 2**40],
        "s": [{"x": 1, "y": None}, {"x": None, "y": 2}],
        "a": ["a", None],
        "b": [None, "b"],
    }


def test_a_value_that_the_common_type_cannot_hold_is_null_and_flagged(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": contents(2), "n": [2**53 + 1, 5], "text": ["a", "b"]})
    write(tmp_path / "b.parquet", {"image": contents(1), "n": [0.5], "text": ["c"]})
    rows = rows_of(access_to(tmp_path))
    assert [(row["code"], row["meta:n"], row["meta:text"]) for row in rows] == [
        (None, None, "a"),
        (None, 5.0, "b"),
        (None, 0.5, "c"),
    ]
    assert [row["source_flags"] for row in rows] == [["metadata_invalid:n"], [], []]
    assert [row["encoded"] for row in rows] == [*contents(2), content(0)]


def test_types_that_clash_are_refused_with_the_files_name(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": contents(1), "n": [1]})
    write(tmp_path / "b.parquet", {"image": contents(1), "n": ["one"]})
    with pytest.raises(
        RecipeError, match=r"b\.parquet does not fit the files before it: .*n.*int64 vs string"
    ) as error:
        planned(access_to(tmp_path))
    assert "\n" not in str(error.value)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array([b"x"]), pa.array([1]), pa.array([2])], names=["image", "n", "n"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(RecipeError, match=r"a\.parquet has 2 columns named n"):
        planned(access_to(tmp_path))


def test_columns_are_renamed_and_a_name_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": contents(2), "width": [1, 2], "b": ["x", "y"]})
    table = metadata_of(table_of(access_to(path, rename={"width": "b", "b": "c"})))
    assert table.to_pydict() == {"b": [1, 2], "c": ["x", "y"]}
    with pytest.raises(RecipeError, match=r"^input\.rename: the input has no column widht .*; it has width, b\.$"):
        planned(access_to(path, rename={"widht": "w"}))
    with pytest.raises(RecipeError, match=r"^input\.rename: .*a\.parquet would have two columns named b\.$"):
        planned(access_to(path, rename={"width": "b"}))


def test_a_value_beyond_the_bound_is_null_and_flagged_or_fails_its_row_alone(tmp_path: Path) -> None:
    columns = {
        "image": contents(3),
        "text": ["a", "b" * 3001, "c"],
        "more": ["d", "e" * 3001, "f" * 2900],
        "n": [1, 2, 3],
    }
    path = write(tmp_path / "a.parquet", columns)
    table = table_of(access_to(path, max_metadata_bytes=4000))
    assert table["code"].to_pylist() == [None] * 3 and table["encoded"].to_pylist() == contents(3)
    assert table["source_flags"].to_pylist() == [[], ["metadata_too_large:text"], []]
    kept = {"text": ["a", None, "c"], "more": ["d", "e" * 3001, "f" * 2900], "n": [1, 2, 3]}
    assert metadata_of(table).to_pydict() == kept  # the first of the longest, and no more than needed
    table = table_of(access_to(path, max_metadata_bytes=4000, long_metadata="fail"))
    assert table["code"].to_pylist() == [None, "metadata_too_large", None]
    assert table["encoded"].to_pylist() == [content(0), None, content(2)]
    assert metadata_of(table)["n"].to_pylist() == [1, None, 3]


def test_text_that_is_not_utf8_is_null_and_flagged(tmp_path: Path) -> None:
    text = pa.array([b"good", b"\xff\xfe", b"fine"]).view(pa.string())
    path = write(tmp_path / "a.parquet", {"image": contents(3), "text": text, "n": [1, 2, 3]})
    rows = rows_of(access_to(path))
    assert [(row["code"], row["encoded"]) for row in rows] == [(None, content(n)) for n in range(3)]
    assert [(row["meta:text"], row["meta:n"]) for row in rows] == [("good", 1), (None, 2), ("fine", 3)]
    assert [row["source_flags"] for row in rows] == [[], ["metadata_invalid:text"], []]
    named = pa.array([b"a.jpg", b"\xff\xfe.jpg"]).view(pa.string())
    (tmp_path / "a.jpg").write_bytes(b"x")
    rows = rows_of(access_to(write(tmp_path / "b.parquet", {"image": named, "n": [1, 2]})))
    assert [(row["code"], row["meta:n"]) for row in rows] == [(None, 1), ("metadata_invalid", 2)]


def test_an_image_beyond_the_bound_fails_its_row_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [b"x" * 10, b"x" * 11], "n": [1, 2]})
    rows = rows_of(access_to(path, max_bytes=10))
    assert [(row["code"], row["meta:n"]) for row in rows] == [(None, 1), ("image_too_large", 2)]


class Trap(pa.ExtensionType):
    """An extension type that records its deserialisation, in place of one that would run code by unpickling."""

    sprung: list[bytes] = []  # noqa: RUF012 (shared on purpose)

    def __init__(self) -> None:
        super().__init__(pa.list_(pa.int32()), "tests.trap")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Trap":
        cls.sprung.append(serialized)
        return cls()


@pytest.fixture
def trapped(tmp_path: Path) -> Iterator[Path]:
    pa.register_extension_type(Trap())
    column = pa.ExtensionArray.from_storage(Trap(), pa.array([[1], [2]], pa.list_(pa.int32())))
    yield write(
        tmp_path / "trap.parquet", {"image": contents(2), "x": column, "big": pa.array(["a", "b"], pa.large_string())}
    )
    pa.unregister_extension_type("tests.trap")


def test_extension_types_are_never_instantiated(trapped: Path) -> None:
    pq.read_schema(trapped)
    assert Trap.sprung  # the trap works
    Trap.sprung.clear()
    table = metadata_of(table_of(access_to(trapped)))
    assert not Trap.sprung
    assert table.schema.types == [pa.list_(pa.int32()), pa.large_string()] and table["x"].to_pylist() == [[1], [2]]


@pytest.mark.parametrize(
    "disguise",
    [
        lambda key, value: key + b"\x08\x04" + value[1:],  # the long form of the field's header
        lambda key, value: key + value[:-1] + b"\x18\x01A" + value[-1:],  # another value after it
        lambda key, value: key + value.replace(b"=", b"\n"),
    ],
)
def test_a_disguised_schema_is_hidden_as_a_whole(trapped: Path, disguise: Any) -> None:
    stored = pq.read_metadata(trapped).metadata[b"ARROW:schema"]
    size = len(stored)
    length = bytes([size & 0x7F | 0x80, size >> 7])
    footer = disguise(b"\x0cARROW:schema", b"\x18" + length + stored + b"\0")
    changed = parquet_file.without_extensions(footer)
    assert len(changed) == len(footer) and b"ARROW:schema" not in changed
    plain = parquet_file.without_extensions(b"\x0cARROW:schema\x18" + length + stored + b"\0")
    assert b"ARROW:schema" in plain
    assert b"ARROW:extension:name" in base64.b64decode(stored)
    assert base64.b64decode(stored) not in base64.b64decode(plain[len(b"\x0cARROW:schema\x18") + 2 : -1])


# Damage, and what is not damage


@pytest.mark.parametrize(
    ("bad", "code", "detail"),
    [
        (b"PAR1", "truncated_unit", "damaged"),
        (b"PAR1" + bytes(50) + b"PAR1", "truncated_unit", "damaged"),
        (b"x" * 4 + b"\xff\xff\xff\x7fPAR1", "truncated_unit", "damaged"),
        (b"", "unit_format", "there are no bytes"),
        (b"no parquet at all", "unit_format", "the bytes are plain text"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "unit_format", "the bytes are a Git LFS pointer"),
        (b"<!doctype html><html>", "unit_format", "the bytes are an HTML page"),
        (b"PARE" + bytes(50) + b"PARE", "unit_format", "the parquet file is encrypted; write it without encryption"),
    ],
)
def test_a_file_that_is_no_parquet_fails_alone_and_not_the_plan(
    tmp_path: Path, bad: bytes, code: str, detail: str
) -> None:
    write(tmp_path / "a.parquet", {"image": contents(1)})
    (tmp_path / "b.parquet").write_bytes(bad)
    write(tmp_path / "c.parquet", {"image": contents(1)})
    rows = rows_of(access_to(tmp_path))
    assert [(row["source"][-9:], row["code"], row["unit_rows"]) for row in rows] == [
        ("a.parquet", None, 1),
        ("b.parquet", code, 1),
        ("c.parquet", None, 1),
    ]
    assert detail in rows[1]["detail"]


class _Keys(encryption.KmsClient):  # type: ignore[misc]
    """A key service that stores the keys in the file itself."""

    def __init__(self) -> None:
        encryption.KmsClient.__init__(self)

    def wrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, wrapped: bytes, name: str) -> bytes:
        return base64.b64decode(wrapped)


@pytest.mark.parametrize(("plain", "columns"), [(False, ["image", "n"]), (True, ["image"]), (True, ["n"])])
def test_an_encrypted_file_fails_alone_in_one_sentence(tmp_path: Path, plain: bool, columns: list[str]) -> None:
    how = encryption.EncryptionConfiguration(
        footer_key="f", column_keys={"k": columns}, plaintext_footer=plain, double_wrapping=False
    )
    keys = encryption.CryptoFactory(lambda _: _Keys())
    write(
        tmp_path / "a.parquet",
        {"image": contents(3), "n": [1, 2, 3]},
        encryption_properties=keys.file_encryption_properties(encryption.KmsConnectionConfig(), how),
    )
    write(tmp_path / "b.parquet", {"image": contents(1)})
    rows = rows_of(access_to(tmp_path))
    assert [(row["code"], row["detail"]) for row in rows] == [
        ("unit_format", "the parquet file is encrypted; write it without encryption"),
        (None, None),
    ]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "lz4", "zstd"])
def test_every_codec_and_kind_of_page_is_read(tmp_path: Path, codec: str, version: str) -> None:
    columns = {
        "image": contents(500),
        "n": list(range(500)),
        "l": [[n, None] for n in range(500)],
        "nothing": pa.nulls(500),
    }
    path = write(
        tmp_path / "a.parquet",
        columns,
        compression=codec,
        data_page_version=version,
        data_page_size=2000,
        write_page_index=True,
        write_page_checksum=True,
    )
    table = table_of(access_to(path))
    assert table["encoded"].to_pylist() == contents(500)
    assert metadata_of(table).to_pydict() == {"n": columns["n"], "l": columns["l"], "nothing": [None] * 500}


def test_types_that_arrow_does_not_know_cost_only_their_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": contents(2), "n": [1, 2]})
    raw, stored = path.read_bytes(), base64.b64decode(pq.read_metadata(path).metadata[b"ARROW:schema"])
    wide = base64.b64encode(stored.replace(b"\x40\0\0\0", b"\x80\0\0\0"))  # n has 128 bits, as Polars can write it
    path.write_bytes(raw.replace(base64.b64encode(stored), wide))
    with pytest.raises(pa.ArrowNotImplementedError):
        pq.read_schema(path)
    assert metadata_of(table_of(access_to(path))).to_pydict() == {"n": [1, 2]}


def test_a_file_cut_short_fails_as_one_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": contents(100)})
    path.write_bytes(path.read_bytes()[:-10])
    (row,) = rows_of(access_to(path))
    assert (row["code"], row["unit_rows"], row["row"]) == ("truncated_unit", 1, None)


def damage(path: Path, group: int) -> None:
    """Overwrite the page headers of a row group's images."""
    column = pq.read_metadata(path).row_group(group).column(0)
    raw = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    raw[start : start + 16] = b"\xff" * 16
    path.write_bytes(raw)


def test_rows_before_a_damaged_page_stay_and_all_others_are_failed_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": contents(40), "n": list(range(40))}, row_group_size=10)
    damage(path, 2)
    rows = rows_of(access_to(path))
    assert [row["index"] for row in rows] == [row["row"] for row in rows] == list(range(40))
    assert [row["encoded"] for row in rows] == contents(20) + [None] * 20
    assert {row["code"] for row in rows[20:]} == {"truncated_unit"}
    assert [row["unit_rows"] for row in rows] == [None] * 39 + [40]


def test_a_damaged_byte_is_noticed_by_the_pages_checksum(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        {"image": contents(10)},
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"image 5", b"image 6"))
    assert {row["code"] for row in rows_of(access_to(path))} == {"truncated_unit"}


@pytest.mark.parametrize("claimed", [76, 78])
def test_every_row_that_a_footer_claims_ends_as_one_row(tmp_path: Path, claimed: int) -> None:
    path = write(tmp_path / "a.parquet", {"image": contents(77)})
    raw = path.read_bytes()
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    count = b"\x16\x9a\x01"  # in Thrift: the next field, of 64 bits, with 77 in zigzag
    assert raw[footer:].count(count) == 3  # of the file, of the row group, of its column
    path.write_bytes(raw[:footer] + raw[footer:].replace(count, b"\x16" + bytes([2 * claimed & 0x7F | 0x80, 1])))
    rows = rows_of(access_to(path))
    assert [row["index"] for row in rows] == list(range(claimed)) and rows[-1]["unit_rows"] == claimed
    assert [row["code"] for row in rows[77:]] == ["truncated_unit"] * (claimed - 77)


class Counting:
    """A stream that records which bytes are read, and fails at a given byte."""

    def __init__(self, stream: Any, ranges: list[tuple[int, int]], fault: OSError | None, at: int) -> None:
        self.stream, self.ranges, self.fault, self.at = stream, ranges, fault, at

    def read(self, size: int = -1) -> bytes:
        start = self.stream.tell()
        if self.fault and start < self.at:
            raise self.fault
        found = self.stream.read(size)
        self.ranges.append((start, start + len(found)))
        return bytes(found)

    def seek(self, *place: int) -> int:
        return int(self.stream.seek(*place))

    def __enter__(self) -> "Counting":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    return watch(monkeypatch, None, 0)


def watch(monkeypatch: pytest.MonkeyPatch, fault: OSError | None, at: int) -> list[tuple[int, int]]:
    noted: list[tuple[int, int]] = []
    opened = local.LocalStore.open
    monkeypatch.setattr(
        local.LocalStore, "open", lambda self, stored, piece: Counting(opened(self, stored, piece), noted, fault, at)
    )
    return noted


def column_range(path: Path, group: int, column: int = 0) -> tuple[int, int]:
    chunk = pq.read_metadata(path).row_group(group).column(column)
    start = min(filter(None, [chunk.dictionary_page_offset, chunk.data_page_offset]))
    return start, start + chunk.total_compressed_size


def test_a_storage_that_fails_is_not_taken_for_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"image": contents(100, 10_000)}, compression="none")
    access = access_to(path)
    units, columns = planned(access)
    watch(monkeypatch, OSError(5, "the disk is gone"), at=100_000)
    with pytest.raises(SystemFailure, match="the disk is gone"):
        list(unit_rows(0, units[0], schema=row_schema(columns), access=access))
    path.write_bytes(path.read_bytes()[:50_000])  # so that the footer is where the storage fails
    with pytest.raises(SystemFailure, match="the disk is gone"):
        planned(access)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (FileNotFoundError(2, "gone"), "source_missing"),
        (PermissionError(13, "denied"), "source_unreadable"),
        (local.SourceChanged(116, "changed"), "source_changed"),
    ],
)
def test_a_file_that_goes_while_it_is_read_fails_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError, code: str
) -> None:
    path = write(tmp_path / "a.parquet", {"image": contents(20, 10_000)}, compression="none")
    access = access_to(path)
    units, columns = planned(access)
    watch(monkeypatch, fault, at=100_000)
    rows = unit_rows(0, units[0], schema=row_schema(columns), access=access, rows=20)
    assert [row["code"] for row in rows] == [code] * 20


def test_a_file_that_changed_since_it_was_planned_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": contents(2)})
    access = access_to(path)
    units, columns = planned(access)
    write(path, {"image": [b"other", b"images"]})
    rows = unit_rows(0, units[0], schema=row_schema(columns), access=access, rows=2)
    assert [row["code"] for row in rows] == ["source_changed"] * 2
    (unit,), _ = planned(access)
    moved = unit_rows(0, replace(unit, first_row=1), schema=row_schema(columns), access=access, rows=2)
    assert {row["detail"] for row in moved} == {"planned: 1 rows before these row groups; found: 0"}


# Which bytes are read


def test_only_the_units_own_row_groups_are_read_and_finished_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: list[tuple[int, int]]
) -> None:
    monkeypatch.setattr(parquet, "UNIT_ROWS", 30)
    path = write(tmp_path / "a.parquet", {"image": contents(60, 100_000)}, row_group_size=10, compression="none")
    access = access_to(path)
    units, columns = planned(access)
    assert all(start >= path.stat().st_size - 2**16 for start, _ in ranges)  # planning reads footers
    for unit, done, wanted in [
        (0, BitMap(), {0, 1, 2}),
        (1, BitMap(range(5, 20)), {3, 5}),
        (1, BitMap(range(10, 29)), {3, 5}),
    ]:
        ranges.clear()
        rows = list(unit_rows(unit, units[unit], schema=row_schema(columns), access=access, done=done, rows=30))
        assert [row["encoded"] for row in rows] == [content(30 * unit + n, 100_000) for n in range(30) if n not in done]
        for group in range(5):  # a part of the last one is read with the footer
            start, end = column_range(path, group)
            touched = sum(max(0, min(end, b) - max(start, a)) for a, b in ranges)
            assert touched == (end - start if group in wanted else 0)


def test_of_an_images_struct_only_bytes_and_path_are_read(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    column = [{"bytes": content(n, 50_000), "path": "p", "thumbnail": content(n, 50_000)} for n in range(20)]
    path = write(tmp_path / "a.parquet", {"image": column}, compression="none", use_dictionary=False)
    write(tmp_path / "b.parquet", {"image": column})
    rows = rows_of(access_to(path))
    assert [row["encoded"] for row in rows] == contents(20, 50_000)
    start, end = column_range(path, 0, 2)
    assert not any(a < end - 2**16 and start < b for a, b in ranges)


def test_a_row_group_is_read_in_ranges_and_none_of_it_twice(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    columns = {"image": contents(200, 100_000), "n": list(range(200))}
    path = write(tmp_path / "a.parquet", columns, compression="none", **SMALL_PAGES)
    list(rows_of(access_to(path)))
    assert max(b - a for a, b in ranges) <= parquet_file.MAX_BUFFER
    size = path.stat().st_size
    assert sum(b - a for a, b in ranges) < 1.02 * size + 3 * 2**16


PEAK = """
import sys
from pyroaring import BitMap
from caprl_ray import sources
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.recipe.input import Input
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage
access = Access(storage=Storage(), input=Input(paths=[sys.argv[1]]), max_bytes=2**26)
def peak():  # of this process alone, unlike getrusage's, which begins with that of the parent
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) / 1024
count, before = 0, None
for unit in sources.plan_units(access):
    before = before or peak()
    for sample in sources.read_unit(unit, BitMap(), access, LeftOut()):
        count += len(sample.image)
print(count, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_a_row_group_of_300_mb_is_streamed_in_bounded_memory(tmp_path: Path, compression: str) -> None:
    noise = random.Random(0)
    images = pa.array([noise.randbytes(300_000) for _ in range(1000)])
    path = tmp_path / "big.parquet"
    columns = {"image": images, "text": ["caption"] * 1000}
    write(path, columns, row_group_size=1000, compression=compression, **SMALL_PAGES)
    assert pq.read_metadata(path).num_row_groups == 1 and path.stat().st_size > 300_000_000
    assert peak_of(path, images=1000, size=300_000) < 120


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_image_that_thousands_of_rows_share_is_not_held_for_each(tmp_path: Path) -> None:
    image = random.Random(0).randbytes(900_000)
    columns = {"image": pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([image]))}
    path = write(tmp_path / "shared.parquet", columns, store_schema=False)
    assert pq.read_schema(path).field("image").type == pa.binary() and path.stat().st_size < 1_000_000
    assert peak_of(path, images=2000, size=900_000) < 200


def peak_of(path: Path, *, images: int, size: int) -> float:
    """Read a file of `images` images of `size` bytes in a new process. Returns by how many MiB it grows."""
    out = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True, timeout=300)
    total, grown = out.stdout.split()
    assert int(total) == images * size
    print(f"peak: {grown} MiB")  # noqa: T201
    return float(grown)


# Hugging Face folders through the whole job


def stub_caption_of(image: bytes, recipe: Recipe) -> str:
    limits = Limits(max_bytes=recipe.prepare.max_bytes, max_source_pixels=recipe.prepare.max_source_pixels)
    seen = prepare(image, resolve(recipe).size_rule, limits)
    return stub_caption(bytes(seen.pixels), seen.pixel_width, seen.pixel_height, recipe.prompt.user)


def hugging_face_folder(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """A dataset folder as `datasets` writes it, of two splits; returns the rows of each."""
    from datasets import ClassLabel, Dataset, Features, Image, List, Value

    features = Features(
        {
            "image": Image(),
            "width": Value("int32"),
            "label": ClassLabel(names=["cat", "dog"]),
            "objects": List({"bbox": List(Value("float32"), length=4), "name": Value("string")}),
            "answers": {"text": List(Value("string")), "taken": Value("timestamp[us]")},
        }
    )
    rng = random.Random(0)
    splits = {}
    for split, count in (("train", 24), ("test", 7)):
        rows = [
            {
                "image": {"bytes": encode_scene(sample_scene(rng), rng)[1], "path": None},
                "width": 1000 + number,
                "label": number % 2,
                "objects": [{"bbox": [float(number), 0.5, 1.0, 2.0], "name": f"thing {n}"} for n in range(number % 3)],
                "answers": {"text": [split, str(number)], "taken": datetime(2020, 1, 1, microsecond=number)},
            }
            for number in range(count)
        ]
        name = folder / "data" / f"{split}-00000-of-00001.parquet"
        name.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows, features=features).to_parquet(str(name), batch_size=5)
        splits[split] = rows
    (folder / "README.md").write_text("---\nconfigs: []\n---\n")
    return splits


@pytest.mark.usefixtures("ray_cluster")
def test_a_hugging_face_folder_is_captioned_with_all_its_columns(tmp_path: Path) -> None:
    from datasets import load_dataset

    splits = hugging_face_folder(tmp_path / "set")
    document = demo_recipe([tmp_path / "set"], tmp_path / "out")
    document |= {"model": {"source": "stub"}, "prepare": {"max_pixels": 20_000}}
    with pytest.raises(RecipeError, match=r"has a column width, .*input\.rename=\{width: source_width\}"):
        pipeline.run(caption_job(parse(document)))
    document["input"]["rename"] = {"width": "source_width"}
    document["prompt"] = {"user": "Describe a {label} of width {source_width}."}
    recipe = parse(document)
    assert pipeline.run(caption_job(recipe)).balanced
    rows = pq.read_table(tmp_path / "out" / "data").sort_by([("unit", "ascending"), ("index", "ascending")])
    expected = [("test", n, row) for n, row in enumerate(splits["test"])]
    expected += [("train", n, row) for n, row in enumerate(splits["train"])]
    assert rows["key"].to_pylist() == [f"data/{split}-00000-of-00001.parquet:{n}" for split, n, _ in expected]
    for out, (_, _, row) in zip(rows.to_pylist(), expected, strict=True):
        asked = parse(document | {"prompt": {"user": f"Describe a {row['label']} of width {row['width']}."}})
        assert out["caption"] == stub_caption_of(row["image"]["bytes"], asked)
        assert out["source_width"] == row["width"]
        assert {name: out[name] for name in ("label", "objects", "answers")} == {
            n: row[n] for n in ("label", "objects", "answers")
        }
    source = pq.read_schema(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    kept = {"source_width": "width", "label": "label", "objects": "objects", "answers": "answers"}
    assert [rows.schema.field(name).type for name in kept] == [source.field(name).type for name in kept.values()]
    assert all(field.metadata[b"description"] for field in rows.schema)
    loaded = load_dataset(
        "parquet",
        data_files=str(tmp_path / "out" / "data" / "*.parquet"),
        cache_dir=str(tmp_path / "cache"),
        split="train",
    )
    assert sorted(loaded["caption"]) == sorted(rows["caption"].to_pylist())
    assert loaded.features["objects"].feature["bbox"].length == 4
    assert loaded.features["label"].names == ["cat", "dog"]


@pytest.mark.usefixtures("ray_cluster")
def test_every_type_passes_through_the_whole_job(tmp_path: Path) -> None:
    rng = random.Random(0)
    images = [encode_scene(sample_scene(rng), rng)[1] for _ in range(3)]
    transit = row_schema(pa.schema([]), CAPTION).names  # names of columns between stages are allowed too
    named = {name: pa.array([name, None, ""]) for name in transit if not clashes([name], CAPTION)}
    columns = named | ALL_TYPES
    write(tmp_path / "set" / "a.parquet", {**columns, "photo": images})
    write(tmp_path / "set" / "b.parquet", {"photo": [images[0], b"", None]})  # has none of them: nulls
    document = demo_recipe([tmp_path / "set"], tmp_path / "out")
    document |= {"failures": {"max_fraction": 0.5}}
    document["input"]["image_column"] = "photo"
    recipe = parse(document | {"model": {"source": "stub"}, "prepare": {"max_pixels": 20_000}})
    balance = pipeline.run(caption_job(recipe))
    assert balance.balanced and (balance.finished, balance.failed) == (4, 2)
    (data,) = (tmp_path / "out" / "data").glob("*.parquet")
    out = pq.read_table(data).sort_by([("unit", "ascending"), ("index", "ascending")]).select(list(columns))
    assert out.slice(0, 3).combine_chunks().equals(pa.table(columns))
    assert all(column.null_count == 1 for column in out.slice(3).columns)
    assert pipeline.run(caption_job(recipe)).balanced


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_stopped_goes_on_in_the_middle_of_a_row_group(tmp_path: Path) -> None:
    splits = hugging_face_folder(tmp_path / "set")
    document = demo_recipe([tmp_path / "set"], tmp_path / "out")
    document["input"]["rename"] = {"width": "source_width"}
    recipe = parse(document | {"model": {"source": "stub"}, "prepare": {"max_pixels": 20_000}})
    first = pipeline.run(caption_job(recipe), limit=12)
    assert first.finished == 12 and not first.balanced
    assert pipeline.run(caption_job(recipe)).balanced
    rows = pq.read_table(tmp_path / "out" / "data").sort_by([("unit", "ascending"), ("index", "ascending")]).to_pylist()
    images = [row["image"]["bytes"] for split in ("test", "train") for row in splits[split]]
    assert [row["caption"] for row in rows] == [stub_caption_of(image, recipe) for image in images]


def test_the_column_and_the_names_belong_to_the_recipe_of_an_output(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": contents(1), "mask": contents(1)})
    document = demo_recipe([path], tmp_path / "out") | {"model": {"source": "stub"}}

    def opened(**settings: Any) -> Output:
        recipe = parse(document | {"input": document["input"] | settings})
        return Output.open(caption_job(recipe))

    opened(image_column="image").plan()
    opened(image_column="image", rename={})
    with pytest.raises(RecipeError, match=r"input\.image_column was 'image' and is 'mask'"):
        opened(image_column="mask")
    with pytest.raises(RecipeError, match=r"input\.rename was None and is {'mask': 'm'}"):
        opened(image_column="image", rename={"mask": "m"})


# On S3


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="bucket")
    yield client
    server.stop()


def test_on_s3_footers_and_columns_are_exact_ranges_and_paths_begin_at_the_files_folder(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(StorageSettings(endpoint=bucket.meta.endpoint_url))
    images = [random.Random(n).randbytes(100_000) for n in range(100)]
    columns = {"image": images, "n": list(range(100))}
    path = write(tmp_path / "a.parquet", columns, compression="none", row_group_size=20, **SMALL_PAGES)
    bucket.put_object(Bucket="bucket", Key="set/a.parquet", Body=path.read_bytes())
    requested: list[int] = []
    fetch = s3_stream._Ranges._request

    def noted(self: Any, start: int, end: int) -> Any:
        requested.append(end - start)
        return fetch(self, start, end)

    monkeypatch.setattr(s3_stream._Ranges, "_request", noted)
    access = access_to("s3://bucket/set/a.parquet", storage=storage)
    planned(access)
    assert requested == [2**16]
    requested.clear()
    rows = rows_of(access)
    assert [row["encoded"] for row in rows] == images and rows[3]["source"] == "s3://bucket/set/a.parquet"
    assert sum(requested) < 1.02 * path.stat().st_size + 2**18 and max(requested) <= parquet_file.MAX_BUFFER
    listed = {"path": ["b.jpg", "s3://bucket/other/c.jpg", "gone.jpg", "../other/c.jpg", "s3://bucket/others/c.jpg"]}
    bucket.put_object(Bucket="bucket", Key="set/l.parquet", Body=write(tmp_path / "l.parquet", listed).read_bytes())
    for key in ("set/b.jpg", "other/c.jpg"):
        bucket.put_object(Bucket="bucket", Key=key, Body=key.encode())
    rows = rows_of(access_to("s3://bucket/set/l.parquet", storage=storage, image_roots=["s3://bucket/other"]))
    images = [b"set/b.jpg", b"other/c.jpg", "source_missing", b"other/c.jpg", "source_refused"]
    assert [row["encoded"] or row["code"] for row in rows] == images
    assert [row["source"] for row in rows] == [
        f"s3://bucket/{key}" for key in ("set/b.jpg", "other/c.jpg", "set/gone.jpg", "other/c.jpg", "set/l.parquet")
    ]


def test_an_object_that_changes_while_it_is_read_is_noticed(tmp_path: Path, bucket: Any) -> None:
    storage = Storage(StorageSettings(endpoint=bucket.meta.endpoint_url))
    images = [random.Random(n).randbytes(100_000) for n in range(100)]
    path = write(tmp_path / "a.parquet", {"image": images}, row_group_size=10)
    bucket.put_object(Bucket="bucket", Key="a.parquet", Body=path.read_bytes())
    access = access_to("s3://bucket/a.parquet", storage=storage)
    units, columns = planned(access)
    rows = unit_rows(0, units[0], schema=row_schema(columns), access=access, rows=100)
    first = next(rows)
    bucket.put_object(Bucket="bucket", Key="a.parquet", Body=path.read_bytes()[::-1])
    rest = list(rows)
    assert first["encoded"] == images[0] and rest[-1]["code"] == "source_changed" and len(rest) == 99
