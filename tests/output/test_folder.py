"""An output folder: its contents at the start, the advice of refusals, and the mark of a complete output."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray import pipeline, plan, sources
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.commands.plan import overview
from caprl_ray.errors import LedgerUnbalanced, RecipeError, SystemFailure
from caprl_ray.job import Job
from caprl_ray.output import fence, lease, verdict
from caprl_ray.output.counts import Counts
from caprl_ray.output.extension import GONE
from caprl_ray.output.folder import Output
from caprl_ray.output.ledger import Ledger, UnitLedger
from caprl_ray.plan import Planning
from caprl_ray.recipe.input import Columns
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.output import Failures
from caprl_ray.storage import Storage, join


def job(folder: Path, output: str | None = None, input: list[str] | None = None, **model: Any) -> Job:
    (folder / "in").mkdir(exist_ok=True)
    if not (folder / "in" / "a.jpg").exists():
        (folder / "in" / "a.jpg").touch()
    document = demo_recipe([folder / "in"], folder / "out") | {"model": {"source": "embedded"} | model}
    document["output"]["path"] = output or document["output"]["path"]
    document["input"]["paths"] = input or document["input"]["paths"]
    return caption_job(parse(document))


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


def test_another_recipe_for_an_old_plan_must_fit_its_columns(tmp_path: Path) -> None:
    first = job(tmp_path)
    table = pa.table({"image": [b"x"], "captions": ["theirs"], "previous": ["theirs"]})
    pq.write_table(table, tmp_path / "in.parquet")
    recipe = first.recipe.model_copy(update={"input": first.recipe.input.model_copy(update={"paths": ["in.parquet"]})})
    whole = replace(plan.EMPTY, columns=table.schema.remove(0))
    opened = Output.open(replace(first, recipe=recipe))
    opened.check_columns(whole)  # older versions had no column `previous` of ours
    with pytest.raises(RecipeError, match="has a column previous, a name that the output needs"):
        replace(opened, again=True).check_columns(whole)
    several = recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"n": 2})})
    with pytest.raises(RecipeError, match="has a column captions, a name that the output needs"):
        replace(opened, job=caption_job(several)).check_columns(whole)
    asking = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"user": "{alt}?"})})
    with pytest.raises(RecipeError, match="alt} names a column that the input does not have"):
        replace(opened, job=caption_job(asking)).check_columns(whole)


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


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("in", "is the input itself; name another folder, such as .*/in/captions"),
        ("", "holds the input .*/in; name another folder"),
        ("theirs", r"has files that no run has written, such as notes/a\.txt; name an empty or a new folder"),
        ("s3://bucket/", "is a whole bucket or disk; name a folder in it, such as s3://bucket/captions"),
        ("/", "is a whole bucket or disk"),
    ],
)
def test_an_output_has_a_folder_of_its_own(tmp_path: Path, out: str, said: str) -> None:
    (tmp_path / "theirs" / "notes").mkdir(parents=True)
    (tmp_path / "theirs" / "notes" / "a.txt").touch()
    place = out if out.startswith(("s3:", "/")) else str(tmp_path / out)
    with pytest.raises(RecipeError, match=f"output.path: .*{said}"):
        Output.open(job(tmp_path, output=place))


def test_an_output_inside_the_input_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Output.open(job(tmp_path, output=str(tmp_path / "in" / "captions")))
    assert inside.notes == (f"output.path lies in the input {tmp_path}/in; its own files are no input",)
    assert Output.open(job(tmp_path)).notes == ()
    monkeypatch.chdir(tmp_path / "in")
    assert Output.open(job(tmp_path, input=["*.jpg"])).notes == ()
    assert "lies in the input *.jpg" in Output.open(job(tmp_path, str(tmp_path / "in" / "o"), ["*.jpg"])).notes[0]


def test_a_refused_recipe_leaves_no_folder(tmp_path: Path) -> None:
    empty = job(tmp_path, output=str(tmp_path / "new" / "out"))
    (tmp_path / "in" / "a.jpg").unlink()
    with pytest.raises(RecipeError, match=r"input\.paths"):
        pipeline.run(empty)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_another_input_is_refused_and_an_extension_adds_it(tmp_path: Path) -> None:
    Output.open(job(tmp_path)).plan()
    for same in (f"{tmp_path}/in/", f"{tmp_path}/in/../in", (tmp_path / "in").as_uri()):
        Output.open(job(tmp_path, input=[same]))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.jpg").touch()
    more = job(tmp_path, input=[str(tmp_path / "in"), str(tmp_path / "more")])
    with pytest.raises(RecipeError, match=rf"holds the plan of {tmp_path}/in, and not of {tmp_path}/more; --extend"):
        Output.open(more)
    assert Output.open(more, adopt=["input.paths"]).adopted == {"input.paths": [str(tmp_path / "in")]}
    assert len(Output.open(more, extend=True).plan().units) == 2
    assert Output.open(more).notes == ()
    assert "the output's plan also holds" in Output.open(job(tmp_path)).notes[0]


def test_an_extension_that_was_killed_before_its_first_part_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deadly(*_: Any) -> None:
        raise KeyboardInterrupt

    Output.open(job(tmp_path)).plan()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.jpg").touch()
    more = job(tmp_path, input=[str(tmp_path / "in"), str(tmp_path / "more")])
    monkeypatch.setattr(plan, "store", deadly)
    with pytest.raises(KeyboardInterrupt):
        Output.open(more, extend=True).plan()
    monkeypatch.undo()
    assert len(Output.open(job(tmp_path)).plan().units) == 1
    assert len(Output.open(more).plan().units) == 2


def test_no_other_numbering_of_rows_is_adopted(tmp_path: Path) -> None:
    def older(name: str, **input: Any) -> Job:
        """An output of the version that numbered otherwise, and its job."""
        ours = job(tmp_path, output=str(tmp_path / f"out-{name}"), input=[str(tmp_path / name)])
        ours = with_input(ours, **input)
        Output.open(ours).plan()
        run = tmp_path / f"out-{name}" / "run.json"
        content = json.loads(run.read_text())
        content["fingerprint"].pop("numbering", None)
        content["fingerprint"]["version.caprl_ray"] = "0.1.0"
        run.write_text(json.dumps(content))
        return ours

    (tmp_path / "0.tar").write_bytes(b"x")
    pq.write_table(pa.table({"x": [[b"1"]]}), tmp_path / "a.parquet")
    adopt = ["version.caprl_ray"]
    shards = older("0.tar")
    with pytest.raises(RecipeError, match=r"holds shards, .* numbered differently; .* into a new output\.path"):
        Output.open(shards, adopt)
    with pytest.raises(RecipeError, match="holds shards"):
        Output.open(shards, [*adopt, "numbering"])
    assert Output.open(older("in"), adopt).adopted == {"version.caprl_ray": "0.1.0"}
    lists = older("a.parquet", image_column="x[*]")
    assert Output.open(lists, adopt).planned
    with pytest.raises(RecipeError, match=r"input\.image_column was 'x\[\*\]' and is 'x', which numbers"):
        Output.open(with_input(lists, image_column="x"), [*adopt, "input.image_column"])


def with_input(of: Job, **input: Any) -> Job:
    """The same job with other fields of the input."""
    return caption_job(of.recipe.model_copy(update={"input": of.recipe.input.model_copy(update=input)}))


def test_a_complete_plan_is_compared_under_the_names_of_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"1"], "text": ["a"], "n": [1]}), tmp_path / "a.parquet")
    renamed = {"rename": {"text": "title"}, "columns": Columns(drop=["n"])}
    for number, settings in enumerate([renamed, {"columns": Columns(drop=["text", "n"])}]):
        ours = job(tmp_path, output=str(tmp_path / f"out-{number}"), input=[str(tmp_path / "a.parquet")])
        ours = with_input(ours, **settings)
        Output.open(ours).plan()
        assert overview(ours.recipe).differences == ()
        assert len(Output.open(ours, extend=True).plan().units) == 1


def test_an_extension_says_what_is_gone_and_what_was_touched(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "bcd":
        (tmp_path / "in" / f"{name}.jpg").write_bytes(b"1")
    Output.open(job(tmp_path)).plan()
    (tmp_path / "in" / "b.jpg").unlink()
    os.utime(tmp_path / "in" / "c.jpg", (1, 1))
    (tmp_path / "in" / "d.jpg").write_bytes(b"22")
    (tmp_path / "in" / "e.jpg").touch()
    planning, said = Planning(), overview(job(tmp_path).recipe).differences
    Output.open(job(tmp_path), extend=True).plan(planning)
    assert said[0] == "new in the input: 1 units of files with 1 images; caption --extend adds them"
    assert tuple(planning.notes) == said[1:]
    gone, touched, changed = said[1:]
    assert "b.jpg) is gone" in gone and "c.jpg) has another time" in touched and "d.jpg) has another size" in changed


def test_the_limit_holds_for_all_rows_and_what_was_accepted_stays_accepted() -> None:
    def ledger(finished: int, failed: int, missing: int = 0) -> Ledger:
        unit = UnitLedger(unit=0, planned=finished + failed, finished=finished, failed=failed, duplicate=0)
        return Ledger(units=[unit], done="captioned", counts=Counts(codes=Counter({"source_missing": missing})))

    limits = Failures()
    said = verdict.over(ledger(2, 1), limits)
    assert said and said.startswith("failures.max_fraction: 1 of 3 images failed, more than 0.25 allows")
    assert not verdict.over(ledger(3, 1), limits) and not verdict.over(ledger(0, 9), Failures(max_fraction=1))
    assert not verdict.over(ledger(0, 30), limits, 30, 30)  # accepted with another limit, and retried in vain
    assert not verdict.over(ledger(70, 40), limits, 30, 30)
    assert verdict.over(ledger(7, 33), limits, 30, 30)
    assert not verdict.over(ledger(7, 3, missing=3), limits, ignored=GONE)
