"""A source's columns keep their names, values and meaning through reading, stages and commit."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caprl_ray import sources
from caprl_ray.caption.columns import CAPTION, check_prompt
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.plan import overview
from caprl_ray.commands.preflight import preflight
from caprl_ray.errors import RecipeError
from caprl_ray.output.folder import Output
from caprl_ray.recipe.input import Input
from caprl_ray.recipe.load import parse
from caprl_ray.rows.features import features
from caprl_ray.rows.schema import clashes, row_schema
from caprl_ray.sources.checks import checked
from caprl_ray.text import quoted
from tests.sources.tables import (
    HF_IMAGE,
    access_to,
    committed,
    contents,
    metadata_of,
    planned,
    rows_of,
    table_of,
    write,
)

TRANSIT = row_schema(pa.schema([]), CAPTION).names
ODD = [
    "meta:x",
    "meta:",
    "",
    " ",
    "a.b",
    "a",
    "image.bytes",
    "日本語",
    "🙂",
    "Image",
    "IMAGE",
    "Caption",
    "__index_level_0__",
]
ODD += ["new\nline", "{x}", "a b[0]", "null", "source_flags", "element", "list"]


def values(name: str) -> dict[str, pa.Array]:
    return {
        "text": pa.array([name, None]),
        "number": pa.array([len(name), None], pa.uint16()),
        "list": pa.array([[name], []]),
        "struct": pa.array([{"a": name, "b": {"c": 1}}, None]),
    }


@pytest.mark.parametrize("kind", ["text", "number", "list", "struct"])
def test_a_column_of_any_name_comes_out_as_it_went_in(tmp_path: Path, kind: str) -> None:
    names = [name for name in dict.fromkeys([*TRANSIT, *ODD]) if not clashes([name], CAPTION)]
    assert {"encoded", "pixels", "pixel_width", "failed_before", "source_flags"} <= set(names)
    columns = {name: values(name)[kind] for name in names}
    write(tmp_path / "a.parquet", {"photo": contents(2), **columns})
    out = committed(access_to(tmp_path / "a.parquet", image_column="photo"), tmp_path / "out")
    assert pq.read_table(out / "data").select(names).combine_chunks().equals(pa.table(columns))


@pytest.mark.parametrize("name", [*clashes(TRANSIT, CAPTION), "x\0y"])
def test_a_name_that_the_output_needs_is_refused_and_the_message_can_be_pasted(tmp_path: Path, name: str) -> None:
    new = f"source_{name}".replace("\0", "_")
    write(tmp_path / "a.parquet", {"photo": contents(1), name: [1], new: [2]})
    access = access_to(tmp_path / "a.parquet")
    with pytest.raises(
        RecipeError, match=r"a\.parquet has a column .*the output needs for itself; rename it, "
    ) as error:
        list(checked(sources.plan_units(access), access.input, CAPTION, len))
    assert f"'input.rename={{{quoted(name)}: {new}_2}}'" in str(error.value)
    renamed = access_to(tmp_path / "a.parquet", rename={name: f"{new}_2"})
    assert list(checked(sources.plan_units(renamed), renamed.input, CAPTION, len))


def test_all_clashes_of_all_files_stand_in_one_sentence(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"jpg": contents(1), "width": [1], "key": ["k"], "it's": [1]})
    write(tmp_path / "b.parquet", {"jpg": contents(1), "caption": ["a cat"]})
    access = access_to(tmp_path, rename={"it's": "source"})
    with pytest.raises(RecipeError) as error:
        list(checked(sources.plan_units(access), access.input, CAPTION, len))
    assert "a.parquet has the columns key, source, width, names that the output needs for itself" in str(error.value)
    override = str(error.value).partition("instance with '")[2].removesuffix("'.")
    assert override == (
        r'input.rename={"it\u0027s": source_source, caption: source_caption, key: source_key, width: source_width}'
    )
    import yaml

    again = access_to(tmp_path, rename=yaml.safe_load(override.removeprefix("input.rename=")))
    assert len(list(checked(sources.plan_units(again), again.input, CAPTION, len))) == 2


@pytest.mark.parametrize(
    ("one", "two", "sentence"),
    [
        (
            pa.array([1]),
            pa.array(["1"]),
            r"the column n of .*b\.parquet has the type string, .* is int64; .*drop=\[n\]'\.$",
        ),
        (
            pa.array([1], pa.timestamp("us")),
            pa.array([1], pa.timestamp("us", "UTC")),
            r"timestamp\[us, tz=UTC\], .* it is tim",
        ),
        (pa.array([1]), pa.array([True]), r"has the type bool, and in the files before it is int64"),
    ],
)
def test_types_that_do_not_fit_are_refused_in_one_sentence(tmp_path: Path, one: Any, two: Any, sentence: str) -> None:
    write(tmp_path / "a.parquet", {"image": contents(1), "n": one})
    write(tmp_path / "b.parquet", {"image": contents(1), "n": two})
    access = access_to(tmp_path)
    with pytest.raises(RecipeError, match=sentence):
        list(checked(sources.plan_units(access), access.input, CAPTION, len))
    access = access_to(tmp_path, columns={"drop": ["n"]})
    assert len(list(checked(sources.plan_units(access), access.input, CAPTION, len))) == 2


def test_a_prompt_that_names_a_column_of_no_row_is_refused() -> None:
    recipe = parse({"input": {"paths": ["-"]}, "output": {"path": "-"}, "prompt": {"user": "{txt} and {meta[alt]}"}})
    check_prompt(recipe, ["json"])  # the value may be in the JSON
    check_prompt(recipe, ["txt", "meta"])
    with pytest.raises(
        RecipeError, match=r"^prompt\.user: \{txt\} names a column that the input does not have; it has n\.$"
    ):
        check_prompt(recipe, ["n"])
    with pytest.raises(RecipeError, match=r"\{meta\[alt\]\} names a column .* it has txt\.$"):
        check_prompt(recipe, ["txt"])


# Folders


def test_folders_name_columns_and_the_files_own_column_counts_first(tmp_path: Path) -> None:
    write(tmp_path / "label=cat/year=2024/a.parquet", {"image": contents(1)})
    write(tmp_path / "label=a%2Fb%20%3D/year=__HIVE_DEFAULT_PARTITION__/a.parquet", {"image": contents(1)})
    write(tmp_path / "label=x/year=2025/a.parquet", {"image": contents(1), "label": ["own"]})
    access = access_to(tmp_path)
    rows = rows_of(access)
    assert [(row["meta:label"], row["meta:year"]) for row in rows] == [
        ("a/b =", None),
        ("cat", "2024"),
        ("own", "2025"),
    ]
    assert [row["code"] for row in rows] == [None] * 3
    one = access_to(tmp_path / "label=cat/*/a.parquet", columns={"drop": ["year"]}, rename={"label": "kind"})
    assert metadata_of(table_of(one)).to_pydict() == {"kind": ["cat"]}
    clash = access_to(write(tmp_path / "model=m/a.parquet", {"image": contents(1)}))
    with pytest.raises(RecipeError, match="has a column model, a name that the output needs"):
        list(checked(sources.plan_units(clash), clash.input, CAPTION, len))


# Meaning


def hugging_face(path: Path, names: list[str], labels: list[int]) -> Path:
    from datasets import ClassLabel, Dataset, Features, Image, List, Value

    parts = {
        "image": Image(),
        "mask": Image(),
        "label": ClassLabel(names=names),
        "n": Value("int64"),
        "objects": List({"kind": ClassLabel(names=["a", "b"]), "box": List(Value("float32"), length=4)}),
    }
    picture = {"bytes": b"picture", "path": None}
    rows = [
        {"image": picture, "mask": picture, "label": n, "n": n, "objects": [{"kind": 1, "box": [0.0] * 4}]}
        for n in labels
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=Features(parts)).to_parquet(str(path))
    return path


def test_classes_and_images_of_hugging_face_are_there_in_the_output(tmp_path: Path) -> None:
    from datasets import ClassLabel, Image, load_dataset

    write(tmp_path / "set/0.parquet", {"image": pa.array([{"bytes": b"picture"}], HF_IMAGE), "label": [0]})
    hugging_face(tmp_path / "set/1.parquet", ["cat", "dog"], [1, 0])
    out = committed(access_to(tmp_path / "set", rename={"label": "kind"}, image_column="image"), tmp_path / "out")
    loaded = load_dataset(
        "parquet", data_files=f"{out}/data/*.parquet", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.features["kind"] == ClassLabel(names=["cat", "dog"]) and loaded["kind"] == [0, 1, 0]
    assert isinstance(loaded.features["mask"], Image)
    assert loaded.features["objects"].feature["kind"].names == ["a", "b"]
    assert duckdb.sql(f"select kind, n from '{out}/data/*.parquet' order by id").fetchall() == [
        (0, None),
        (1, 1),
        (0, 0),
    ]
    assert pd.read_parquet(out / "data")["kind"].tolist() == [0, 1, 0]


def test_other_classes_in_another_file_are_refused(tmp_path: Path) -> None:
    hugging_face(tmp_path / "0.parquet", ["cat", "dog"], [1])
    hugging_face(tmp_path / "1.parquet", ["dog", "cat"], [1])
    access = access_to(tmp_path, image_column="image")
    with pytest.raises(RecipeError, match=r"label of .*1\.parquet has the classes dog, cat, .* they are cat, dog; "):
        list(checked(sources.plan_units(access), access.input, CAPTION, len))


BROKEN: list[Any] = [
    {"_type": "ClassLabel", "names": ["a", "a"]},
    {"_type": "ClassLabel", "names": []},
    {"_type": "ClassLabel", "names": [1]},
    {"_type": "Nothing", "names": ["a"]},
    {"x": {"_type": "Value", "dtype": "nothing"}, "y": {"_type": "Image"}},
    {"_type": "List", "feature": {"_type": "ClassLabel", "names": ["a"]}, "length": "x"},
    [{"_type": "Image"}, {"_type": "Image"}],
    "Image",
    None,
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_feature_that_datasets_could_not_build_is_left_out(broken: Any) -> None:
    stored = {"info": {"features": {"good": {"_type": "Image", "more": 1}, "bad": broken}}}
    found = features({b"huggingface": json.dumps(stored).encode()})
    assert found in ({"good": '{"_type": "Image"}'}, {})
    assert features({b"huggingface": b"[" * 10_000}) == features({b"huggingface": b"\xff"}) == features(None) == {}


DTYPES = st.text(max_size=12) | st.sampled_from(["int64", "time32[us]", "time64[s]", "decimal128(39, 2)", "float8"])
FEATURES = st.recursive(
    st.sampled_from(
        [{"_type": "Image"}, {"_type": "ClassLabel", "names": ["a", "b"]}, {"_type": "Value", "dtype": "int64"}]
    )
    | st.builds(
        lambda kind: {"_type": "Value", "dtype": kind},
        DTYPES,
    ),
    lambda inner: (
        st.builds(lambda f: {"_type": "List", "feature": f}, inner)
        | st.lists(inner, max_size=2)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)


@given(found=st.dictionaries(st.text(max_size=3), FEATURES, max_size=3))
def test_features_are_taken_over_if_datasets_can_build_them(found: dict[str, Any]) -> None:
    from datasets import Features

    kept = features({b"huggingface": json.dumps({"info": {"features": found}}).encode()})
    Features.from_dict({name: json.loads(feature) for name, feature in kept.items()})


def test_an_extension_type_comes_out_as_its_storage_with_its_name_as_text(tmp_path: Path) -> None:
    columns = {
        "image": contents(2),
        "u": pa.array([bytes(16), None], pa.uuid()),
        "j": pa.array(['{"a": 1}', None], pa.json_()),
    }
    write(tmp_path / "set/0.parquet", columns)
    duckdb.sql(
        "copy (select ''::blob as image, uuid() as u, '{}'::json as j, interval '1 day' as i) "
        f"to '{tmp_path}/set/1.parquet' (format parquet)"
    )
    out = committed(access_to(tmp_path / "set"), tmp_path / "out")
    schema = pq.read_schema(out / "data" / next((out / "data").iterdir()).name)
    kinds = {
        name: (schema.field(name).type, schema.field(name).metadata.get(b"source_type")) for name in ("u", "j", "i")
    }
    assert kinds == {
        "u": (pa.binary(16), b"arrow.uuid"),
        "j": (pa.string(), b"arrow.json"),
        "i": (pa.binary(12), b"parquet.interval"),
    }
    assert pq.read_table(out / "data")["u"].to_pylist()[:2] == [bytes(16), None]
    assert planned(access_to(tmp_path / "set", columns=Input(paths=["-"]).columns.model_dump()))[1].names == [
        "u",
        "j",
        "i",
    ]


@pytest.mark.parametrize(
    ("columns", "prompt", "sentence"),
    [
        ({"width": [1], "key": ["k"]}, "x", r"^input: .* has the columns key, width, names that"),
        ({"n": [1]}, "{txt}", r"^prompt\.user: \{txt\} names a column"),
    ],
)
def test_plan_preflight_and_a_run_refuse_the_same(tmp_path: Path, columns: Any, prompt: str, sentence: str) -> None:
    write(tmp_path / "in" / "a.parquet", {"image": contents(1), **columns})
    recipe = parse(
        {
            "input": {"paths": [str(tmp_path / "in")]},
            "output": {"path": str(tmp_path / "out")},
            "model": {"source": "stub"},
            "replicas": {"gpus": 0},
            "prompt": {"user": prompt},
        }
    )
    for refuses in (overview, preflight, lambda recipe: Output.open(caption_job(recipe)).plan()):
        with pytest.raises(RecipeError, match=sentence):
            refuses(recipe)
    assert not list((tmp_path / "out").glob("data/*"))
