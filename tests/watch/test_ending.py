"""How long a stopped run has. That it commits what is finished: tests/faults/test_driver_deaths.py."""

import signal

import pytest

from caprl_ray.recipe.load import parse
from caprl_ray.watch.ending import STOP_WAIT, SUBMITTED, grace_s


def test_a_submitted_job_has_no_longer_than_ray_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse({"input": {"paths": ["-"]}, "output": {"path": "-", "stop_s": 20}})
    monkeypatch.delenv(SUBMITTED, raising=False)
    monkeypatch.delenv(STOP_WAIT, raising=False)
    assert grace_s(recipe, signal.SIGINT) == grace_s(recipe, signal.SIGTERM) == 20
    monkeypatch.setenv(SUBMITTED, "{}")
    assert grace_s(recipe, signal.SIGTERM) == 3 and grace_s(recipe, signal.SIGINT) == 20
    for given, seconds in (("15", 15), ("60", 20), ("soon", 3)):
        monkeypatch.setenv(STOP_WAIT, given)
        assert grace_s(recipe, signal.SIGTERM) == seconds
