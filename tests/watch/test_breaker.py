"""A run in which too many rows fail stops, says why, and keeps what it has."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray import pipeline
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.errors import TooManyFailures
from caprl_ray.output.where import Condition
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.output import Failures
from caprl_ray.recipe.replicas import Replicas
from caprl_ray.recipe.sections import Recipe
from caprl_ray.rows.schema import row_schema
from caprl_ray.watch import breaker
from caprl_ray.watch.breaker import HELD_OVER_MIN, RETRIED, SCORED_AGAIN, UNSCORED, allowance, tripped, without_replica
from caprl_ray.watch.counted import counted
from caprl_ray.watch.counter import Counter

LIMITS = Failures(max_fraction=0.25, min_rows=100)
DEFAULTS = Failures()


@pytest.mark.parametrize(
    ("rows", "failed", "stops"),
    [
        (99, 99, False),
        (100, 25, False),
        (100, 26, True),
        (10_000, 2_500, False),
        (10_000, 2_501, True),
        (100, 0, False),
    ],
)
def test_the_limits_are_those_of_the_recipe(rows: int, failed: int, stops: bool) -> None:
    assert (tripped(rows, {"image_corrupt": failed}, LIMITS) is not None) == stops


def test_no_failure_at_all_may_be_allowed_and_any_number() -> None:
    assert tripped(1, {"image_corrupt": 1}, Failures(max_fraction=0, min_rows=1))
    assert not tripped(5, {"image_corrupt": 5}, Failures(max_fraction=1, min_rows=1))


def test_a_run_waits_for_a_replica_as_long_as_the_recipe_says() -> None:
    pinned = Replicas(wait_s=20, accelerator_type="L40S")
    assert without_replica(20, pinned) is None
    assert "no node had room for a replica (1 L40S GPUs) for 20 seconds" in str(without_replica(20.1, pinned))


def test_the_top_reasons_are_said_in_one_sentence() -> None:
    error = tripped(100, {"a": 1, "b": 30, "c": 2, "d": 40}, LIMITS)
    assert "(d 40, b 30, c 2)" in str(error) and "\n" not in str(error)


def test_captions_without_scores_are_no_failed_rows_and_are_captioned_or_scored_again() -> None:
    error = tripped(100, {"answer_unclear": 30, "engine_crash": 1}, LIMITS, of=UNSCORED, afterwards=SCORED_AGAIN)
    assert "31 of the first 100 captions" in str(error) and "--retry-failed" not in str(error)
    told = re.search(r'--again "(.*)"', str(error))
    assert told
    rows = pa.table({"score_code": ["answer_unclear", "no_questions", None, "engine_crash"]})
    assert Condition(text=told[1], schema=rows.schema).of(rows).tolist() == [True, False, False, True]


def test_a_last_shard_may_fail_whole_if_the_output_holds_good_rows() -> None:
    spare = allowance(10_000_000, 100_000, DEFAULTS)
    assert tripped(10_000, {"image_corrupt": 10_000}, DEFAULTS)
    assert not tripped(10_000, {"image_corrupt": 10_000}, DEFAULTS, spare)


def test_a_system_that_broke_is_noticed_however_much_the_output_holds() -> None:
    spare = allowance(10**9, 0, DEFAULTS)
    soon = HELD_OVER_MIN * DEFAULTS.min_rows // 2
    assert tripped(soon, {"engine_rejected": soon}, DEFAULTS, spare)


@pytest.mark.parametrize("failed", [0, 250, 1_000])
def test_failures_of_earlier_runs_take_nothing_from_a_run_that_goes_well(failed: int) -> None:
    spare = allowance(1_000, failed, LIMITS)
    assert not tripped(100, {"image_corrupt": 25}, LIMITS, spare)
    # While the earlier runs stayed within the limit, it holds for all rows together.
    together = (failed + 400) / (1_000 + 1_000) if failed <= 250 else 400 / 1_000
    assert bool(tripped(1_000, {"image_corrupt": 400}, LIMITS, spare)) == (together > LIMITS.max_fraction)


class Direct:
    """The counter without Ray: a call as an actor's method has."""

    def __init__(self) -> None:
        self.counter = Counter()

    @property
    def add(self) -> "Direct":
        return self

    def remote(self, *arguments: object) -> None:
        self.counter.add(*arguments)  # type: ignore[arg-type]


def finished(*rows: tuple[str | None, str | None]) -> pa.Table:
    """Rows by the code that they failed with before this run, and their code now."""
    schema = row_schema(pa.schema([]))
    return pa.Table.from_pylist(
        [dict.fromkeys(schema.names) | {"failed_before": before, "code": code} for before, code in rows], schema=schema
    )


def test_retried_rows_are_counted_apart_and_those_that_fail_as_before_not_at_all() -> None:
    direct = Direct()
    counted(finished((None, None), (None, "image_mode")), direct)
    counted(finished((None, None), ("image_corrupt", "image_corrupt"), ("image_corrupt", "engine_crash")), direct)
    counted(finished(("source_missing", None), ("source_missing", "source_missing")), direct)
    counter = direct.counter
    new, retried = counter.judged()
    assert new == (3, {"image_mode": 1})
    assert retried == (2, {"engine_crash": 1})
    assert counter.rows == 7 and counter.failed == {
        "image_mode": 1,
        "image_corrupt": 1,
        "engine_crash": 1,
        "source_missing": 1,
    }


def test_rows_that_the_recipe_wants_to_fail_count_neither_as_failed_nor_as_processed() -> None:
    direct = Direct()
    counted(finished((None, "placeholder"), (None, "placeholder"), (None, "image_mode"), (None, None)), direct)
    counted(
        finished(("image_corrupt", "placeholder"), ("placeholder", "placeholder"), ("source_missing", None)), direct
    )
    new, retried = direct.counter.judged()
    assert new == (2, {"image_mode": 1})
    assert retried == (1, {})
    assert direct.counter.failed["placeholder"] == 4


def test_retried_rows_that_all_fail_for_a_new_reason_stop_the_run() -> None:
    error = tripped(1_200, {"engine_rejected": 1_150}, DEFAULTS, of=RETRIED)
    assert "of 1200 retried rows that did not fail as before, 1150 failed for another reason" in str(error)


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_full_of_bad_images_stops_early_with_exit_3(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(2_000):
        (tmp_path / "images" / f"{number:05d}.jpg").write_bytes(b"<html>not found</html>")
    document = demo_recipe([tmp_path / "images"], tmp_path / "out") | {"model": {"source": "stub"}}
    document["output"]["rows_per_object"] = 64
    recipe = parse(document | {"failures": {"min_rows": 50}})
    with pytest.raises(TooManyFailures, match=r"image_format \d+\)") as caught:
        pipeline.run(caption_job(recipe))
    assert caught.value.exit_code == 3
    counted = int(re.search(r"(\d+) of the first", str(caught.value))[1])  # type: ignore[index]
    assert counted <= len(pq.read_table(tmp_path / "out" / "failed"))  # what was read by then is written
    assert re.search(r"Failed rows: \S+/0\d+\.jpg: image_format", str(caught.value))
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    allowed = parse(document | {"failures": {"max_fraction": 1}})
    balance = pipeline.run(caption_job(allowed))
    assert balance.balanced and balance.failed == 2_000


def bad_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:05d}.jpg").write_bytes(b"<html>not found</html>")
    return folder


@pytest.mark.usefixtures("ray_cluster")
def test_a_retry_of_rows_that_fail_again_is_not_stopped_and_a_broken_system_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is shorter than a poll: the check at its end decides."""
    monkeypatch.setattr(breaker, "POLL_S", 3600.0)
    images = bad_images(tmp_path / "images", 120)

    def recipe(**limits: float) -> Recipe:
        document = demo_recipe([images], tmp_path / "out") | {"model": {"source": "stub"}}
        return parse(document | {"failures": {"min_rows": 50} | limits})

    with pytest.raises(TooManyFailures, match=r"120 of the first 120 rows failed"):
        pipeline.run(caption_job(recipe()))
    with pytest.raises(
        TooManyFailures, match=r"120 of 120 images failed, .*\(image_format 120\); .*0001.jpg: image_format"
    ):
        pipeline.run(caption_job(recipe()))
    assert pipeline.run(caption_job(recipe(max_fraction=1))).balanced
    retry = {"image_format"}
    again = pipeline.run(caption_job(recipe()), retry=retry)
    assert again.balanced and again.failed == 120
    for path in images.iterdir():
        path.unlink()
    with pytest.raises(
        TooManyFailures, match=r"of 120 retried rows .* 120 failed for another reason, .*source_missing 120"
    ):
        pipeline.run(caption_job(recipe()), retry=retry)
    assert pipeline.run(caption_job(recipe())).balanced
