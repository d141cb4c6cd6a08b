"""SQL conditions on the rows of an output: the rows that they pick, and the refusal of other SQL."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from caprl_ray.caption.columns import CAPTION
from caprl_ray.errors import RecipeError
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.committed import read_committed
from caprl_ray.output.objects import DATA, FAILED, parquet_bytes
from caprl_ray.output.where import Condition, matching, output_schema
from caprl_ray.rows.schema import row_id, row_schema
from caprl_ray.storage import Storage

BOTH = (DATA, FAILED)


def row(unit: int, index: int, flags: list[str] | None = None, **values: Any) -> dict[str, Any]:
    known = {"id": row_id(unit, index), "unit": unit, "index": index, "key": f"{unit}/{index}", "attempts": 1}
    return known | {"flags": flags or [], "caption": f"picture {index}", "caption_tokens": 10 * index} | values


def commit(out: Path, rows: list[dict[str, Any]], lease: int = 1) -> None:
    sink = CommittedRows(Storage(), str(out), 1, CAPTION, lease)
    sink.write([pa.Table.from_pylist(rows, schema=row_schema(pa.schema([("label", pa.string())]), CAPTION))], None)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two units. Rows 5 and 6 of unit 1 stand twice in data, row 7 in data and in failed, row 8 twice in failed."""
    out = tmp_path_factory.mktemp("out")
    labels = [{"meta:label": name} for name in ("a", None)]
    commit(out, [row(0, n, ["loop"] if n % 3 == 0 else [], **labels[n % 2]) for n in range(30)])
    commit(out, [row(1, n) for n in range(8)] + [row(1, 8, code="image_corrupt"), row(1, 9, code="no_image")])
    retried = [row(1, 5, ["loop"], attempts=2), row(1, 6, ["loop"], attempts=1), row(1, 7, code="no_image", attempts=2)]
    commit(out, [*retried, row(1, 8, code="no_image", attempts=2)], lease=2)
    return out


def picked(out: Path, text: str, folders: tuple[str, ...] = (DATA,)) -> dict[int, list[int]]:
    condition = Condition(text=text, schema=output_schema(Storage(), str(out), folders))
    found = matching(Storage(), str(out), condition, read_committed(Storage(), str(out)), folders)
    return {unit: list(rows) for unit, rows in sorted(found.items()) if rows}


def test_a_condition_picks_the_rows_that_meet_it_and_each_once(out: Path) -> None:
    assert picked(out, "flags = [] and caption_tokens > 250") == {0: [26, 28, 29]}
    assert picked(out, "label = 'a' and \"index\" < 4") == {0: [0, 2]}  # null is not met
    # The second decoding of row 5 counts, and of row 6 the first object by name.
    assert picked(out, "'loop' in flags and unit = 1") == {1: [5]}
    assert picked(out, "(flags has 'loop') and unit = 1") == {1: [5]}
    assert picked(out, "unit = 1 and not flags HAS 'loop'") == {1: [0, 1, 2, 3, 4, 6, 7]}
    quoted = "caption <> 'ä flags has ''loop''' and unit = 1 and not flags has 'ö'"
    assert picked(out, quoted) == {1: list(range(8))}
    assert picked(out, "unit = 1 and flags = []") == {1: [0, 1, 2, 3, 4, 6, 7]}
    assert picked(out, "true") == {0: list(range(30)), 1: list(range(8))}
    assert picked(out, "code = 'no_image'", BOTH) == {1: [8, 9]}
    assert picked(out, "unit = 1", BOTH) == {1: list(range(10))}
    assert picked(out, "code = 'image_corrupt' or caption = 'picture 3'", BOTH) == {0: [3], 1: [3]}


def test_a_condition_travels_and_a_column_that_an_older_object_lacks_is_null(out: Path) -> None:
    condition = Condition(text="flags is null or label = 'x'", schema=output_schema(Storage(), str(out)))
    there = pa.table({"label": ["x", "y"], "flags": pa.array([["a"], ["b"]])})
    copy = pickle.loads(pickle.dumps(condition))
    assert copy.of(there).tolist() == [True, False]
    assert copy.of(there.drop_columns("flags")).tolist() == [True, True]


def test_of_two_columns_that_differ_in_case_alone_the_spelling_tells() -> None:
    rows = pa.table({"caption": ["ours"], "Caption": ["theirs"], "N": [1]})
    for text in ("caption = 'ours'", "Caption = 'theirs'", "\"Caption\" = 'theirs'", "n = 1 and caption = 'ours'"):
        assert Condition(text=text, schema=rows.schema).of(rows).tolist() == [True], text
    for text in ("CAPTION = 'ours'", "caption <> Caption"):
        with pytest.raises(RecipeError, match="columns caption and Caption, which SQL does not tell apart"):
            Condition(text=text, schema=rows.schema)


def test_a_column_that_only_a_run_in_the_middle_has_written_is_known(tmp_path: Path) -> None:
    for lease, name in ((1, "a"), (2, "b"), (2, "c"), (3, "d")):
        table = pa.table({"unit": pa.array([0], pa.int32()), ("captions" if lease == 2 else "caption"): ["x"]})
        path = f"{tmp_path}/data/{lease:06d}-{name * 32}.parquet"
        Storage().put(path, parquet_bytes(table))
    assert {"unit", "caption", "captions"} == {*output_schema(Storage(), str(tmp_path)).names}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flags has", "is no SQL condition"),
        ("", "is no SQL condition"),
        ("unit = 1; DROP TABLE x", "is no SQL condition"),
        ("unit = 1 ORDER BY unit", "is no SQL condition"),
        ("unit = 1) OR (unit = 2", "is no SQL condition"),
        ("SET threads = 4", "is no SQL condition"),
        ("lable = 'a'", '"lable" not found.*the columns are id, unit'),
        ("sum(unit) > 1", "aggregates"),
        ("caption_tokens", "neither true nor false, but INTEGER"),
        ("unit > (SELECT 1)", "no SELECT inside"),
        ("(SELECT count(*) FROM read_csv('/etc/passwd')) > 0", "file system operations are disabled|no SELECT inside"),
        ("random() < 0.1", "random gives another value each time"),
        ("current_timestamp > timestamp '2020-01-01'", "current_timestamp is another time"),
        ("age(timestamp '2020-01-01') > interval 1 day", "age gives another value"),
        ("ago(interval 1 day) > timestamp '2020-01-01'", "ago gives another value"),
        ("now() > timestamp '2020-01-01'", "now gives another value"),
    ],
)
def test_what_is_no_condition_on_a_row_is_refused_in_a_sentence(out: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=rf"^--where: .*({says})") as caught:
        picked(out, text)
    assert len(str(caught.value).splitlines()) == 1


def test_a_value_that_cannot_be_converted_is_a_sentence(out: Path) -> None:
    with pytest.raises(RecipeError, match=r"--where: Could not convert string 'picture 0'"):
        picked(out, "cast(caption as int) = 1")
