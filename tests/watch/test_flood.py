"""A thousand replicas that start, warn, die, come back, are sick or cannot start: a few lines, and few messages."""

import threading
import time
from collections import Counter as Counts
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from caprl_ray.cluster import resources
from caprl_ray.errors import SystemFailure
from caprl_ray.replica import start
from caprl_ray.watch.counter import HERE_S, Counter
from caprl_ray.watch.notes import MOST_KINDS, Notes

REPLICAS = 1000


class Handle:
    """The counter in this process in place of its actor, with its calls counted."""

    def __init__(self, counter: Counter) -> None:
        self._counter, self._one = counter, threading.Lock()
        self.calls: Counts[str] = Counts()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *args, **named: self._call(getattr(self._counter, name), *args, **named))

    def _call(self, method: Callable[..., Any], *args: Any, **named: Any) -> Any:
        with self._one:
            self.calls[method.__name__] += 1
            return method(*args, **named)


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    """The counter, and Ray as a replica sees it on a node of its own."""
    nodes = iter(range(10**9))
    context = SimpleNamespace(get_node_id=lambda: f"{next(nodes):056x}", was_current_actor_reconstructed=False)
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(resources, "node_name", lambda: f"10.0.0.7 ({next(nodes):08x})")
    monkeypatch.setattr(resources, "replaces_actors", lambda: True)
    monkeypatch.setattr(start, "ReplicaMetrics", lambda: SimpleNamespace(tell=lambda load: None))
    monkeypatch.setattr(start, "PAUSE_S", 0.0)
    monkeypatch.setattr(start, "HERE_S", 3600.0)  # a busy machine may take longer than 30 s for all
    return Handle(Counter())


def fails() -> None:
    raise SystemFailure("The engine did not start (no driver).")


def test_a_thousand_replicas_are_a_few_lines_and_a_message_each_half_minute(handle: Handle) -> None:
    replicas = [start.Replica(handle, replaced=True) for _ in range(REPLICAS)]  # type: ignore[arg-type]
    for replica in replicas:
        replica.start(lambda: None)
        handle.note.remote("a replica runs without vLLM's chunks of tokens")
        replica.captioned()
    limit = time.monotonic() + 30
    while handle.calls["here"] < REPLICAS and time.monotonic() < limit:
        time.sleep(0.01)
    # Struck and captioned once, alive when the engine runs, and the first signs of life. Each 30 s two more.
    assert handle.calls == {
        "struck": REPLICAS, "here": REPLICAS, "alive": 2 * REPLICAS, "captioned": REPLICAS, "note": REPLICAS,
    }  # fmt: skip
    assert HERE_S == 30 and handle.record.remote().replicas.running == REPLICAS
    for number in range(REPLICAS):  # sick ones, each on its own node
        handle.sick.remote(
            f"{number}", f"{number:056x}", f"!!!! in {number} of 32 (on node 10.0.0.7 ({number:08x}))", True
        )
    for number in range(REPLICAS):  # nodes whose engine does not start
        for _ in range(3):
            broken = start.Replica(handle, replaced=True)  # type: ignore[arg-type]
            broken._node = f"{number:056x}"
            with pytest.raises(SystemFailure):
                broken.start(fails)
    for replica in replicas:
        replica._ended.set()
    lines = handle.notes.remote()
    assert len(lines) < 20, lines
    assert lines[0] == "a replica runs without vLLM's chunks of tokens"
    assert (
        len([line for line in lines if "gets no more replicas" in line]) == 6
    )  # three, the tenth, hundredth and thousandth
    assert any(
        line.startswith("1,000 notes like this one so far: a replica is replaced: !!!! in 999") for line in lines
    )
    assert len(handle.struck.remote()) == REPLICAS


def test_kinds_of_notes_are_bounded() -> None:
    notes = Notes()
    for number in range(10_000):
        notes.add("".join(chr(97 + int(digit)) for digit in str(number)))
    assert len(notes.lines()) <= MOST_KINDS + 3 + 4


def test_what_is_lost_is_forgotten_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()
    clock = [0.0]
    monkeypatch.setattr(counter._pools[""], "_clock", lambda: clock[0])
    for number in range(REPLICAS):
        counter.alive(f"{number}", True)
        clock[0] += 1.0
    replicas = counter.record().replicas
    assert (replicas.running, replicas.lost) == (60 - 1, REPLICAS - 59)
    assert len(counter._pools[""]._replicas) == 59
