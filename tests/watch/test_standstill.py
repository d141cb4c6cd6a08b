"""A run whose input was still being listed when it began is watched once its rows are expected."""

import time
from pathlib import Path

import pytest

from caprl_ray.caption.job import caption_job
from caprl_ray.cluster import resources, session
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.errors import CaprlError
from caprl_ray.recipe.load import parse
from caprl_ray.watch import standstill
from caprl_ray.watch.counter import Counter
from caprl_ray.watch.look import Look
from caprl_ray.watch.standstill import Standstill, StandstillGuard


def test_time_counts_from_when_rows_are_expected_and_from_each_row() -> None:
    still = Standstill()
    assert [still.seconds(0, now) for now in (0, 1e6)] == [0, 0]  # the input is still being listed
    still.expect(100)
    assert [still.seconds(0, now) for now in (100, 160)] == [0, 60]
    assert [still.seconds(5, now) for now in (170, 175)] == [0, 5]


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_stands_still_after_its_input_was_listed_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standstill, "POLL_S", 0.1)
    monkeypatch.setattr(session, "NO_PROGRESS_S", 1 - 3600)  # replicas.wait_s is 3600
    job = caption_job(parse(demo_recipe([tmp_path], tmp_path / "out") | {"model": {"source": "stub"}}))
    stopped: list[CaprlError] = []
    look = Look(resources.beside_driver(Counter), {})
    with StandstillGuard(look, job, stopped.append) as guard:
        time.sleep(2)
        assert not stopped
        guard.expect_rows()
        until = time.monotonic() + 30
        while not stopped and time.monotonic() < until:
            time.sleep(0.1)
    assert "nothing was read, prepared, captioned or written for longer than" in str(stopped[0])
