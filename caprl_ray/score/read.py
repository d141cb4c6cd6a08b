"""Read question files: parquet, JSON and JSON lines. Every fault is one sentence with the file and the row."""

import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.recipe.score import QuestionFile, Score
from caprl_ray.score import formats, paper
from caprl_ray.score.question import Question
from caprl_ray.score.questions import Questions, joined, without_twins
from caprl_ray.sources.unpacked import LONGEST_MAGIC, compression
from caprl_ray.storage import Storage, Stored

MOST_JSON = 512 * 2**20  # bytes of a JSON file, which is read as a whole
ROWS_AT_ONCE = 1024
BUFFER = 2**20
Format = Callable[[Mapping[str, Any], str, str, str | None], Iterator[Question]]


def read(storage: Storage, settings: Score, parts: Mapping[str, Sequence[str]] = MappingProxyType({})) -> Questions:
    """All questions of a recipe. `parts` are the files of a path that is a folder of them.

    Raises RecipeError for a file that is missing or wrong, SystemFailure if storage fails.
    """
    placed = (
        found
        for file in settings.questions
        for found in _file(storage, file, settings.join, parts.get(file.path, (file.path,)))
    )
    return Questions.of(without_twins(_unambiguous(placed, settings.join)))


def _file(storage: Storage, file: QuestionFile, join: str, paths: Sequence[str]) -> Iterator[tuple[str, Question]]:
    """The questions of a file, or of the files at these paths, each with its place."""
    benchmark = file.benchmark or file.path.rstrip("/").rpartition("/")[2].partition(".")[0]
    metric = file.metric or paper.METRICS.get(paper.benchmark(file.benchmark or "") or "")
    asked = False
    rows = ((path, *found) for path in paths for found in _rows(storage, path, join))
    for path, number, form, row in rows:
        try:
            for question in form(row, join, benchmark, metric if form is formats.evaluation else file.metric):
                asked = True
                _refuse_half_characters(question)
                yield f"{path}: row {number}", replace(question, id=question.id or f"row {number}")
        except ValueError as error:
            raise RecipeError(f"{path}: row {number}: {error}.") from None
    if not asked:
        raise RecipeError(f"{file.path}: there are no questions in this file; give another one.")


def _refuse_half_characters(question: Question) -> None:
    """Raise ValueError for texts that cannot be stored: JSON can spell half of a character."""
    try:
        texts = (question.id, question.image, question.text, question.benchmark, question.system or "", question.begin)
        "".join((*texts, *question.choices, *question.answers)).encode()
    except UnicodeEncodeError:
        raise ValueError("it has text that is not Unicode") from None


def _rows(storage: Storage, path: str, join: str | None) -> Iterator[tuple[int, Format, Mapping[str, Any]]]:
    try:
        stored = storage.lookup(path)
        if not isinstance(stored, Stored):
            raise RecipeError(f"score.questions: {path} is no file; give parquet, JSON or JSON lines.")
        with storage.open(stored) as stream:
            is_parquet = stream.read(4) == b"PAR1"
            stream.seek(0)
            if is_parquet:
                yield from _parquet(path, stream, join)
                return
        yield from _json(storage, stored, join)
    except OSError as error:
        raise SystemFailure(f"score.questions: {path} cannot be read ({error.strerror or 'input error'}).") from None


def _parquet(path: str, stream: Any, join: str | None) -> Iterator[tuple[int, Format, Mapping[str, Any]]]:
    """Rows without the bytes of their images."""
    try:
        file = pq.ParquetFile(stream, buffer_size=BUFFER, pre_buffer=False)
        there = file.schema_arrow.names
        form = _format(path, there, join)
        leaves = [file.schema.column(number).path for number in range(len(file.schema))]
        wanted = [leaf for leaf in leaves if leaf.partition(".")[0] in _WANTED and not leaf.endswith(".bytes")]
        number = 0
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted, use_threads=False):
            for row in batch.to_pylist():
                yield number, form, row
                number += 1
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno):  # of the storage, not of pyarrow
            raise
        raise RecipeError(f"{path}: is not a parquet file that can be read; write it again.") from None


def _json(storage: Storage, stored: Stored, join: str | None) -> Iterator[tuple[int, Format, Mapping[str, Any]]]:
    if stored.size > MOST_JSON:
        raise RecipeError(f"{stored.path}: has {stored.size:,} bytes; write so many questions as parquet.")
    for number, row in enumerate(_documents(stored.path, storage.read(stored.path))):
        if not isinstance(row, dict):
            raise RecipeError(f"{stored.path}: row {number}: it is no JSON object.")
        yield number, _format(stored.path, list(row), join), row


def _documents(path: str, content: bytes) -> Iterator[Any]:
    """The entries of a JSON list, or of JSON lines."""
    if packed := compression(content[:LONGEST_MAGIC]):
        raise RecipeError(f"{path}: is compressed ({packed}); unpack it, or write the questions as parquet.")
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise RecipeError(f"{path}: is UTF-16; write it as UTF-8.")
    content = content.removeprefix(BOM_UTF8)
    if content.lstrip()[:1] == b"[":
        yield from _loaded(path, content)
        return
    for number, line in enumerate(content.splitlines()):
        if line.strip():
            yield _loaded(path, line, number)


def _loaded(path: str, content: bytes, before: int = 0) -> Any:
    """A JSON value. `before` is the number of lines before it in the file."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        line = before + getattr(error, "lineno", 1)
        raise RecipeError(f"{path}: line {line} is not valid JSON; give parquet, a JSON list or JSON lines.") from None


_FIELDS = (
    "image",
    "reward_model",
    "prompt",
    "question",
    "choices",
    "answer",
    "metric",
    "benchmark",
    "question_id",
    "kind",
)
_WANTED = {*_FIELDS, *formats.JOINS}


def joins(storage: Storage, path: str) -> list[str]:
    """By what the questions of a file can be joined: what score.join may be. Raises as `read`."""
    for _, form, row in _rows(storage, path, None):
        return list(_joins(form, list(row)))
    raise RecipeError(f"{path}: there are no questions in this file; give another one.")


def _format(path: str, names: Sequence[str], join: str | None) -> Format:
    """The format of a row, by the names of its fields. Raises RecipeError for an unknown one."""
    form: Format | None = None
    if "reward_model" in names:
        form = formats.qa_75k
    elif "prompt" in names and "question" not in names:
        form = formats.evaluation
    elif "question" in names:
        form = formats.table
    if form:
        _refuse_join(path, join, _joins(form, names))
        return form
    raise RecipeError(
        f"{path}: has {', '.join(map(str, names[:12]))}, and questions need question and answer, prompt and answer, or "
        "reward_model."
    )


def _joins(form: Format, names: Sequence[str]) -> Sequence[str]:
    if form is formats.table:
        return [name for name in formats.JOINS if name in names]
    if form is formats.qa_75k:
        return ("id", "path", *(["sha256"] if "sha256" in names else ()))
    return ("path",)


def _refuse_join(path: str, join: str | None, known: Sequence[str]) -> None:
    if join is not None and join not in known:
        there = " or ".join(known) or f"none of {', '.join(formats.JOINS)}"
        raise RecipeError(f"score.join: {join} is not in {path}, whose questions are joined by {there}.")


def _unambiguous(placed: Iterator[tuple[str, Question]], join: str) -> Iterator[tuple[str, Question]]:
    """The questions with the images' keys as captions have them. Raises RecipeError if two paths end in one name."""
    paths: dict[str, str] = {}
    for place, question in placed:
        key = joined(join, question.image)
        if join == "path" and paths.setdefault(key, question.image) != question.image:
            raise RecipeError(
                f"{place}: {question.image} and {paths[key]} have the same file name, by which score.join: path joins; "
                "give score.join: key and the paths as captions have them."
            )
        yield place, replace(question, image=key)
