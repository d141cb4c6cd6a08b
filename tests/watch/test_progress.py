"""The progress line says what is done, how fast, and how long the rest takes."""

import io

import pytest
from caprl_ray.watch.progress import ProgressLine, Start, Words, describe

from caprl_ray.plan import Planning

START = Start(done=1000, failed=3, planned=5000)


def test_the_rate_is_that_of_this_run_and_the_rest_is_what_is_left_of_the_plan() -> None:
    line = describe(START, rows=1000, failed=2, seconds=50)
    assert line == "2,000 / 5,000 images  20.0 images/s  5 failed  ETA 0:02:30"


def test_an_unknown_plan_promises_no_end() -> None:
    line = describe(Start(done=0, failed=0, planned=None), rows=100, failed=0, seconds=10)
    assert line == "100 images  10.0 images/s  0 failed"


def test_a_run_without_a_replica_says_for_how_long() -> None:
    line = describe(START, rows=0, failed=0, seconds=0, absent=200)
    assert line == "1,000 / 5,000 images  waiting for a replica's node, 0:03:20 so far  3 failed"
    assert "starting engines" in describe(START, rows=0, failed=0, seconds=0, absent=5)
    alone = Words(noun="rows", starting="starting", replicas=False)
    assert describe(START, 10, 0, 5, absent=200, words=alone).startswith("1,010 / 5,000 rows  2.0 rows/s")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "start", "end"), [(Terminal(), "\r", ""), (io.StringIO(), "", "\n")])
def test_a_terminal_gets_one_line_over_and_over_and_a_file_whole_lines(
    stream: io.StringIO, start: str, end: str
) -> None:
    line = ProgressLine(None, START, stream)
    line._show(10, 0)
    line._show(20, 0)
    first, second = stream.getvalue().split("1,020")
    assert first.startswith(start) and first.count("\n") == len(end)
    assert second.endswith(end)


def test_a_run_that_lists_its_input_says_how_far_it_is() -> None:
    stream, planning = io.StringIO(), Planning()
    line = ProgressLine(None, stream=stream)
    line.starting = planning.status
    planning.objects = 12_000
    line._show(0, 0)
    assert stream.getvalue() == "0 images  listing the input, 12,000 files or shards so far  0 failed\n"


def test_what_replicas_note_is_told_once() -> None:
    stream = io.StringIO()
    line = ProgressLine(None, START, stream)
    line._tell(["a replica runs without it"])
    line._tell(["a replica runs without it", "another"])
    assert stream.getvalue() == "caprl-ray: a replica runs without it.\ncaprl-ray: another.\n"
