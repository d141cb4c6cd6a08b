"""How long a stopped run has. That it commits what is finished: tests/faults/test_driver_deaths.py."""

import signal
import time
from typing import Any

import pytest
import ray

from caprl_ray.caption.job import caption_job
from caprl_ray.cluster.signals import Signals
from caprl_ray.errors import Stopped
from caprl_ray.recipe.load import parse
from caprl_ray.watch.ending import STOP_WAIT, SUBMITTED, GracefulEnd, grace_s


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


class Slow:
    """A counter that does not answer."""

    @property
    def stop(self) -> "Slow":
        return self

    def remote(self) -> None:
        pass


def test_a_counter_that_does_not_answer_takes_its_time_from_the_same_grace_period(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def waits(_: object, timeout: float) -> Any:
        time.sleep(timeout)
        raise ray.exceptions.GetTimeoutError

    job = caption_job(
        parse({"input": {"paths": ["-"]}, "output": {"path": "-", "stop_s": 1}, "model": {"source": "embedded"}})
    )
    monkeypatch.setattr(ray, "get", waits)
    signals, stopped, waited = Signals(), list[Stopped](), list[float]()
    signals.asked.set()
    end = GracefulEnd(Slow(), job, signals, stopped.append)
    monkeypatch.setattr(end._ended, "wait", waited.append)
    end._work()
    assert len(stopped) == 1 and waited[0] < 0.5
