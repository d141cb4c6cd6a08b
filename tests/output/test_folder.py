"""An output folder: what may be in it at the start, what a refusal recommends, and when it is marked as complete."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray import pipeline, sources
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.errors import LedgerUnbalanced, RecipeError, SystemFailure
from caprl_ray.job import Job
from caprl_ray.output import fence, lease
from caprl_ray.output.folder import Output
from caprl_ray.output.ledger import Ledger, UnitLedger
from caprl_ray.recipe.load import parse
from caprl_ray.storage import Storage, join


def job(folder: Path, **model: Any) -> Job:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / "a.jpg").touch()
    return caption_job(parse(demo_recipe([folder / "in"], folder / "out") | {"model": {"source": "embedded"} | model}))


@pytest.mark.parametrize("name", ["data/train-00000.parquet", "failed/0.parquet"])
def test_somebody_elses_parquet_is_not_taken_for_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"text": ["theirs"]}), path)
    with pytest.raises(RecipeError, match=rf"has parquet files in {name.partition('/')[0]}/ that no run has written"):
        Output.open(job(tmp_path))


def test_every_field_that_a_refusal_names_can_be_adopted(tmp_path: Path) -> None:
    Output.open(job(tmp_path, engine={"max_model_len": 512})).plan()
    without = job(tmp_path)
    with pytest.raises(RecipeError, match=r"model\.engine\.max_model_len was 512 and is None"):
        Output.open(without)
    output = Output.open(without, adopt=["model.engine.max_model_len"])
    assert output.adopted == {"model.engine.max_model_len": 512}
    output.plan()
    assert Output.open(without).adopted == {}


def test_no_part_of_a_plan_is_stored_after_another_run_took_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, out = sources.plan_units, str(tmp_path / "out")

    def lost_meanwhile(*arguments: Any) -> Iterator[Any]:
        yield from listed(*arguments)
        Storage().put(join(out, lease.NAME), b"{}")

    monkeypatch.setattr(sources, "plan_units", lost_meanwhile)
    with pytest.raises(SystemFailure, match="no longer held by this run"), lease.held(Storage(), out) as own:
        Output.open(job(tmp_path), (), own).plan()
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_recipe_is_refused_too_if_another_began_the_output_just_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look at the output and the lease."""
    ours, theirs = job(tmp_path), job(tmp_path, engine={"max_model_len": 512})

    def meanwhile(*_: object) -> int:
        Output.open(theirs).plan()
        return 0

    monkeypatch.setattr(fence, "highest", meanwhile)
    with pytest.raises(RecipeError, match=r"belongs to another recipe: model\.engine\.max_model_len was 512"):
        pipeline.run(ours)
    monkeypatch.undo()
    assert Output.open(theirs).planned


def test_values_that_json_does_not_know_are_the_same_in_the_next_run(tmp_path: Path) -> None:
    import datetime

    dated = replace(job(tmp_path), fingerprint={"model.engine.date": datetime.date(2026, 1, 2)})
    Output.open(dated).plan()
    assert Output.open(dated).planned


def test_the_mark_of_a_complete_output_goes_when_rows_are_missing(tmp_path: Path) -> None:
    output = Output.open(job(tmp_path))
    output.plan()
    unit = UnitLedger(unit=0, planned=1, finished=1, failed=0, duplicate=0)
    mark = tmp_path / "out" / "_SUCCESS"
    output.finish(Ledger(units=[unit], done="captioned"), limited=False)
    assert mark.exists()
    with pytest.raises(LedgerUnbalanced, match="1 missing"):
        output.finish(Ledger(units=[replace(unit, finished=0)], done="captioned"), limited=False)
    assert not mark.exists()
