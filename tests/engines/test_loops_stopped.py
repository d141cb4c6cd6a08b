"""The engine's core looks for loops seldom, and an endpoint may say that it stopped one."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from caprl_ray.engines import internals
from caprl_ray.engines.endpoint import Answer, completion


def test_a_core_looks_for_loops_at_every_32nd_token(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    core: Any = SimpleNamespace(check_sequence_repetition=lambda tokens, _: asked.append(len(tokens)) or True)
    monkeypatch.setitem(sys.modules, "vllm.v1.core.sched.utils", core)
    internals.look_seldom_for_loops()
    found = [length for length in range(1, 100) if core.check_sequence_repetition([0] * length, None)]
    assert found == asked == [32, 64, 96]


def test_a_service_that_stops_a_loop_has_written_a_caption() -> None:
    choice = {"message": {"content": "a a a"}, "finish_reason": "repetition"}
    assert completion(Answer.model_validate({"choices": [choice]})).finish_reason == "repetition"
