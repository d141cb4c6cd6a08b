"""The sandbox, with decoders that really crash, hang and are killed. It returns the same pixels as `prepare`."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.prepare import sandbox as module
from caprl_ray.prepare.decode import prepare
from caprl_ray.prepare.sandbox import Sandbox, outcome
from tests import poison
from tests.checkout import ROOT
from tests.prepare.test_decode import (
    LIMITS,
    PICTURE,
    RULE,
    SEEDS,
    SIXTEEN,
    WHOLE,
    encode,
    exif,
    png,
    png_rows,
    smooth_noise,
    tiff,
    with_alpha,
)

GOOD = encode(PICTURE, "PNG")
PLAIN = partial(prepare, rule=RULE, limits=LIMITS)
FORMATS = [
    *SEEDS,
    *WHOLE.values(),
    *(whole[: len(whole) // 2] for whole in WHOLE.values()),
    *(encode(PICTURE, kind) for kind in ("GIF", "TIFF", "MPO")),
    *(encode(PICTURE, kind, exif=exif(turn)) for kind in ("JPEG", "AVIF", "TIFF") for turn in range(2, 9)),
    *(encode(np.ascontiguousarray(PICTURE[:, :, 0]), kind) for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF")),
    *(encode(Image.fromarray(PICTURE[:, :, 0] > 120), kind) for kind in ("PNG", "TIFF", "BMP")),
    *(encode(with_alpha(mode), kind) for mode in ("RGBA", "LA") for kind in ("PNG", "TIFF")),
    encode(Image.fromarray(PICTURE).convert("CMYK"), "TIFF"),
    encode(Image.fromarray(PICTURE).convert("CMYK"), "JPEG"),
    encode(Image.fromarray(PICTURE).convert("YCbCr"), "TIFF"),
    encode(Image.fromarray(PICTURE).quantize(16), "PNG", transparency=3),
    png(*PICTURE.shape[1::-1], 16, 0, png_rows(SIXTEEN.astype(">u2"))),
    tiff(">", SIXTEEN.astype(np.uint16), {}),
    encode(smooth_noise(1500, 1100), "JPEG"),
    encode(smooth_noise(2010, 10), "PNG"),
    encode(PICTURE[:, :, 0].astype(np.float32), "TIFF"),
    b"",
    b"<html>not found</html>",
    bytes(LIMITS.max_bytes + 1),
]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    (tmp_path / "notes").touch()
    return tmp_path / "notes"


@pytest.fixture
def sandbox(notes: Path) -> Iterator[Sandbox]:
    with Sandbox(partial(poison.prepare, rule=RULE, limits=LIMITS, notes=str(notes)), timeout_s=1) as sandbox:
        yield sandbox


def shown(result: object) -> object:
    return (result.code, result.detail) if isinstance(result, RowFailure) else result


def children() -> list[psutil.Process]:
    """The sandbox processes of this test: running ones, and dead ones that were not reaped."""
    return [child for child in psutil.Process().children() if is_sandbox(child)]


def is_sandbox(process: psutil.Process) -> bool:
    try:
        return "caprl_ray.prepare.sandbox" in " ".join(process.cmdline())
    except psutil.ZombieProcess:
        return True


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def test_every_kind_of_image_becomes_what_it_does_without_a_guard() -> None:
    expected = [shown(outcome(PLAIN, image)) for image in FORMATS]
    assert len(expected) > 60 and len({result[0] for result in expected if isinstance(result, tuple)}) >= 6
    with Sandbox(PLAIN, timeout_s=30) as sandbox:
        got = [shown(sandbox(image)) for image in FORMATS]
        assert len(children()) == 1
    assert got == expected
    assert not children()


@pytest.mark.parametrize(
    ("deed", "failure"),
    [
        (b"<segfault>", ("decode_crash", "SIGSEGV")),
        (b"<abort>", ("decode_crash", "SIGABRT")),
        (b"<exit>", ("decode_crash", "exit code 3")),
        (b"<sleep>", ("decode_timeout", "more than 1 s")),
        (b"<sleep with the lock>", ("decode_timeout", "more than 1 s")),
    ],
)
def test_an_image_that_ends_its_process_is_failed_after_two_tries(
    deed: bytes, failure: tuple[str, str], sandbox: Sandbox, notes: Path
) -> None:
    results = [sandbox(GOOD), sandbox(GOOD + deed), sandbox(GOOD)]
    assert shown(results[1]) == failure
    assert results[0] == results[2] == outcome(PLAIN, GOOD)
    victims = notes.read_text().splitlines()
    assert len(victims) == len(set(victims)) == 2


def test_many_bad_images_among_many_good_ones(sandbox: Sandbox) -> None:
    files = [encode(smooth_noise(40, 30, seed), "PNG") for seed in range(1000)]
    bad = {3: b"<segfault>", 4: b"<abort>", 500: b"<sleep>", 998: b"<segfault>", 999: b"<exit>"}
    began = time.monotonic()
    results = [sandbox(file + bad.get(number, b"")) for number, file in enumerate(files)]
    assert time.monotonic() - began < 60
    failed = {number: result.code for number, result in enumerate(results) if isinstance(result, RowFailure)}
    crash = "decode_crash"
    assert failed == {3: crash, 4: crash, 500: "decode_timeout", 998: crash, 999: crash}
    assert all(results[n] == outcome(PLAIN, files[n]) for n in range(1000) if n not in bad)


def test_a_kill_from_outside_fails_no_row(sandbox: Sandbox, notes: Path) -> None:
    sandbox._timeout_s = 30
    sandbox(GOOD)
    (child,) = children()

    def kill_at_work() -> None:
        until(lambda: "<wait>" in notes.read_text())
        child.kill()

    killer = threading.Thread(target=kill_at_work)
    killer.start()
    assert sandbox(GOOD + b"<wait>") == outcome(PLAIN, GOOD + b"<wait>")
    killer.join()
    assert len(notes.read_text().splitlines()) == 2
    (child,) = children()
    child.kill()  # now between two images
    assert sandbox(GOOD) == outcome(PLAIN, GOOD)


def test_a_child_that_is_stopped_is_given_up(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own timer does not end it, and it reads nothing from the pipe, into which 1 MB does not fit."""
    monkeypatch.setattr(module, "SLACK_S", 0.5)
    large = GOOD + bytes(1_000_000)
    assert sandbox(large) == outcome(PLAIN, large)
    children()[0].suspend()
    assert sandbox(large) == outcome(PLAIN, large)


def test_what_is_no_rows_fault_ends_the_run(sandbox: Sandbox) -> None:
    with pytest.raises(SystemFailure, match=r"prepare: MemoryError while .*\.$"):
        sandbox(GOOD + b"<no memory>")


def test_a_child_that_cannot_start_ends_the_run(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.chdir("/")
    with pytest.raises(SystemFailure, match=r"does not start \(exit code 1\)"):
        sandbox(GOOD)


@pytest.mark.skipif(not Path("/proc/self/oom_score_adj").exists(), reason="Linux only")
def test_the_kernel_takes_the_child_first_when_memory_runs_out(sandbox: Sandbox) -> None:
    sandbox(GOOD)
    assert Path(f"/proc/{children()[0].pid}/oom_score_adj").read_text().strip() == "1000"


WORKER = """
import sys, time
from functools import partial
from caprl_ray.prepare.sandbox import Sandbox
from tests import poison
from tests.prepare.test_decode import LIMITS, PICTURE, RULE, encode
sandbox = Sandbox(partial(poison.prepare, rule=RULE, limits=LIMITS), timeout_s=3)
sandbox(encode(PICTURE, "PNG"))
print(sandbox._child._process.pid, flush=True)
sandbox(encode(PICTURE, "PNG") + sys.argv[1].encode())
time.sleep(60)
"""


@pytest.mark.parametrize("busy", ["", "<sleep>", "<sleep with the lock>"])
def test_the_child_ends_when_its_worker_is_killed(busy: str) -> None:
    """It ends at once if it waits for an image, and at the image's timeout if it hangs in one."""
    with subprocess.Popen([sys.executable, "-c", WORKER, busy], stdout=subprocess.PIPE, cwd=ROOT) as worker:
        assert worker.stdout
        child = psutil.Process(int(worker.stdout.readline()))
        time.sleep(0.5)
        assert child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        worker.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10 if busy else 2)


LIMITED = """
import ctypes, sys
from caprl_ray.prepare.sandbox import limited
with limited(0.2):
    pass
ctypes.PyDLL(None).usleep(400_000)
print("alive", flush=True)
with limited(0.2):
    getattr(ctypes, sys.argv[1])(None).sleep(60)
"""


@pytest.mark.parametrize("library", ["CDLL", "PyDLL"])
def test_the_limit_ends_a_process_whose_decoder_hangs_with_or_without_the_lock(library: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, library],
        stdout=subprocess.PIPE,
        timeout=20,
        check=False,
        cwd=ROOT,
    )
    assert (done.stdout, done.returncode) == (b"alive\n", -signal.SIGALRM)
