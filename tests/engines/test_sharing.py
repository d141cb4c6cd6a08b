"""Engines that share a GPU start one after another."""

import threading
import time

import pytest

from caprl_ray.engines import sharing
from caprl_ray.engines.sharing import starting_alone


def test_engines_on_one_gpu_start_one_after_another_and_no_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "POLL_S", 0.01)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-of-this-test")
    starting, most, started = 0, 0, []

    def start(share: float) -> None:
        nonlocal starting, most
        with starting_alone(share):
            starting += 1
            most = max(most, starting)
            time.sleep(0.1)
            starting -= 1
            started.append(share)

    for share, expected in ((0.5, 1), (1.0, 3)):
        most = 0
        threads = [threading.Thread(target=start, args=[share]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert most == expected
    assert started == [0.5] * 3 + [1.0] * 3
    with starting_alone(0.5):
        began = time.monotonic()
        with starting_alone(0.5, patience_s=0.1):
            assert time.monotonic() - began < 5, "one that waits too long starts anyway"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "another")
        with starting_alone(0.5):
            assert time.monotonic() - began < 5
