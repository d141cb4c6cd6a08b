"""All that watch a run in the driver ask the counter together."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from caprl_ray.watch import look
from caprl_ray.watch.counter import Counter
from caprl_ray.watch.look import Look
from caprl_ray.watch.starts import MAIN


class Handle:
    """The counter in this process, which answers slowly or not at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counter, self.asked, self.error = Counter(), 0, False
        self.seen = SimpleNamespace(remote=lambda least: least)
        monkeypatch.setattr(ray, "get", self._get)

    def _get(self, least: dict[str, int], timeout: float) -> Any:
        self.asked += 1
        time.sleep(0.2)
        if self.error:
            raise ray.exceptions.GetTimeoutError
        return self.counter.seen(least)


def test_those_who_look_at_the_same_time_ask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "FRESH_S", 3600.0)
    handle = Handle(monkeypatch)
    looks = Look(handle, {MAIN: 2, "score": 1})  # type: ignore[arg-type]
    threads = [threading.Thread(target=looks) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert handle.asked == 1
    assert set(looks().pools) == set(looks().absent) == {MAIN, "score"} and looks().pools[MAIN].short_s > 0
    assert handle.asked == 1 and not looks().notes
    handle.counter.note("a node is full")
    assert looks(fresh=True).notes == looks().notes == ["a node is full"], "the last look of a run is new"
    assert handle.asked == 2
    monkeypatch.setattr(look, "FRESH_S", 0.0)
    looks()
    assert handle.asked == 3


def test_a_counter_that_does_not_answer_is_waited_for_once_and_then_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(look, "FRESH_S", 3600.0)
    handle = Handle(monkeypatch)
    looks, failed, handle.error = Look(handle, {}), list[bool](), True  # type: ignore[arg-type]

    def ask() -> None:
        try:
            looks()
        except ray.exceptions.RayError:
            failed.append(True)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == 5 and handle.asked == 1
    handle.error = False
    assert looks(fresh=True).doubtful == 0
