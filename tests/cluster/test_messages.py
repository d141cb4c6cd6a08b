"""Ray's messages about its cluster become a few lines, for any number of replicas."""

import io
import os

import pytest

from caprl_ray.cluster.messages import EachKindOnce, without_logger

RETRIED = (
    "Task MapWorker(MapBatches(Captioner)).submit failed. There are infinite retries remaining, so the task will be "
    "retried. Error: The actor {} is temporarily unavailable: ipv4:10.0.{}.7:39631: connection refused"
)
DEAD = (
    "The node with node id: {:056x} and address: 10.0.{}.7 and node name: 10.0.{}.7 has been marked dead\n\t(1) raylet"
)


def test_a_thousand_lost_replicas_are_two_lines_and_another_cause_is_a_third() -> None:
    stream = io.StringIO()
    say = EachKindOnce(stream)
    messages = [RETRIED.format(f"{n:032x}", n) for n in range(1000)] + [DEAD.format(n, n, n) for n in range(1000)]
    for message in [*messages, RETRIED.format(0, 0).replace("connection refused", "\x1b[2Jout of memory")]:
        say({"lines": [message], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    retried, dead, other = stream.getvalue().splitlines()
    assert retried.startswith("Ray: Task MapWorker(MapBatches(Captioner)).submit failed. There are infinite retries")
    assert dead.startswith("Ray: The node with node id: 000") and dead.endswith("has been marked dead")
    assert other.endswith(": [2Jout of memory"), "what a terminal would obey"


def test_names_of_machines_cannot_make_endless_kinds() -> None:
    stream = io.StringIO()
    say = EachKindOnce(stream)
    pods = ("".join(chr(97 + n // 26**place % 26) for place in range(5)) for n in range(1000))
    for pod in pods:
        say({"lines": [f"The node gpu-group-{pod} was lost"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 51 and lines[-1] == (
        "Ray: there are further kinds of messages, which are left out; --debug shows all"
    )


def test_a_stream_that_is_closed_does_not_end_rays_thread() -> None:
    stream = io.StringIO()
    stream.close()
    EachKindOnce(stream)({"lines": [DEAD.format(1, 1, 1)]}, ignore_prefix=False)


def test_lines_of_rays_logger_are_left_out_and_others_stay(capfd: pytest.CaptureFixture[str]) -> None:
    with without_logger():
        os.write(2, b"[2026-11-29 21:01:45,991 I 6676 6676] logging.cc:303: Set ray log level\nours\n")
        os.write(2, b"[2026-11-29 21:18:08,348 E 4244 4244] core_worker.cc:2465: Actor with class name\nlast")
    os.write(2, b" line\n")
    assert capfd.readouterr().err == "ours\nlast line\n"
