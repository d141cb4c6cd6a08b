"""What a read task carries."""

import pickle
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from caprl_ray.read import datasource
from caprl_ray.read.datasource import Reading
from caprl_ray.recipe.input import Input
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage


def access_with(hashes: list[str]) -> Access:
    return Access(storage=Storage(), input=Input(paths=["-"], placeholders=hashes), max_bytes=1)


def test_placeholders_lie_in_the_object_store_once_and_in_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[Any] = []
    monkeypatch.setattr(ray, "put", lambda value: stored.append(value) or "reference")
    digests = [sha256(b"%d" % number) for number in range(1000)]
    reading = Reading.of(access_with([digest.hexdigest() for digest in digests]))
    assert reading.placeholders == "reference" and len(pickle.dumps(reading)) < 3000
    (found,) = stored
    assert len(found) == 1000 and digests[7].digest() in found


def test_without_placeholders_nothing_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "put", lambda value: pytest.fail("stored"))
    assert Reading.of(access_with([])).placeholders is None


def test_a_read_task_asks_at_once_and_then_rarely_whether_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [100.0], list[float]()

    def ask() -> bool:
        asked.append(now[0])
        return now[0] > 101

    monkeypatch.setattr(datasource.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    closing = datasource._Closing(SimpleNamespace(closing=SimpleNamespace(remote=ask)))  # type: ignore[arg-type]
    answers = []
    for now[0] in (100.0, 100.1, 100.4, 100.6, 101.0, 101.2):
        answers.append(closing())
    assert asked == [100.0, 100.6, 101.2] and answers == [False] * 5 + [True]
