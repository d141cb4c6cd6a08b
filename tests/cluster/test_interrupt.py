"""A thread stops a run, whatever the process does with SIGINT."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from caprl_ray.cluster.interrupt import interruptible


@pytest.fixture(params=["default", "ignored"])
def handler(request: pytest.FixtureRequest) -> Iterator[object]:
    """The process's own handler, or none at all, as in a background job of a shell."""
    before = signal.getsignal(signal.SIGINT)
    wanted = signal.default_int_handler if request.param == "default" else signal.SIG_IGN
    signal.signal(signal.SIGINT, wanted)
    yield wanted
    signal.signal(signal.SIGINT, before)


def test_the_first_reason_ends_the_block_at_once(handler: object) -> None:
    def block() -> None:
        with interruptible() as stop:
            threading.Timer(0.2, lambda: [stop(ValueError(word)) for word in ("first", "second")]).start()
            time.sleep(30)

    began = time.monotonic()
    with pytest.raises(ValueError, match="first"):
        block()
    assert time.monotonic() - began < 20
    assert signal.getsignal(signal.SIGINT) == handler


def test_the_block_that_has_ended_is_not_ended_again(handler: object) -> None:
    with interruptible() as stop:
        pass
    stop(ValueError("late"))
    time.sleep(0.05)


@pytest.mark.parametrize("which", ["inner", "outer"])
def test_a_block_within_a_block(handler: object, which: str) -> None:
    passed = []

    def block() -> None:
        with interruptible() as outer:
            try:
                with interruptible() as inner:
                    threading.Timer(0.2, {"inner": inner, "outer": outer}[which], (ValueError(which),)).start()
                    time.sleep(30)
            finally:
                passed.append(signal.getsignal(signal.SIGINT))

    began = time.monotonic()
    with pytest.raises(ValueError, match=which):
        block()
    assert time.monotonic() - began < 20
    assert passed != [handler], "the outer block can still be stopped when the inner one is over"
    assert signal.getsignal(signal.SIGINT) == handler


def test_ctrl_c_means_what_it_did_before(handler: object) -> None:
    def block() -> None:
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    if handler == signal.SIG_IGN:
        block()
    else:
        with pytest.raises(KeyboardInterrupt):
            block()
