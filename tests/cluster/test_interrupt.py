"""A thread stops a run, whatever the process does with SIGINT."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from caprl_ray.cluster import interrupt, signals
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


class Swallows:
    """Waits where an exception cannot get out, as finalizers of libraries do."""

    def __del__(self) -> None:
        time.sleep(5)


def in_a_finalizer() -> None:
    Swallows()  # goes at once


def in_a_bare_except() -> None:
    try:
        time.sleep(5)
    except:  # noqa: E722
        time.sleep(0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("swallow", [in_a_finalizer, in_a_bare_except])
def test_an_interrupt_that_is_swallowed_is_repeated(
    handler: object, monkeypatch: pytest.MonkeyPatch, swallow: Callable[[], None]
) -> None:
    monkeypatch.setattr(interrupt, "REPEAT_S", 0.2)

    def block() -> None:
        with interruptible() as stop:
            threading.Timer(0.2, stop, (ValueError("lost"),)).start()
            swallow()
            swallow()
            time.sleep(20)

    began = time.monotonic()
    with pytest.raises(ValueError, match="lost"):
        block()
    assert time.monotonic() - began < 4


def test_the_cleanup_of_a_stopped_block_is_not_interrupted_again(
    handler: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "REPEAT_S", 0.05)
    cleaned = []

    @contextmanager
    def resource() -> Iterator[None]:
        try:
            yield
        finally:
            time.sleep(0.5)
            cleaned.append("with")

    def block() -> None:
        with interruptible() as stop, resource():
            threading.Timer(0.2, stop, (ValueError("lost"),)).start()
            try:
                time.sleep(20)
            except KeyboardInterrupt as error:
                time.sleep(0.5)
                cleaned.append("except")
                raise RuntimeError("as libraries translate it") from error
            finally:
                time.sleep(0.5)
                cleaned.append("finally")

    with pytest.raises(ValueError, match="lost"):
        block()
    assert cleaned == ["except", "finally", "with"]


def test_a_cleanup_that_hangs_is_interrupted_in_the_end(handler: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "REPEAT_S", 0.05)
    monkeypatch.setattr(interrupt, "CLEANUP_S", 1.0)

    def block() -> None:
        with interruptible() as stop:
            threading.Timer(0.2, stop, (ValueError("lost"),)).start()
            try:
                time.sleep(20)
            finally:
                time.sleep(20)

    began = time.monotonic()
    with pytest.raises(ValueError, match="lost"):
        block()
    assert 1 < time.monotonic() - began < 10


def test_no_interrupt_is_left_behind(handler: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals come at any moment, also while the block ends."""
    monkeypatch.setattr(interrupt, "REPEAT_S", 0.0001)

    def block(seconds: float) -> None:
        with interruptible() as stop:
            stopping = threading.Thread(target=stop, args=(ValueError("lost"),))
            stopping.start()
            with suppress(KeyboardInterrupt):
                stopping.join()
            with suppress(KeyboardInterrupt):
                time.sleep(seconds)

    for n in range(300):
        with pytest.raises(ValueError, match="lost"):
            block(0.0001 * (n % 10))
        assert signal.getsignal(signal.SIGINT) == handler
    time.sleep(0.05)


def test_in_another_thread_the_main_thread_is_left_alone() -> None:
    ended: list[BaseException] = []

    def block() -> None:
        try:
            with interruptible() as stop:
                stop(ValueError("lost"))
        except ValueError as error:
            ended.append(error)

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    time.sleep(0.05)
    assert str(ended[0]) == "lost"


def killed(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


def test_the_first_signal_asks_the_block_to_end_and_the_second_ends_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals.handled() as asked, signals.handled() as same, asked.answered():
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.asked.wait(5) and asked.first == signal.SIGTERM and same is asked
        with pytest.raises(KeyboardInterrupt):
            killed(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_where_nobody_answers_a_signal_ends_the_block_at_once() -> None:
    with signals.handled():
        with signals.kept():  # as a connection to Ray that sets its own handler
            signal.signal(signal.SIGTERM, lambda *_: None)
        with pytest.raises(signals.Terminated):
            killed(signal.SIGTERM)


# A run in a terminal: what it writes there after the terminal is closed would fail, and its processes are needed.
IN_TERMINAL = """
import fcntl, os, signal, subprocess, sys, termios, time
from caprl_ray.cluster import signals

fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the terminal of this session
with signals.handled() as asked, asked.answered():
    with signals.kept():
        child = subprocess.Popen(["sleep", "60"])
    print("begun", flush=True)
    assert asked.asked.wait(30)
    os.kill(os.getpid(), signal.SIGHUP)  # some shells send one too
    print("stopping", flush=True)
    sys.stderr.write("stopping")
    child.send_signal(signal.SIGHUP)  # as the system does when this process ends
    time.sleep(0.2)
    alive = child.poll() is None
    child.kill()
    open(sys.argv[1], "w").write(f"alive: {alive}")
"""


def test_a_terminal_that_is_closed_asks_the_block_to_end_and_not_its_processes(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, str(tmp_path / "told")],
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        start_new_session=True,
    )
    os.close(theirs)
    assert os.read(ours, 100).startswith(b"begun")
    os.close(ours)
    assert run.wait(30) == 0 and (tmp_path / "told").read_text() == "alive: True"


def test_a_connection_leaves_the_block_stoppable_and_an_ignored_signal_ignored(handler: object) -> None:
    def block() -> None:
        with interruptible() as stop:  # as the lease has it, around the connection
            with signals.kept():
                signal.signal(signal.SIGINT, lambda *_: None)
            if handler == signal.SIG_IGN:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
            threading.Timer(0.1, stop, (ValueError("lost"),)).start()
            try:
                time.sleep(30)
            finally:
                time.sleep(1.5 * interrupt.REPEAT_S)  # cleanup, which is not interrupted again
                cleaned.append(True)

    cleaned: list[bool] = []
    with signals.handled() as asked, pytest.raises(ValueError, match="lost"):
        block()
    assert cleaned and asked.first is None
