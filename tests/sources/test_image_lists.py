"""The images of a table's rows: lists, base64, structs of any order, paths; and texts that are not images."""

import base64
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest
from pyroaring import BitMap

from caprl_ray.errors import RecipeError, RowFailure
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.sources import inline_image, parquet_read
from caprl_ray.sources.inline_image import decode_inline, inline
from tests.sources.tables import HF_IMAGE, access_to, content, contents, metadata_of, planned, rows_of, table_of, write

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(80))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)

# Lists of images

LISTS: list[list[int | None] | None] = [[0, 1], [], None, [2, None, 3], [4]]
# The rows that they become: key, image, code.
PLACES = [
    ("0[0]", 0, None),
    ("0[1]", 1, None),
    ("1", None, "no_image"),
    ("2", None, "no_image"),
    ("3[0]", 2, None),
    ("3[1]", None, "no_image"),
    ("3[2]", 3, None),
    ("4[0]", 4, None),
]


def lists(kind: pa.DataType) -> pa.Array:
    def value(number: int | None) -> Any:
        if number is None or kind == pa.binary():
            return None if number is None else content(number)
        return base64.b64encode(JPEG + bytes([number])).decode() if kind == pa.string() else {"bytes": content(number)}

    values = [row if row is None else [value(number) for number in row] for row in LISTS]
    return pa.array(values, pa.list_(kind))


@pytest.mark.parametrize("kind", [pa.binary(), HF_IMAGE, pa.string()])
def test_each_image_of_a_list_is_a_row_with_the_other_columns_of_its_row(tmp_path: Path, kind: pa.DataType) -> None:
    path = write(tmp_path / "a.parquet", {"images": lists(kind), "n": list(range(5))}, row_group_size=2)
    access = access_to(path, image_column="images[*]")
    (unit,), columns = planned(access)
    assert unit.rows is None and columns.names == ["n"]
    table = table_of(access)
    expected = JPEG + bytes([0]) if kind == pa.string() else content(0)
    wanted = [
        None if n is None else expected[:-1] + bytes([n]) if kind == pa.string() else content(n) for _, n, _ in PLACES
    ]
    assert table["encoded"].to_pylist() == wanted
    assert table["key"].to_pylist() == [f"a.parquet:{place}" for place, _, _ in PLACES]
    assert table["row"].to_pylist() == [int(place[0]) for place, _, _ in PLACES]
    assert table["code"].to_pylist() == [code for _, _, code in PLACES]
    assert table["index"].to_pylist() == list(range(8)) and table["unit_rows"].to_pylist() == [None] * 7 + [8]
    assert metadata_of(table)["n"].to_pylist() == [0, 0, 1, 2, 3, 3, 3, 4]


@pytest.mark.parametrize("done", [[], [0], [1, 2, 5], [0, 1, 2, 3], [7], list(range(8))])
def test_a_part_that_is_done_is_not_read_again_and_the_rest_is_the_same(tmp_path: Path, done: list[int]) -> None:
    path = write(tmp_path / "a.parquet", {"images": lists(HF_IMAGE), "n": list(range(5))}, row_group_size=2)
    access = access_to(path, image_column="images[*]")
    whole = [row for row in rows_of(access) if row["index"] not in done]
    assert rows_of(access, BitMap(done)) == whole
    (unit,), _ = planned(access)
    assert parquet_read.suspects(unit, 3, access) == []  # the lists' lengths are in the pages that may kill


def test_lists_of_paths_large_lists_and_lists_of_one_length(tmp_path: Path) -> None:
    for name in ("0", "1", "2"):
        (tmp_path / name).write_bytes(name.encode())
    for kind in (pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.string(), 2)):
        images = pa.array([["0", "1"], ["2", "x"], None], kind)
        rows = rows_of(access_to(write(tmp_path / "a.parquet", {"files": images}), image_column="files[*]"))
        assert [row["encoded"] or row["code"] for row in rows] == [b"0", b"1", b"2", "source_missing", "no_image"]
        assert rows[1]["source"] == str(tmp_path / "1") and rows[1]["key"] == "a.parquet:0[1]"


def test_lists_hold_no_more_images_than_the_file_has_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"images": pa.array([[b""] * 3000] * 3)})
    monkeypatch.setattr(parquet_read, "FREE_ROWS", 10)
    access = access_to(path, image_column="images[*]")
    assert path.stat().st_size < 3000
    (unit,), _ = planned(access)
    with pytest.raises(RowFailure, match="more images than it has bytes"):
        list(parquet_read.read(unit, BitMap(), access, LeftOut()))


@pytest.mark.parametrize(
    ("columns", "said", "sentence"),
    [
        (
            {"images": lists(HF_IMAGE)},
            None,
            r"^input: images of .*holds lists .*; set 'input\.image_column=images\[\*\]'",
        ),
        (
            {"images": lists(HF_IMAGE), "file_name": ["doc-0"] * 5},
            None,
            r"^input: images of .*holds lists",
        ),
        ({"images": lists(HF_IMAGE)}, "images", r"has the type list<.*it must hold bytes.*=images\[\*\]'\.$"),
        ({"image": contents(5)}, "image[*]", r"has the type binary; it must hold lists .*input\.image_column=image\.$"),
        ({"image": contents(5)}, "x[*]", r"has no column x\[\*\]; it has image\.$"),
        ({"n": [[1]]}, "n[*]", r"column n of .* has the type list<"),
    ],
)
def test_lists_are_named_in_the_sentence(tmp_path: Path, columns: Any, said: str | None, sentence: str) -> None:
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(RecipeError, match=sentence) as error:
        planned(access_to(path, image_column=said))
    assert "\n" not in str(error.value)


# Structs


@pytest.mark.parametrize(
    "kind",
    [
        pa.struct([("bytes", pa.null()), ("path", pa.string())]),
        pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
        pa.struct([("path", pa.large_string())]),
        pa.struct([("width", pa.int32()), ("path", pa.string()), ("bytes", pa.binary())]),
    ],
)
def test_a_struct_without_bytes_is_read_by_its_path(tmp_path: Path, kind: pa.DataType) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/1.jpg").write_bytes(b"one")
    (tmp_path / "2").write_bytes(b"two")
    images = pa.array([{"path": "deep/1.jpg"}, {"path": "2"}, {"path": None}, None], kind)
    rows = rows_of(access_to(write(tmp_path / "a.parquet", {"image": images, "n": [1, 2, 3, 4]})))
    assert [row["encoded"] or row["code"] for row in rows] == [b"one", b"two", "no_image", "no_image"]
    assert [row["key"] for row in rows] == ["deep/1.jpg", "2", "a.parquet:2", "a.parquet:3"]
    assert [row["meta:n"] for row in rows] == [1, 2, 3, 4]


def test_a_structs_bytes_may_be_base64(tmp_path: Path) -> None:
    kind = pa.struct([("path", pa.string()), ("bytes", pa.large_string())])
    images = pa.array([{"bytes": base64.b64encode(JPEG).decode(), "path": "1.jpg"}, {"bytes": "no base64"}], kind)
    rows = rows_of(access_to(write(tmp_path / "a.parquet", {"image": images})))
    assert [row["encoded"] or row["code"] for row in rows] == [JPEG, "image_corrupt"]
    assert [row["key"] for row in rows] == ["1.jpg", "a.parquet:1"]


# Base64, and texts that are not base64


def test_base64_and_data_uris_are_decoded_and_a_key_never_holds_them(tmp_path: Path) -> None:
    plain = base64.b64encode(JPEG).decode()
    texts = {
        plain: JPEG,
        base64.encodebytes(JPEG * 5).decode(): JPEG * 5,  # with line ends
        base64.urlsafe_b64encode(PNG).decode(): PNG,
        f"data:image/jpeg;base64,{plain}": JPEG,
        f"DATA:;base64,{plain}": JPEG,
        "data:image/svg+xml,%3Csvg/%3E": "source_refused",
        base64.b64encode(PNG[:-1]).decode().rstrip("="): PNG[:-1],
        base64.b64encode(PNG[:-2]).decode().rstrip("="): PNG[:-2],
        f"data:image/jpeg;base64, {plain}": JPEG,
        f"data:image/jpeg;base64,{quote(plain)}": JPEG,
        f"data:image/jpeg;base64,{plain[:-3]}": "image_corrupt",
        f"data:image/jpeg;base64,{plain}!": "image_corrupt",
        base64.b64encode(JPEG * 20).decode(): "image_too_large",
        "data:image/jpeg;base64," + "A" * 5000: "image_too_large",
        "x" * 82_868: "source_refused",
    }
    path = write(tmp_path / "a.parquet", {"image": [*texts, "1.jpg"], "n": list(range(len(texts) + 1))})
    (tmp_path / "1.jpg").write_bytes(b"one")
    rows = rows_of(access_to(path, max_bytes=1000))
    assert [row["encoded"] or row["code"] for row in rows] == [*texts.values(), b"one"]
    assert [row["key"] for row in rows] == [*(f"a.parquet:{n}" for n in range(len(texts))), "1.jpg"]
    assert [row["meta:n"] for row in rows] == list(range(len(texts) + 1))


@pytest.mark.parametrize(
    "path", ["/9j/a.jpg", "/9j/" + "a" * 27, "R0lGODlh/photo.gif", "images/" + "a" * 40, "database.png"]
)
def test_a_path_is_not_taken_for_base64(path: str) -> None:
    assert inline(path) is None


def test_base64_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    image = JPEG * 2
    plain = base64.b64encode(image).decode()
    path = write(tmp_path / "a.parquet", {"image": [plain, f"data:image/jpeg;base64,{plain}"]})
    access = access_to(path)
    units = planned(access)[0]
    monkeypatch.setattr(inline_image, "_base64", lambda text: looked.append(text) or text)
    samples = [sample for unit in units for sample in parquet_read.read(unit, BitMap(), access, LeftOut())]
    assert [sample.image for sample in samples if sample] == [image, image] and looked == [plain, plain]


def test_base64_is_decoded_up_to_the_bound_and_no_byte_further() -> None:
    text = base64.encodebytes(bytes(57_000)).decode()
    assert decode_inline(text, 57_000) == bytes(57_000)
    with pytest.raises(RowFailure, match="image_too_large"):
        decode_inline(text, 56_999)


@pytest.mark.parametrize("texts", [["a caption of a cat"] * 3, ["doc-0", None, "doc-1"], ["Two cats.\nOne dog.jpg"]])
def test_texts_that_are_no_images_are_refused_when_planning(tmp_path: Path, texts: list[str]) -> None:
    path = write(tmp_path / "a.parquet", {"text": texts})
    with pytest.raises(
        RecipeError, match=r"^input\.image_column: text of .*a\.parquet holds no images, paths or base64"
    ):
        planned(access_to(path, image_column="text"))


def test_a_path_without_an_ending_is_found(tmp_path: Path) -> None:
    (tmp_path / "0001").write_bytes(b"one")
    path = write(tmp_path / "a.parquet", {"file": ["gone", "0001"]})
    assert [row["encoded"] or row["code"] for row in rows_of(access_to(path))] == ["source_missing", b"one"]


# Other columns


def test_columns_are_kept_or_dropped_and_a_large_one_is_refused_with_what_to_set(tmp_path: Path) -> None:
    columns = {
        "image": contents(3),
        "second image": [bytes([n]) * 50_000 for n in range(3)],
        "n": [1, 2, 3],
        "t": ["a"] * 3,
    }
    path = write(tmp_path / "a.parquet", columns, compression="none", use_dictionary=False)
    settings: dict[str, Any] = {"image_column": "image", "max_metadata_bytes": 30_000}
    with pytest.raises(RecipeError, match=r"^input: second image of .*a\.parquet has 50,\d\d\d bytes a row") as error:
        planned(access_to(path, **settings))
    assert "'input.columns.drop=[\"second image\"]'" in str(error.value)
    for chosen in ({"drop": ["second image", "t"]}, {"keep": ["image", "n"]}):
        assert metadata_of(table_of(access_to(path, **settings, columns=chosen))).to_pydict() == {"n": [1, 2, 3]}
    for wrong in ({"drop": ["second image", "nn"]}, {"keep": ["nn"]}):
        with pytest.raises(RecipeError, match=r"^input\.columns: the input has no column nn besides its images"):
            planned(access_to(path, **settings, columns=wrong))
    write(tmp_path / "0.parquet", {"image": contents(1), "n": [0]})  # only the first file decides
    assert len(rows_of(access_to(tmp_path, **settings))) == 4
