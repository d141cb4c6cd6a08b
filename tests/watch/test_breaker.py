"""A run in which too many rows fail stops, says why, and keeps what it has."""

from pathlib import Path

import pytest

from caprl_ray import pipeline
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.errors import TooManyFailures
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Failures, Replicas
from caprl_ray.watch.breaker import tripped, without_replica

LIMITS = Failures(max_fraction=0.25, min_rows=100)


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
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    allowed = parse(document | {"failures": {"max_fraction": 1}})
    balance = pipeline.run(caption_job(allowed))
    assert balance.balanced and balance.failed == 2_000
