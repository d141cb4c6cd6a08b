"""The counter actor adds up the reports of batches."""

from dataclasses import asdict

import pyarrow as pa

from caprl_ray.caption.columns import CAPTION, output_columns
from caprl_ray.recipe.load import parse
from caprl_ray.rows.codes import UNFINISHED
from caprl_ray.rows.schema import row_schema
from caprl_ray.watch.batch import Batch, Last, Load
from caprl_ray.watch.counted import MOST_TEXT, batch_of
from caprl_ray.watch.counter import Counter
from caprl_ray.watch.record import Record, Requests

CAPTIONED = {
    "key": "b.jpg",
    "caption": "A cat.\n\x1b[31m" + "x" * 999,
    "flags": ["loop", "blank", "metadata_invalid:json", "metadata_invalid:txt"],
    "repaired": ["truncated"],
    "decodes": 3,
    "decoded_tokens": 90,
    "prompt_tokens": 40,
    "caption_tokens": 20,
}
FAILED = {"key": "a.jpg", "code": "image_corrupt", "flags": ["blank"], "decodes": 9}


def batch(*rows: dict[str, object], adds: tuple[pa.Field, ...] = tuple(CAPTION)) -> Batch:
    schema = row_schema(pa.schema([]), adds)
    named = [{name: value for name, value in row.items() if name in schema.names} for row in rows]
    return batch_of(pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in named], schema=schema))


def test_a_batch_says_what_its_finished_rows_say() -> None:
    told = batch(FAILED, CAPTIONED, CAPTIONED, FAILED)
    assert (told.rows, list(told.codes)) == (4, ["image_corrupt"] * 2)
    assert told.sums == {
        "flags": {"loop": 2, "blank": 2, "metadata_invalid": 2},  # not each word of a dataset
        "repaired": {"truncated": 2},
        "tokens": {"prompt": 80, "caption": 40, "decoded": 180},
        "decodes": {"rows": 2, "decodes": 6},
    }
    assert told.last and told.last.key == "b.jpg" and told.last.text.startswith("A cat. [31mxxx")
    assert len(told.last.text) == MOST_TEXT
    assert batch(FAILED).last is None
    cut = batch({"key": "c.jpg", "code": UNFINISHED}, FAILED)  # by the end of the run
    assert (cut.rows, list(cut.codes)) == (1, ["image_corrupt"])


def test_a_job_that_adds_no_captions_says_nothing_of_them() -> None:
    told = batch(CAPTIONED, adds=())
    assert told.sums == {} and told.last == Last(key="b.jpg")


def test_a_record_holds_the_sums_of_all_batches_and_the_load_of_living_replicas() -> None:
    counter = Counter()
    assert counter.record().first is None and counter.record().ready is None
    for replica in ("one", "two"):
        counter.alive(replica, True, Load(replica=replica, running=2, waiting=1, places=4, batches=1))
    for number in range(3):
        load = Load(replica="one", running=number, waiting=0.5, places=4, batches=2)
        counter.add(Batch(rows=10, codes=["x"], sums={"tokens": {"decoded": 5}, "s": {"a": 0.5}}, load=load))
    counter.add(Batch(rows=1, load=Load(replica="dead", running=9, waiting=9, places=9, batches=9)))
    counter.spent("prepare", 32, 1.5, 640)
    counter.committed(20)
    counter.committed(5)
    for _ in range(2):
        counter.unit_read(7, 100, 5000)
    record = counter.record()
    assert (record.rows, record.failed, record.sums["tokens"]["decoded"], record.sum("s", "a")) == (
        31,
        {"x": 3},
        15,
        1.5,
    )
    assert record.first and record.first[1] == 10 and record.committed and record.committed[0] == 25
    assert record.requests == Requests(running=4, waiting=1.5, places=8, batches=3)
    assert record.read == (100, 5000), "a unit that is read again counts once"
    assert record.sums["stage_bytes"] == {"prepare": 640} and record.sums["stage_seconds"] == {"prepare": 1.5}
    assert record.ready is not None


def test_readers_of_captions_are_counted_apart_from_those_that_write_them() -> None:
    counter = Counter()
    counter.alive("writer", True)
    for number, runs in ((1, True), (2, False)):
        load = Load(replica=f"reader {number}", running=3, waiting=1, places=8, batches=1)
        counter.alive(load.replica, runs, load, "score")
    assert not counter.start_failed("reader 3", "node", "node", "no driver", "score")
    for number in (4, 5):
        struck = counter.start_failed(f"reader {number}", "node", "node", "no driver", "score")
    assert struck and counter.struck("score") == {"node": "no driver"} and not counter.struck()
    assert counter.notes() == ["node node gets no more replicas of score of this run: no driver"]
    record = Record.parse(asdict(counter.record()))
    readers = record.readers["score"]
    assert (record.replicas.running, record.replicas.lost, record.requests.places) == (1, 0, 0)
    assert (readers.replicas.running, readers.replicas.starting, readers.replicas.lost) == (1, 1, 3)
    assert readers.requests == Requests(running=6, waiting=2, places=16, batches=2)
    assert (counter.pool(1).running, counter.pool(1, "score").running) == (1, 1)


def test_captions_that_cannot_be_scored_are_judged_and_those_without_questions_are_not() -> None:
    settings = {"questions": ["-"], "model": {"source": "stub"}}
    recipe = parse({"input": {"paths": ["-"]}, "output": {"path": "-"}, "score": settings, "sampling": {"n": 2}})
    scores = ((1.0, 0.5, None), (None, None, "answer_unclear"), (None, None, "no_questions"), (0.5, 0.5, None))
    rows = [CAPTIONED | {"score": s, "first_score": f, "score_code": code} for s, f, code in scores]
    told, counter = batch(*rows, adds=output_columns(recipe)), Counter()
    assert told.sums["scores"] == {"rows": 2, "sum": 1.5, "squares": 1.25}
    assert told.sums["gain"] == {"rows": 2, "difference": 0.5, "squares": 0.25, "kept": 1.5, "first": 1.0}
    counter.add(told)
    assert counter.scored() == (3, {"answer_unclear": 1}) and counter.judged()[0] == (4, {})
    unasked = Counter()
    for _ in range(3):
        assert not unasked.notes()
        unasked.add(Batch(rows=500, sums={"score_codes": {"no_questions": 499}}))
    assert unasked.notes() == ["none of the first 1,000 captions has a question (score.join)"]


def test_a_batch_that_ended_is_told_with_its_counts() -> None:
    counter = Counter()
    assert [counter.begin("one", "node"), counter.begin("two", "node")] == [0, 0]
    counter.add(Batch(rows=3, ended=("one",)))
    assert counter._begun.keys() == {"two"} and counter.rows == 3
