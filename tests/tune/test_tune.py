"""`caprl-ray tune`: settings are measured by replicas of their own, and the fastest is written to be merged."""

import dataclasses
import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from caprl_ray import cli
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.engines.protocol import EngineDied
from caprl_ray.engines.stub import EXIT
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.load import load, parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.tune import run, settings
from caprl_ray.tune.measuring import OutOfTime, Seen, failure
from caprl_ray.tune.outcome import Outcome
from caprl_ray.tune.replica import DiedStarting
from caprl_ray.tune.search import Found
from caprl_ray.tune.state import Measurement, State

# The stub answers through a process of its own, row by row, or at once.
SLOW, FAST = ({"model": {"engine": {"distributed_executor_backend": name}}} for name in ("mp", "uni"))
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "fast": (FAST, ""),
    "starts not": ({"quality": {"checks": {"nowhere:check": "keep"}}}, ""),
    "dies": ({"prompt": {"user": EXIT}}, ""),
    "other words": (FAST | {"prompt": {"user": "Other words."}}, "another prompt"),
}


SEEN = Seen(
    start_s=1, first_caption_s=1, finished=[(0, 0, 0), (1, 8, 80)], greedy=["a"], loads=[], arguments={}, failed={}
)


def offered(recipe: Recipe, model: ModelRef, arguments: dict[str, Any]) -> list[settings.Setting]:
    assert arguments == SLOW["model"]["engine"], "those of the engine that was measured"
    return [
        settings.Setting(
            name=name,
            knobs=frozenset([name]),
            changes=changes,
            recipe=settings.with_changes(recipe, changes),
            captions=("prompt.user",) if note else (),
            note=note,
        )
        for name, (changes, note) in OTHERS.items()
    ]


def questions() -> str:
    """A recipe that scores: of two questions about each of half of the images, other words answer one."""
    names = sorted(path.name for path in Path("images/files").iterdir())[::2]
    rows = [
        {"key": name, "question": f"Which: {right}?", "choices": [right, "nothing of it"], "answer": right}
        for name in names
        for right in ("rgb", "image this")
    ]
    pq.write_table(pa.Table.from_pylist(rows), "questions.parquet")
    score = {"questions": ["questions.parquet"], "join": "key", "rotations": 1}
    document = {"input": {"paths": ["-"]}, "output": {"path": "-"}, "score": score}
    Path("s.yaml").write_text(yaml.safe_dump(document | {"model": {"source": "stub"}, "replicas": {"gpus": 0}}))
    return "s.yaml"


@pytest.mark.usefixtures("ray_cluster")
def test_the_fastest_setting_is_written_failures_are_rows_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "offered", offered)
    monkeypatch.chdir(tmp_path)
    render_dataset(tmp_path / "images", 80)
    document = demo_recipe([tmp_path / "images" / "files"], tmp_path / "out") | {"prepare": {"max_pixels": 20_000}}
    Path("r.yaml").write_text(yaml.safe_dump(document | {"model": {"source": "stub", **SLOW["model"]}}))
    command = ["tune", "r.yaml", "--minutes", "5", "--seconds", "2", "--gpu-hours-price", "2", "--json"]
    command[2:2] = ["--score", questions()]
    assert cli.main(command) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    rows = {row["setting"]: row for row in found["settings"]}
    assert rows.keys() == {"the recipe", *OTHERS} and found["not_measured"] == []
    fast, recipe = rows["fast"], rows["the recipe"]
    assert found["best"] == "fast" and found["confirmed"] and fast["faster"] and fast["gain_low"] > 1
    assert fast["gain"] == pytest.approx(fast["images_s"] / recipe["images_s"])
    assert fast["per_million"] == pytest.approx(2 * 1e6 / fast["images_s"] / 3600)
    assert (fast["equal"], fast["compared"]) == (40, 40) and recipe["images_s"] < 1 / 0.005
    assert fast["memory_bytes"] > 2**20 and fast["gpu_busy"] is None and fast["first_caption_s"] >= fast["start_s"]
    assert "nowhere" in rows["starts not"]["failure"] and rows["dies"]["failure"] == "its process died"
    assert rows["dies"]["images_s"] is None and rows["other words"]["failure"] == ""
    assert rows["other words"]["may_change"] and rows["other words"]["equal"] == 0
    assert (recipe["score"], rows["other words"]["score"], fast["score"]) == (1.0, 0.5, None), "of what may change"
    assert not (tmp_path / "out").exists(), "of captions nothing is left"

    assert load("r.yaml", ["r-tune/tuned.yaml"]).model.engine == FAST["model"]["engine"]
    assert cli.main(["plan", "r.yaml", "r-tune/tuned.yaml"]) == 0
    text = Path("r-tune/tuned.yaml").read_text()
    assert yaml.safe_load(text) == FAST and "with 40 images" in text
    unwrapped = " ".join(text.replace("#", " ").split())
    assert "0 of 40 greedy captions are equal" in unwrapped
    words = shlex.split(text.splitlines()[-1].removeprefix("# "))
    both = load("r.yaml", ["r-tune/tuned.yaml", *words])
    assert both.prompt.user == "Other words." and both.model.engine == FAST["model"]["engine"], "nothing is lost"

    capsys.readouterr()
    assert cli.main([*command[:-1]]) == 0
    again = capsys.readouterr()
    new = [line for line in again.err.splitlines() if "(from before)" not in line and "there is time" not in line]
    assert len(new) == 1 and "dies: its process died" in new[0]
    assert "fastest: fast: images/s +" in again.out and f"starts not  {rows['starts not']['failure']}" in again.out

    assert cli.main([*command, "prompt.user=Another prompt."]) == 2
    assert "r-tune was measured under other conditions (prompt.user)" in capsys.readouterr().err


def test_a_recipe_that_cannot_be_tuned_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    Path("r.yaml").write_text("input: {paths: [images]}\noutput: {path: out}\n")
    for wrong, said in (
        (["replicas.gpus=64", "model.engine.tensor_parallel_size=64"], "replicas.gpus: 64 for a replica, but this"),
        (["model.endpoint=http://127.0.0.1:9/v1"], "model.endpoint: tune measures engines of this job"),
        (["--minutes", "0"], "--minutes: 0 is not allowed"),
        (["--minutes", "nan"], "--minutes: nan is not allowed"),
        (["--gpu-hours-price", "-1"], "--gpu-hours-price: -1 is no price"),
    ):
        assert cli.main(["tune", "r.yaml", *wrong]) == 2
        assert said in capsys.readouterr().err
    assert not Path("r-tune").exists()


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (ray.exceptions.RayActorError(), 2),
        (ray.exceptions.OutOfMemoryError("full"), 2),
        (EngineDied("gone"), 2),
        (DiedStarting("model.source: x did not start (no memory)."), 2),
        (SystemFailure("model.source: x did not start (seed: no number)."), 1),
        (RecipeError("quality.checks: nowhere is no check."), 1),
    ],
)
def test_failures_that_may_pass_are_measured_once_more_and_others_are_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, tries: int
) -> None:
    tried: list[float] = []

    def measured(*arguments: Any) -> None:
        tried.append(arguments[-1])
        raise ray.exceptions.RayTaskError("measure", "", error) if isinstance(error, EngineDied) else error

    monkeypatch.setattr(run, "measured", measured)
    recipe = parse({"input": {"paths": ["x"]}, "output": {"path": "y"}})
    setting = settings.Setting(name="dies", knobs=frozenset(), changes=FAST, recipe=recipe)
    sample = SimpleNamespace(machine={})
    for _ in range(4):  # as often as the command is given
        with State(tmp_path / "tune") as state:
            assert run._measure(state, sample, setting, 1.0, 90.0).failure  # type: ignore[arg-type]
    assert len(tried) == tries


def test_measurements_of_different_machines_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measured", lambda *_: SEEN)
    recipe = parse({"input": {"paths": ["x"]}, "output": {"path": "y"}})
    one, two = (settings.Setting(name=n, knobs=frozenset(), changes=FAST, recipe=recipe) for n in "ab")
    here = {"machine.cores": 8, "machine.gpus": ["NVIDIA H200"] * 2}
    with State(tmp_path / "tune") as state:
        assert not run._measure(state, SimpleNamespace(machine=here), one, 1.0, 90.0).failure  # type: ignore[arg-type]
    with State(tmp_path / "tune") as state:
        there = SimpleNamespace(machine=here | {"machine.gpus": ["NVIDIA L4"]})
        with pytest.raises(RecipeError, match="on 2 x NVIDIA H200 and 8 cores, and this replica has 1 x NVIDIA L4 and"):
            run._measure(state, there, two, 1.0, 90.0)  # type: ignore[arg-type]
        assert state.load("a", 1.0) and not state.load("b", 1.0) and state.machine == here


def test_a_tune_without_time_for_settings_says_how_many_minutes_are_enough(tmp_path: Path) -> None:
    recipe = parse({"input": {"paths": ["x"]}, "output": {"path": "y"}})
    one, two = (settings.Setting(name=n, knobs=frozenset([n]), changes=FAST, recipe=recipe) for n in "ab")
    first = Measurement.of(settings.default(recipe), 10.0, 110.0, SEEN, {})
    # Two starts, the combination's, and 10 s of each: 330 s, of which 100 s are left.
    assert run._plan([one, two], first, 10.0, 4.0, 100.0).endswith("are left; for all of them give --minutes 8")
    assert run._plan([one, two], first, 10.0, 8.0, 340.0).endswith("the 5.7 minutes that are left")

    default = settings.default(recipe)
    found = Found(default=default, results={default.name: (default, first, 10.0)}, left=[one, two])
    said = Outcome(recipe=recipe, path="r.yaml", folder=tmp_path, found=found, price=None, images=8).summary()
    assert "there was time to measure the recipe only; give more --minutes" in said and said.endswith(": a, b")

    found.results["a"], found.best = (
        (one, dataclasses.replace(first, setting="a", finished=[(0, 0, 0), (1, 16, 9)]), 10.0),
        one,
    )
    once = Outcome(recipe=recipe, path="r.yaml", folder=tmp_path, found=found, price=None, images=8)
    assert "images/s +100.0%, not measured a second time" in " ".join(once.file().replace("#", "").split())


def test_only_faults_of_a_setting_are_failures_of_it() -> None:
    assert failure(OutOfTime(), 90) == "not measured within 90 s"
    assert failure(ZeroDivisionError(), 90) is None, "a fault of this program is raised"


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(1600)
def test_settings_of_the_real_engine_write_what_the_recipe_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One setting of each table, so that the test ends long before its minutes, unless the machine is very busy."""
    all_offered, wanted = settings.offered, {"max_num_seqs=64", "dtype=bfloat16"}
    monkeypatch.setattr(settings, "offered", lambda *about: [one for one in all_offered(*about) if one.name in wanted])
    monkeypatch.chdir(tmp_path)
    render_dataset(tmp_path / "images", 300)
    Path("r.yaml").write_text(yaml.safe_dump(demo_recipe([tmp_path / "images" / "files"], tmp_path / "out")))
    assert cli.main(["tune", "r.yaml", "--minutes", "25", "--seconds", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    measured = {row["setting"]: row for row in found["settings"] if not row["failure"]}
    assert measured.keys() == wanted | {"the recipe"} and not found["not_measured"]
    for row in measured.values():
        assert row["images_s"] > 1 and row["tokens_s"] > row["images_s"]
        assert row["may_change"] or row["equal"] == row["compared"] == 64
