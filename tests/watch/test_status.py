"""A run reports the same facts on a terminal, in lines, in status.json and from another machine."""

import dataclasses
import io
import itertools
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from caprl_ray import cli
from caprl_ray.caption.job import caption_job
from caprl_ray.cli.arguments import store_hint
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.commands.judge import judge
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output import holder as holders
from caprl_ray.output import lease
from caprl_ray.output.folder import Output
from caprl_ray.output.holder import FINISHED, HELD, STOPPED, Holder
from caprl_ray.output.part import Part
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.storage import Storage
from caprl_ray.watch import all_parts
from caprl_ray.watch.batch import Last
from caprl_ray.watch.rates import Rates
from caprl_ray.watch.record import Readers, Record, Replicas, Requests
from caprl_ray.watch.screen import Lines, LiveView
from caprl_ray.watch.status import NotAStatus, Run, Status
from caprl_ray.watch.status_file import end_told
from caprl_ray.watch.view import fits, view
from caprl_ray.watch.words import facts, line
from tests.s3_server import BUCKET, S3Server

RUN = Run(output="s3://bucket/captions", run="r", lease=3, driver="process 7 on head", gpus=2.0, price=2.5)
RATES = Rates(now=312.44, overall=305.1, tokens=151000.4, tokens_overall=149000, planned=20000, exact=True, eta_s=1832)
SUMS = {
    "flags": {"truncated": 120, "loop": 12},
    "repaired": {"loop": 88},
    "decodes": {"rows": 9000, "decodes": 9180},
    "self_checks": {"passed": 41, "failed": 1},
    "stopped_loops": {"loops": 9, "tokens": 12000},
}
RECORD = Record(
    seconds=6130,
    first=(300.0, 32),
    rows=9018,
    failed={"image_corrupt": 15, "source_missing": 3},
    committed=(8192, 6100.0),
    sums=SUMS,
    replicas=Replicas(running=8, starting=1, lost=2, seconds=36_000),
    requests=Requests(running=1984, waiting=312, places=2048, batches=70),
    last=Last(key="a/b [red].jpg", text="A cat \u001b[31mon a mat."),
)
STATUS = Status(
    run=RUN, at="2026-11-29T21:08:15+00:00", phase="running", before=1000, failed_before=4, rates=RATES, record=RECORD
)


def changed(**more: object) -> Status:
    record = {name: value for name, value in more.items() if name in RECORD.__dataclass_fields__}
    own = {name: value for name, value in more.items() if name not in record}
    return dataclasses.replace(STATUS, record=dataclasses.replace(RECORD, **record), **own)  # type: ignore[arg-type]


def test_the_facts() -> None:
    assert facts(STATUS) == {
        "done": "10,018 / 20,000 images (50.1 %)",
        "rate": "312.4 images/s (305.1 over the run)",
        "ETA": "0:30:32",
        "tokens": "151,000/s (149,000 over the run)",
        "replicas": "8 running, 1 starting, 2 lost",
        "engine": "1,984 of 2,048 places taken, 312 waiting: images wait for the engine",
        "failed": "22 (image_corrupt 15, source_missing 3)",
        "flags": "truncated 120, loop 12, 88 repaired, 1.02 decodings each, 9 loops stopped, up to 12,000 tokens saved",
        "self-check": "41 of 42 passed",
        "cost": "20.00 GPU hours, $50.00",
        "last": "a/b [red].jpg: A cat [31mon a mat.",
    }
    told = line(STATUS)
    assert "\n" not in told and "\x1b" not in told
    assert told.startswith("10,018 / 20,000 images (50.1 %)  312.4 images/s (305.1 over the run)  ETA 0:30:32  tokens")


def test_who_waits_for_whom() -> None:
    def waits(running: float, **more: object) -> str | None:
        return changed(requests=Requests(running=running, waiting=0, places=2048), **more).waits

    assert waits(1000) == "the engine waits for images"
    assert waits(1800) == "neither waits" and waits(2048) == "images wait for the engine"
    assert waits(1000, rates=dataclasses.replace(RATES, planned=11_000)) == "the last ones"
    full, free = (Readers(requests=Requests(running=running, places=256)) for running in (250, 128))
    assert waits(1000, readers={"score": full}) == "images wait for the score engine"
    assert waits(2048, readers={"score": full}) == "images wait for the engine"
    assert waits(1000, readers={"score": free}) == "the engine waits for images"


def test_a_job_without_images_replicas_or_captions_says_nothing_of_them() -> None:
    run = Run(job="letters", done="counted", noun="rows", output="out")
    status = dataclasses.replace(STATUS, run=run, record=Record(seconds=3), phase="starting", rates=Rates(planned=2000))
    assert facts(status) == {"done": "1,000 / about 2,000 rows (50.0 %)", "state": "starting", "failed": "4"}


@pytest.mark.parametrize("width", [60, 100])
def test_the_view_fits_the_terminal_and_takes_no_text_for_markup(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    console.print(view(STATUS, width, "note"))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width and len(text.splitlines()) <= 24
    assert "a/b [red].jpg: A cat [31mon a mat." in " ".join(text.split())
    assert text.count("━") + text.count("╺") == min(60, width - 12) and text.rstrip().endswith("note")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_live_view_needs_a_terminal_that_can_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert fits(Console(file=Terminal(), width=60)) and not fits(Console(file=Terminal(), width=30))
    assert not fits(Console(file=io.StringIO(), width=60))
    monkeypatch.setenv("TERM", "dumb")
    assert not fits(Console(file=Terminal(), width=60))


def test_notes_stand_above_the_live_view() -> None:
    stream = Terminal()
    screen = LiveView(Console(file=stream, width=80, force_terminal=True))
    screen.begin()
    screen.show(STATUS)
    screen.note("a replica runs without [it]")
    screen.show(changed(ended=""), last=True)
    screen.end()
    before, note, after = stream.getvalue().partition("caprl-ray: a replica runs without [it].")
    assert note and "10,018" in before and "10,018" in after and "image_corrupt 15" in after


def test_lines_come_every_fifteen_seconds_and_then_more_seldom() -> None:
    stream, now = io.StringIO(), [0.0]
    screen = Lines(stream, lambda: now[0])
    when = []
    for second in range(1200):
        now[0] = float(second)
        before = stream.tell()
        screen.show(STATUS)
        when += [second] if stream.tell() > before else []
    pauses = [later - earlier for earlier, later in itertools.pairwise(when)]
    assert when[0] == 15 and pauses[:6] == [15] * 6 and pauses == sorted(pauses) and pauses[-3:] == [60] * 3
    screen.note("a note")
    assert stream.getvalue().endswith("caprl-ray: a note.\n")


def test_status_json_gives_the_status_back() -> None:
    content = json.dumps(STATUS.plain()).encode()
    found = json.loads(content)
    assert Status.parse(content) == STATUS
    assert (found["schema"], found["done"], found["failed"], found["cost"]) == (1, 10018, 22, 50.0)
    newer = found | {"more": 1, "record": found["record"] | {"more": {}}, "run": found["run"] | {"more": 1}}
    assert Status.parse(json.dumps(newer).encode()) == STATUS, "new fields may come"
    for wrong in (content[:500], b"", b"[]", b"{}", b'{"schema": 1}', b'{"schema": 9}', b'{"schema": 1, "run": 3}'):
        with pytest.raises(NotAStatus):
            Status.parse(wrong)


HOLDER = Holder(number=3, run="r", host="head", boot=None, pid=7, started=None).renewed(90)


@pytest.mark.parametrize(
    ("holder", "lease_age", "age", "state", "said"),
    [
        (HOLDER, 5.0, 12.0, "running", ""),
        (HOLDER, None, None, "running", ""),
        (HOLDER, 5.0, 200.0, "slow", "The driver lives, but this is 0:03:20 old"),
        (HOLDER, 55.0, 60.0, "slow", "process 7 on head renewed its lease 0:00:55 ago"),
        (HOLDER, 600.0, 600.0, "silent", "The driver has gone silent: process 7 on head renewed its lease 0:10:00 ago"),
        (
            HOLDER.renewed(0, STOPPED),
            5.0,
            5.0,
            "ended",
            "The run was stopped: disk full; the same command continues it",
        ),
        (HOLDER.renewed(0, FINISHED), 5.0, 5.0, "ended", "rows are left"),
        (dataclasses.replace(HOLDER, number=4).renewed(0, STOPPED), 5.0, 5.0, "ended", "stopped: nobody says why"),
        (dataclasses.replace(HOLDER, number=4), 5.0, 900.0, "running", "has just begun another run"),
        (None, None, 5.0, "ended", "Nobody holds the lease"),
    ],
)
def test_a_driver_that_is_silent_is_told_from_one_that_is_slow(
    holder: Holder | None, lease_age: float | None, age: float | None, state: str, said: str
) -> None:
    ended = "disk full." if holder and holder.state != HELD else None
    found, sentence = judge(changed(ended=ended), holder, lease_age, age, complete=False)
    assert found == state and said in sentence and bool(said) == bool(sentence)


def test_a_run_that_checks_its_output_for_long_is_not_called_slow() -> None:
    for ended, said in ("", "it checks the whole output and balances the ledger"), ("disk full.", "disk full"):
        seen = judge(changed(ended=ended), HOLDER, 5.0, 900.0, complete=False)
        assert seen == ("running", f"The run is at its end: {said}.")


def test_what_ends_a_run_before_its_first_row_and_after_its_last_stands_in_its_status(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    storage, out, path = Storage(), str(tmp_path / "out"), tmp_path / "out" / "status.json"
    with lease.held(storage, out) as own:
        output = Output.open(caption_job(parse(demo_recipe([tmp_path], tmp_path / "out"))), lease=own)
        with pytest.raises(RecipeError), end_told(output):
            raise RecipeError("input.paths: nothing is there")
        assert not path.exists(), "a refused recipe leaves nothing behind"
        for number, before in (None, 0), (own.number, 1000), (own.number - 1, 10_018):
            if number is not None:
                path.write_text(json.dumps(changed(run=dataclasses.replace(RUN, lease=number), ended="").plain()))
            with pytest.raises(SystemFailure), end_told(output):
                raise SystemFailure("too many rows failed")
            told = Status.parse(path.read_bytes())
            assert (told.ended, told.before, told.run.lease) == ("too many rows failed", before, own.number)
        earlier = json.dumps(changed(run=dataclasses.replace(RUN, lease=own.number - 1), ended="").plain())
        for error, complete in (RecipeError("--again: no condition"), False), (SystemFailure("no GPU"), True):
            path.write_text(earlier)
            (tmp_path / "out" / "_SUCCESS").write_text("{}") if complete else None
            with pytest.raises(type(error)), end_told(output):
                raise error
            assert path.read_text() == earlier, "what the earlier run did and cost stays"


def test_a_driver_of_this_machine_that_is_gone_has_died_at_once() -> None:
    ours = dataclasses.replace(Holder.this_process(), number=3, pid=2**22 - 1).renewed(90)
    if holders.boot() is not None:
        assert judge(STATUS, ours, 5.0, 5.0, complete=False)[0] == "died"
    assert judge(STATUS, ours, 5.0, 5.0, complete=True) == ("complete", "The output is complete.")


def test_what_is_no_output_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(path: object, *more: str) -> str:
        assert cli.main(["status", str(path), *more]) in (1, 2)
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    assert "there is no such folder" in said(tmp_path / "nowhere")
    assert "no run has written in this folder" in said(tmp_path)
    (tmp_path / "status.json").write_bytes(json.dumps(STATUS.plain()).encode()[:200])
    assert "status.json: is no whole status.json; look again" in said(tmp_path)
    (tmp_path / "status.json").unlink()
    (tmp_path / "run.json").write_text('{"fingerprint": {}}')
    assert "there is no status yet" in said(tmp_path)
    assert "storage.endpoint=" in store_hint(StorageSettings(), "s3://bucket/out")


def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "status.json").write_text(json.dumps(STATUS.plain()))
    (tmp_path / "lease.json").write_bytes(HOLDER.content)
    assert cli.main(["status", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "running" and found["age_s"] < 60 and found["record"]["failed"]["image_corrupt"] == 15
    assert cli.main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out == line(STATUS) + "\n"


def test_a_bucket_is_read_from_anywhere_and_tells_ages_by_its_own_clock(
    s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    out, store = f"s3://{BUCKET}/out", (f"storage.endpoint={s3.endpoint}", "storage.region=us-east-1")
    storage = Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1"))
    assert storage.age(f"{out}/status.json") is None
    storage.put(f"{out}/status.json", json.dumps(STATUS.plain()).encode())
    storage.put(f"{out}/lease.json", HOLDER.content)
    time.sleep(2.1)  # S3 tells whole seconds
    assert cli.main(["status", out, *store, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "running" and 1 <= found["age_s"] <= 10
    assert cli.main(["status", f"{out}/elsewhere", *store]) == 2
    assert capsys.readouterr().err == f"caprl-ray: {out}/elsewhere: there is no such folder.\n"


def test_the_parts_of_an_output_are_summed_up() -> None:
    one, two = (Part(number=number, of=2) for number in (1, 2))
    cheap = dataclasses.replace(RUN, price=1.25, part="2/2")
    ended = changed(
        run=cheap, ended="", at="2026-11-29T20:00:00+00:00", rates=dataclasses.replace(RATES, planned=10_018)
    )
    both = all_parts.total({one: STATUS, two: ended}, running=[one])
    assert facts(both) | {"flags": "", "last": "", "self-check": ""} == {
        "done": "20,036 / 30,018 images (66.7 %)",
        "rate": "312.4 images/s",
        "ETA": "0:30:32",
        "tokens": "151,000/s (149,000 over the run)",
        "replicas": "8 running, 1 starting, 4 lost",
        "engine": "1,984 of 2,048 places taken, 312 waiting: images wait for the engine",
        "failed": "44 (image_corrupt 30, source_missing 6)",
        "flags": "",
        "self-check": "",
        "cost": "40.00 GPU hours, $75.00",
        "last": "",
    }
    assert facts(both)["self-check"] == "82 of 84 passed"
    assert Status.parse(json.dumps(both.plain()).encode()) == both
    over = all_parts.total({one: ended, two: ended}, running=[], missing=True)
    assert facts(over)["done"] == "20,036 images" and facts(over)["state"] == "no part runs"
