"""An input that takes long to list: engines start meanwhile, and what it turns out to be is still what counts."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from caprl_ray import pipeline, sources
from caprl_ray.caption import job
from caprl_ray.caption.job import caption_job
from caprl_ray.caption.stage import Captioner
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.errors import Abandoned, RecipeError
from caprl_ray.output.folder import Output
from caprl_ray.plan import Plan, Planning
from caprl_ray.read import while_planning
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from tests.expected import expected_caption

pytestmark = pytest.mark.usefixtures("ray_cluster")
IMAGES = 40
READY = ""  # the file that a replica writes when its engine has started


class NotedCaptioner(Captioner):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        Path(READY).touch()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    render_dataset(folder, IMAGES)
    return folder


@pytest.fixture
def recipe(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose input is listed only when an engine has started."""
    monkeypatch.setitem(globals(), "READY", str(tmp_path / "ready"))
    monkeypatch.setattr(job, "Captioner", NotedCaptioner)
    monkeypatch.setattr(while_planning, "HEAD_START_S", 0.1)
    listed = sources.plan_units

    def slow(*arguments: Any) -> Iterator[Any]:
        until = time.monotonic() + 60
        while not Path(READY).exists():
            assert time.monotonic() < until, "no engine was started while the input was listed"
            time.sleep(0.05)
        yield from listed(*arguments)

    monkeypatch.setattr(sources, "plan_units", slow)
    document = demo_recipe([images / "files", images / "shards"], tmp_path / "out")
    return parse(document | {"model": {"source": "stub"}, "prepare": {"max_pixels": 20_000}})


def test_engines_start_while_a_long_input_is_listed(recipe: Recipe, tmp_path: Path) -> None:
    assert pipeline.run(caption_job(recipe), limit=10).finished == 10
    balance = pipeline.run(caption_job(recipe))
    assert balance.balanced and balance.finished == IMAGES
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert len({(row["unit"], row["index"]) for row in rows}) == len(rows) == IMAGES
    files = [row for row in rows if not row["source"].endswith(".tar")]
    assert all(row["caption"] == expected_caption(Path(row["source"]).read_bytes(), recipe) for row in files)


def test_what_is_wrong_with_a_long_input_ends_the_run_in_its_own_sentence(
    recipe: Recipe, images: Path, tmp_path: Path
) -> None:
    wrong = recipe.model_copy(update={"input": recipe.input.model_copy(update={"paths": [str(tmp_path / "nothing")]})})
    with pytest.raises(RecipeError, match=r"nothing was found at .*/nothing"):
        pipeline.run(caption_job(wrong))
    assert Path(READY).exists() and not list((tmp_path / "out").rglob("*.parquet"))
    assert pipeline.run(caption_job(recipe)).balanced


def test_a_plan_that_nobody_waits_for_any_more_is_not_stored(images: Path, tmp_path: Path) -> None:
    recipe = parse(demo_recipe([images / "files"], tmp_path / "out"))
    output = Output.open(caption_job(recipe))

    over = threading.Event()

    def make(planning: Planning) -> Plan:
        assert over.wait(10)
        return output.plan(planning)

    with while_planning.begun(make) as underway:
        assert not underway.plan.done()
    over.set()  # the answer that nobody waited for
    assert isinstance(underway.plan.exception(timeout=10), Abandoned)
    assert not list((tmp_path / "out").rglob("*.parquet"))
