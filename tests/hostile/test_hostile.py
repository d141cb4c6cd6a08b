"""Every hostile file of tests/hostile on its way through the real reader, prepare and whole runs."""

import os
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from caprl_ray import pipeline
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.prepare.decode import Limits, prepare
from caprl_ray.recipe.load import parse
from caprl_ray.rows.codes import FAILURE_CODES
from tests.hostile import images, shards, tables
from tests.hostile.case import ELSEWHERE, HARM, OK, PICKLED, REFUSED, RULE, Case, outcome
from tests.test_pipeline import rows_of

IMAGES, SHARDS, TABLES = images.cases(), shards.cases(), tables.cases()
LIMITS = Limits(max_bytes=64 * 2**20, max_source_pixels=178_956_970)


def named(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture(autouse=True)
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A folder where every payload would leave its trace; gives what is in and beside it."""
    folder = tmp_path / "deep" / "work"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return lambda: sorted(str(path) for path in tmp_path.rglob("*"))


@named([*IMAGES, *SHARDS, *TABLES])
def test_each_gives_the_rows_that_are_expected_and_leaves_no_trace(
    case: Case, untouched: Callable[[], list[str]]
) -> None:
    path = case.write(Path.cwd())
    before = untouched()
    assert outcome(path, guarded=case.guarded) == case.expected
    assert untouched() == before
    assert not list(Path("/tmp").glob(Path(ELSEWHERE).name + "*"))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False and Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3


def test_the_payload_would_leave_a_trace() -> None:
    pickle.loads(PICKLED).close()
    assert os.listdir() == [HARM]


@named([case for case in IMAGES if case.like])
def test_data_around_the_pixels_does_not_change_them(case: Case) -> None:
    assert case.like
    assert prepare(case.content(), RULE, LIMITS) == prepare(case.like(), RULE, LIMITS)


def test_the_names_of_cases_differ_and_their_codes_exist() -> None:
    cases = [*IMAGES, *SHARDS, *TABLES]
    assert len({case.name for case in cases}) == len(cases)
    said = {code.split()[0] for case in cases for code in case.expected.split(", ")}
    assert said <= {OK, REFUSED, *FAILURE_CODES}
    assert len(said) > 15


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("cases", [IMAGES, SHARDS, TABLES], ids=["images", "shards", "tables"])
def test_a_whole_run_over_all_of_them_balances(cases: list[Case], tmp_path: Path) -> None:
    chosen = [case for case in cases if not case.guarded and case.expected != REFUSED]
    written = {str(case.write(tmp_path / "input")): case for case in chosen}
    document = demo_recipe([tmp_path / "input"], tmp_path / "out") | {"model": {"source": "stub"}}
    balance = pipeline.run(
        caption_job(parse(document | {"prepare": {"max_pixels": 20_000}, "failures": {"max_fraction": 1}}))
    )
    rows = rows_of(tmp_path / "out") + rows_of(tmp_path / "out", "failed")
    assert balance.balanced and (tmp_path / "out" / "_SUCCESS").exists()
    assert len(rows) == balance.finished + balance.failed == len({row["id"] for row in rows})
    expected = {path: counted(case.expected) for path, case in written.items()}
    by_unit = {row["unit"]: row["source"] for row in rows if row["source"] in written}
    found = {path: Counter[str]() for path in written}
    for row in rows:
        found[row["source"] if row["source"] in written else by_unit[row["unit"]]][row.get("code") or OK] += 1
    assert found == expected


def counted(expected: str) -> Counter[str]:
    """How often each outcome comes in `ok x2, truncated_unit`."""
    counts = Counter[str]()
    for part in expected.split(", "):
        code, _, times = part.partition(" x")
        counts[code] += int(times or 1)
    return counts
