"""From captions to answers: write the table that `score` reads, and read the answers from its output."""

import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from sys import intern
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.evaluate.answers import Answer
from caprl_ray.evaluate.captions import Captions, Place
from caprl_ray.evaluate.kinds import question_kind
from caprl_ray.evaluate.questions import Asked
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA
from caprl_ray.score.metrics import LETTERS
from caprl_ray.score.question import Question
from caprl_ray.score.tally import CAPTION
from caprl_ray.storage import Storage

SCHEMA = pa.schema([("image", pa.string()), ("caption", pa.string()), ("ways", pa.list_(pa.string()))])
ROWS_AT_ONCE = 256
READ = ("image", "ways", "answers")
FIELDS = ("benchmark", "question_id", "options", "condition", "parsed", "correct", "can_not_answer")
Row = Mapping[str, Any]


def table(captions: Captions, asked: Asked) -> bytes:
    """The captions of images with questions, as a parquet file. Equal captions of an image are one row, so that the
    reader sees them once."""
    ways = defaultdict[tuple[str, str], list[str]](list)
    for (way, image), text in captions.texts.items():
        if asked.get(image):
            ways[image, text].append(captions.short(way))
    rows = [{"image": image, "caption": text, "ways": of} for (image, text), of in sorted(ways.items())]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """The combined answers to one question, as in `Answer`."""

    given: str | None = None
    correct: float | None = None
    cannot: float = 0.0


UNJUDGED = Judged()


def answers(storage: Storage, scores: str, captions: Captions, asked: Asked) -> Iterator[Answer]:
    """The answers to each question from each caption, in order. A missing answer has no `correct`."""
    given = dict(_given(storage, scores))
    for way, image in sorted(captions.texts):
        found = given.get((captions.short(way), image), {})
        for question in asked.get(image, ()):
            yield answer(way, question, found.get((question.benchmark, question.id), UNJUDGED))


def together(rows: Sequence[Row]) -> Judged:
    """Combine the answers to one question. `rows` has one answer per order of its options."""
    judged = [row["correct"] for row in rows if row["correct"] is not None]
    chosen = Counter(_chosen(row) for row in rows if row["parsed"] is not None)
    return Judged(
        given=chosen.most_common(1)[0][0] if chosen else None,
        correct=sum(judged) / len(judged) if judged else None,
        cannot=sum(bool(row["can_not_answer"]) for row in rows) / len(rows),
    )


def answer(way: str, question: Question, judged: Judged) -> Answer:
    """The answer to one question from a caption of this way."""
    right = question.choices[question.right] if question.right is not None else " | ".join(question.answers)
    return Answer(
        image=question.image,
        way=way,
        question_id=question.id,
        question=question.text,
        choices=question.choices,
        right=right,
        given=judged.given,
        kind=question_kind(question.text, question.kind),
        correct=judged.correct,
        cannot=judged.cannot,
    )


def _chosen(row: Row) -> str:
    """The text of the option that was chosen, or the answer itself to a question without options."""
    place = LETTERS.find(row["parsed"]) if row["options"] else -1
    return str(row["options"][place] if 0 <= place < len(row["options"]) else row["parsed"])


def _given(storage: Storage, scores: str) -> Iterator[tuple[Place, Mapping[tuple[str, str], Judged]]]:
    """The combined answers of scored rows, by way and image, and then by question."""
    for row in _rows(storage, scores):
        found = defaultdict[tuple[str, str], list[Row]](list)
        for one in row["answers"]:
            if one["condition"] == CAPTION:
                found[intern(one["benchmark"]), one["question_id"]].append(one)
        judged = {question: together(of) for question, of in found.items()}
        for way in row["ways"]:
            yield (way, row["image"]), judged


def _rows(storage: Storage, scores: str) -> Iterator[dict[str, Any]]:
    for stored in committed_objects(storage, scores, (DATA,))[DATA]:
        with storage.open(stored) as stream:
            file = pq.ParquetFile(stream)
            leaves = [file.schema.column(number).path for number in range(len(file.schema))]
            wanted = [leaf for leaf in leaves if _is_read(leaf)]
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=wanted):
                yield from batch.to_pylist()


def _is_read(leaf: str) -> bool:
    column, *field = leaf.split(".")
    return column in READ and (column != "answers" or any(part in FIELDS for part in field))
