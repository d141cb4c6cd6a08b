"""The questions of an evaluation, by the images of its sample: curated for them, or given.

All are stored as one table joined by `sha256`. So an evaluation can reuse the table of an earlier one.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from caprl_ray.answer import unfinished
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.evaluate.sample import Drawn
from caprl_ray.evaluate.words import MOST_SOURCE, one_line
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA
from caprl_ray.output.record import read_run, stored_job
from caprl_ray.recipe.score import Score
from caprl_ray.report.evaluation import EVALUATION
from caprl_ray.report.strata import Row
from caprl_ray.score import read
from caprl_ray.score.formats import qa_75k
from caprl_ray.score.metrics import LETTERS
from caprl_ray.score.question import Question
from caprl_ray.score.questions import Questions, joined
from caprl_ray.storage import Folder, Storage, join

TABLE = "questions.parquet"  # of an evaluation
# The first of these columns that a file has is used. `id` comes last: it may belong to another output.
JOINS = ("sha256", "key", "path", "id")
ROWS_AT_ONCE = 1024
SHOWN = 3
BENCHMARK = "evaluation"
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("sha256", "question_id", "benchmark", "kind", "metric", "question")),
        ("choices", pa.list_(pa.string())),
        ("answer", pa.list_(pa.string())),
    ]
)
Asked = Mapping[str, Sequence[Question]]  # questions by image


@dataclass(frozen=True, kw_only=True)
class Given:
    """Given questions, and the column that joins them to rows: a name of `JOINS`."""

    path: str
    join: str
    questions: Questions

    @property
    def images(self) -> int:
        """The largest possible number of their images."""
        return len(set(self.questions.digests.tolist()))

    def wanted(self) -> Callable[[pa.Table], pa.Table]:
        """Select the rows of a table that have questions."""
        values = pa.array(sorted(set(self.questions.images())), pa.string())

        def filtered(table: pa.Table) -> pa.Table:
            column = table["key" if self.join == "path" else self.join]
            if self.join == "path":
                column = pc.replace_substring_regex(column, r"(?s)^.*[/\\]", "")
            return table.filter(pc.is_in(column, values))

        return filtered

    def about(self, drawn: Sequence[Drawn]) -> Asked:
        """The questions about images of a sample."""
        return {one.image.key: self.questions.about(self._value(one.rows[0])) for one in drawn}

    def check(self, drawn: Sequence[Drawn]) -> None:
        """Raise RecipeError if two of the images that may be drawn have the same value in the column that joins
        questions."""
        seen: dict[str, str] = {}
        for one in drawn:
            value = self._value(one.rows[0])
            if value in seen:
                raise RecipeError(
                    f"--questions: {self.path} joins by {self.join}, and {one_line(seen[value], MOST_SOURCE)} and "
                    f"{one_line(one.image.source, MOST_SOURCE)} are both {one_line(value)}; "
                    "give questions with a column sha256."
                )
            seen[value] = one.image.source

    def refuse(self, rows: Sequence[Row]) -> RecipeError:
        """The error if no image has a question. `rows` are examples of images."""
        asked = ", ".join(one_line(key) for key, _ in zip(self.questions.images(), range(SHOWN), strict=False))
        there = ", ".join(one_line(self._value(row)) for row in rows[:SHOWN])
        return RecipeError(
            f"--questions: {self.path} has no question about a captioned image; it joins by {self.join}, asks about "
            f"{asked}, and the images are {there}; give questions about these images."
        )

    def _value(self, row: Row) -> str:
        return joined(self.join, row["key" if self.join == "path" else self.join] or "")


def given(storage: Storage, path: str) -> Given:
    """The questions at a path: an evaluated output, an evaluation, an output of `curate`, or a file.

    Raises RecipeError for what is none, SystemFailure if storage fails.
    """
    try:
        found = storage.lookup(path)
        if found is None:
            raise RecipeError(f"--questions: {path} is not there; give a file of questions, or an earlier evaluation.")
        if not isinstance(found, Folder):
            return _file(storage, path)
        if storage.lookup(join(path, TABLE)):
            return _file(storage, join(path, TABLE))
        run = read_run(storage, path)
        if run and stored_job(run)["name"] == "curate":
            unfinished.refuse(storage, path, "--questions", "curate")
            return Given(path=path, join="sha256", questions=Questions.of(curated(storage, path)))
        if table := _of_evaluated(storage, path):
            return _file(storage, table)
    except OSError as error:
        raise SystemFailure(f"--questions: {path} cannot be read ({error.strerror}).") from None
    raise RecipeError(
        f"--questions: {path} has no questions; give a file, an output of caprl-ray curate, or one that was evaluated."
    )


def curated(storage: Storage, path: str) -> Iterator[Question]:
    """The kept questions of an output of `curate`, by the SHA-256 of their images."""
    seen: set[str] = set()
    for row in _rows(storage, path, ["sha256", "reward_model"]):
        if row["sha256"] in seen:  # a duplicate image
            continue
        seen.add(row["sha256"])
        yield from qa_75k({**row, "image": {"path": row["sha256"]}}, "path", BENCHMARK, "choice")


def kept(storage: Storage, paths: Sequence[str], keys: Sequence[str]) -> Asked:
    """The kept questions about these images from outputs of `curate`. All questions of an image come from the first
    output that has some."""
    found: dict[str, list[Question]] = {key: [] for key in keys}
    for path in paths:
        new = {key for key, of in found.items() if not of}
        for question in curated(storage, path):
            if question.image in new:
                found[question.image].append(question)
    return found


def asked_about(storage: Storage, path: str) -> set[str]:
    """The images that have a row in an output of `curate`, with or without a question."""
    folders = committed_objects(storage, path)
    return {row["sha256"] for folder in folders for row in _rows(storage, path, ["sha256"], folder)}


def refuse_own_prompts(asked: Given) -> None:
    """Raise RecipeError for questions that have a prompt of their own."""
    if asked.questions.own_prompts():
        raise RecipeError(
            f"--questions: {asked.path} has questions with prompts of their own, which only caprl-ray score "
            "--score.mode=prism can ask; give questions with question, choices and answer."
        )


def named(asked: Asked) -> Questions:
    """Name a set of questions by a hash of its content and its images."""
    return Questions.of(replace(_content(one), image=image) for image, of in asked.items() for one in of)


def table(asked: Asked) -> bytes:
    """Questions as the content of a parquet file."""
    rows = [_row(image, number, one) for image, of in sorted(asked.items()) for number, one in enumerate(of)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def with_kinds(stored: Asked, asked: Asked) -> Asked:
    """Stored questions with their present kinds, which the hash in the name leaves out."""
    kinds = {(image, _content(one)): one.kind for image, of in asked.items() for one in of}
    return {
        image: [replace(one, kind=kinds.get((image, _content(one)), one.kind)) for one in of]
        for image, of in stored.items()
    }


def by_image(storage: Storage, path: str) -> Asked:
    """The questions of such a file, by image."""
    found: dict[str, list[Question]] = {}
    questions = read.read(storage, Score(questions=[path], join="sha256"))  # type: ignore[list-item]
    for image in questions.images():
        found[image] = questions.about(image)
    return found


def _content(question: Question) -> Question:
    """The content of a question, without names."""
    return replace(question, image="", id="", kind="")


def _row(image: str, number: int, question: Question) -> dict[str, Any]:
    """A row of the table. Options have letters, and the answer is letter and text, so that no text is mistaken for a
    letter."""
    choices = [f"{letter}) {text}" for letter, text in zip(LETTERS, question.choices, strict=False)]
    return {
        "sha256": image,
        "question_id": f"{image[:12]}#{number}",
        "benchmark": question.benchmark,
        "kind": question.kind,
        "metric": question.metric,
        "question": question.text,
        "choices": choices,
        "answer": [choices[question.right]] if question.right is not None else list(question.answers),
    }


def _file(storage: Storage, path: str) -> Given:
    joins = read.joins(storage, path)
    how = next((one for one in JOINS if one in joins), None)
    if how is None:
        raise RecipeError(f"--questions: {path} names no images; give it one of the columns {', '.join(JOINS)}.")
    settings = Score(questions=[path], join=how)  # type: ignore[list-item, arg-type]
    found = Given(path=path, join=how, questions=read.read(storage, settings))
    refuse_own_prompts(found)
    return found


def _of_evaluated(storage: Storage, path: str) -> str | None:
    """The table of an evaluated output's last evaluation."""
    try:
        told = json.loads(storage.read(join(path, EVALUATION)))
        found = str(told["evaluation"]["questions"])
        return found if found.startswith("/") or "://" in found else join(path, found)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        raise RecipeError(f"{join(path, EVALUATION)}: is not of an evaluation; evaluate the output again.") from None


def _rows(storage: Storage, path: str, columns: list[str], folder: str = DATA) -> Iterator[dict[str, Any]]:
    for stored in committed_objects(storage, path, (folder,))[folder]:
        with storage.open(stored) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
