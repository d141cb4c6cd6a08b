"""Read workers die in the middle of a page. Only the rows that cannot be read without that page fail."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray import pipeline
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.read import while_planning
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.sources.source import Access
from tests.deadly import DeadlyStorage
from tests.expected import expected_caption
from tests.test_pipeline import rows_of

pytestmark = pytest.mark.usefixtures("ray_cluster")
ROWS, GROUP, FILLED = 60, 10, 8000


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Images with zeros at their end: the pages of a table lie far from the footer, which is read first."""
    folder = tmp_path_factory.mktemp("scenes")
    render_dataset(folder, 2 * ROWS)
    return [path.read_bytes() + bytes(FILLED) for path in sorted((folder / "files").iterdir())]


def recipe_of(tmp_path: Path, images: list[bytes], words: dict[int, bytes]) -> Recipe:
    images = [image + (words[n] + b"!" if n in words else b"") for n, image in enumerate(images)]
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=GROUP, **options)
    document = demo_recipe([tmp_path / "a.parquet"], tmp_path / "out")
    return parse(document | {"model": {"source": "stub"}, "prepare": {"max_pixels": 20_000}})


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where deaths are noted. The input is read from storage whose bytes may kill."""
    path, of = tmp_path / "notes", Access.of

    def deadly(recipe: Recipe, *, images: bool = True) -> Access:
        access = of(recipe, images=images)
        storage = DeadlyStorage.noting(access.storage, str(path))
        return Access(storage=storage, input=access.input, max_bytes=access.max_bytes, images=images)

    path.touch()
    monkeypatch.setattr(Access, "of", deadly)
    return path


def captioned(tmp_path: Path, recipe: Recipe, images: list[bytes]) -> set[int]:
    rows = rows_of(tmp_path / "out")
    assert all(row["caption"] == expected_caption(images[row["index"]], recipe) for row in rows)
    assert len({row["index"] for row in rows}) == len(rows)
    return {row["index"] for row in rows}


@pytest.mark.parametrize("head_start_s", [while_planning.HEAD_START_S, 0])
def test_a_page_that_ends_its_reader_fails_its_row_group_and_the_rest_is_captioned(
    scenes: list[bytes], notes: Path, tmp_path: Path, head_start_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(while_planning, "HEAD_START_S", head_start_s)
    recipe = recipe_of(tmp_path, scenes, {23: b"<segfault>"})
    balance = pipeline.run(caption_job(recipe))
    assert balance.balanced and (balance.finished, balance.failed) == (ROWS - GROUP, GROUP)
    failed = rows_of(tmp_path / "out", "failed")
    assert {row["index"] for row in failed} == set(range(20, 30))
    assert {(row["stage"], row["code"], row["detail"]) for row in failed} == {("read", "read_crash", "SIGSEGV")}
    assert captioned(tmp_path, recipe, scenes) == set(range(ROWS)) - set(range(20, 30))
    assert len(notes.read_text().splitlines()) == 3  # the worker, and two children


def test_a_reader_that_is_killed_once_costs_no_row(scenes: list[bytes], notes: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, scenes, {23: b"<once>"})
    balance = pipeline.run(caption_job(recipe))
    assert balance.balanced and (balance.finished, balance.failed) == (ROWS, 0)
    assert captioned(tmp_path, recipe, scenes) == set(range(ROWS))
    assert Path(f"{notes}.once").exists()
