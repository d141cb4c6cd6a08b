"""Long steps before and after a run show how far they are; short ones say nothing."""

import io
from pathlib import Path

import pytest

from caprl_ray.output import scan
from caprl_ray.output.committed import read_committed
from caprl_ray.storage import Storage
from caprl_ray.watch import steps
from caprl_ray.watch.steps import CLEAR, Steps


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(steps.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_line_every_fifteen_seconds(clock: list[float]) -> None:
    stream = io.StringIO()
    tell = Steps(stream)
    for done in range(0, 50_000, 1_000):
        tell("reading the output's objects", done, 50_000)
        clock[0] += 1
    tell("reading the output's objects", 50_000, 50_000)
    lines = [f"reading the output's objects: {done},000 of 50,000 objects\n" for done in (15, 30, 45)]
    assert stream.getvalue() == "".join(lines)


def test_a_terminal_gets_one_line_over_and_over_which_is_gone_at_the_end(clock: list[float]) -> None:
    stream = Terminal()
    tell = Steps(stream)
    for done in (1, 2, 3):
        tell("looking", done, 3)
        clock[0] += 1
    assert stream.getvalue() == f"{CLEAR}looking: 2 of 3 objects{CLEAR}"


def test_a_step_that_is_over_at_once_says_nothing(clock: list[float]) -> None:
    stream = Terminal()
    Steps(stream)("looking", 1, 1)
    assert not stream.getvalue()


@pytest.mark.usefixtures("ray_cluster")
def test_reading_an_output_tells_how_many_of_its_objects_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    from caprl_ray.output.objects import parquet_bytes

    monkeypatch.setattr(scan, "OBJECTS_PER_TASK", 2)
    row = {"unit": [0], "index": pa.array([0], pa.int64()), "unit_rows": pa.array([1], pa.int64())}
    for number in range(5):
        Storage().put(str(tmp_path / "data" / f"{number}.parquet"), parquet_bytes(pa.table(row)))
    told: list[tuple[str, int, int]] = []
    read_committed(Storage(), str(tmp_path), tell=lambda *step: told.append(step))
    assert {step for step, _, _ in told} == {"reading the output's objects"}
    assert [total for _, _, total in told] == [5, 5, 5]
    assert told[-1][1] == 5 and sorted(done for _, done, _ in told) == [done for _, done, _ in told]
