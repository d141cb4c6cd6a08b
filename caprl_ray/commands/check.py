"""`caprl-ray check`: flag captions that exist already, in a file or in an output folder. One JSON object a line.

Rows are read in small batches, so memory does not grow with the file. The command writes no files.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.quality.caption import Caption
from caprl_ray.quality.checks import Checks
from caprl_ray.quality.own import CHECK_ERROR, CheckError
from caprl_ray.recipe.prompts import PromptTemplate
from caprl_ray.storage import Folder, Storage, Stored

ROWS_AT_ONCE = 1024
BUFFER = 2**20
LONGEST_LINE = 2**24  # bytes; a caption has a few thousand
# Columns of our outputs that checks can use. Other files may have them, too.
KNOWN = ("id", "finish_reason", "caption_tokens")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns to read. `alt_text` is None if there are no alt texts."""

    caption: str = "caption"
    alt_text: str | None = None

    @property
    def asked(self) -> list[str]:
        """The columns that must be there."""
        return [self.caption, *([self.alt_text] if self.alt_text else ())]


@dataclass
class Tally:
    """The counts so far."""

    captions: int = 0
    clean: int = 0
    flags: Counter[str] = field(default_factory=Counter)

    def add(self, flags: Sequence[str]) -> None:
        """Count one caption."""
        self.captions += 1
        self.clean += not flags
        self.flags.update(flags)

    def summary(self) -> str:
        """The counts in one sentence."""
        shares = (f"{flag} {n:,} ({n / self.captions:.1%})" for flag, n in self.flags.most_common())
        return "; ".join([f"{self.captions:,} captions, {self.clean:,} without a flag", *shares])


def check(storage: Storage, path: str, checks: Checks, columns: Columns, out: IO[str]) -> Tally:
    """Print the flags of every caption of a file or an output folder to `out`.

    Raises RecipeError for another kind of file or folder, SystemFailure if it cannot be read.
    """
    tally = Tally()
    for name, caption in _captions(storage, path, columns):
        line = name | _judged(checks, caption)
        tally.add(line["flags"])
        out.write(json.dumps(line) + "\n")
    out.flush()
    return tally


def _judged(checks: Checks, caption: Caption) -> dict[str, Any]:
    try:
        return {"flags": list(checks.flags(caption))}
    except CheckError as error:
        return {"flags": [CHECK_ERROR], "detail": error.detail}


def _captions(storage: Storage, path: str, columns: Columns) -> Iterator[tuple[dict[str, Any], Caption]]:
    """Every caption, with the id or the number of its row."""
    prompt, number = "", 0
    try:
        found = storage.lookup(path)
        if found is None:
            raise RecipeError(f"{path}: there is no such file or folder.")
        if isinstance(found, Folder):
            objects, prompt = _output(storage, path)
        else:
            objects = [found]
        for stored in objects:
            for row in _rows(storage, stored, columns):
                yield _name(row, number), _caption(stored.path, row, number, columns, prompt)
                number += 1
    except OSError as error:
        raise SystemFailure(f"{path}: cannot be read ({error.strerror or type(error).__name__}).") from None


def _output(storage: Storage, path: str) -> tuple[list[Stored], str]:
    """The objects of an output folder that count, in order, and its prompt if that is the same for all rows."""
    from caprl_ray.output.fence import committed_objects
    from caprl_ray.output.objects import DATA
    from caprl_ray.output.record import read_run

    objects = committed_objects(storage, path, (DATA,))[DATA]
    if not objects:
        raise RecipeError(f"{path}: there are no captions in this folder; give a file, or the output folder of a run.")
    user = ((read_run(storage, path) or {}).get("recipe") or {}).get("prompt", {}).get("user")
    return objects, user if isinstance(user, str) and not PromptTemplate(user).columns else ""


def _rows(storage: Storage, stored: Stored, columns: Columns) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file or of JSON lines, told apart by their first bytes."""
    with storage.open(stored) as stream:
        is_parquet = stream.read(4) == b"PAR1"
        stream.seek(0)
        yield from (_parquet if is_parquet else _json_lines)(stored.path, stream, columns)


def _parquet(path: str, stream: Any, columns: Columns) -> Iterator[dict[str, Any]]:
    try:
        file = pq.ParquetFile(stream, buffer_size=BUFFER, pre_buffer=False)
        there = file.schema_arrow.names
        _refuse_missing(path, columns, there)
        for column in columns.asked:
            kind = file.schema_arrow.field(column).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise RecipeError(f"{path}: the column {column} holds {kind}, not text; name another one.")
        wanted = [*columns.asked, *(name for name in KNOWN if name in there and name not in columns.asked)]
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted, use_threads=False):
            yield from batch.to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
        raise RecipeError(f"{path}: is not a parquet file that can be read; write it again.") from None


def _json_lines(path: str, stream: Any, columns: Columns) -> Iterator[dict[str, Any]]:
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise RecipeError(f"{path}: line {number} is longer than {LONGEST_LINE // 2**20} MiB; is it JSON lines?")
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            remedy = "give parquet or JSON lines" if number == 1 else "mend it or take it out"
            raise RecipeError(f"{path}: line {number} is not a JSON object; {remedy}.")
        _refuse_missing(f"{path}: line {number}", columns, list(row))
        yield row


def _refuse_missing(place: str, columns: Columns, there: Sequence[str]) -> None:
    for column, option in ((columns.caption, "--column"), (columns.alt_text, "--alt-column")):
        if column is not None and column not in there:
            known = ", ".join(map(str, there[:20]))
            raise RecipeError(f"{place}: there is no column {column}; name one of {known} with {option}.")


def _name(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row's own id, or its number from 0."""
    identity = row.get("id")
    return {"id": identity} if isinstance(identity, str | int) and identity != "" else {"row": number}


def _caption(path: str, row: dict[str, Any], number: int, columns: Columns, prompt: str) -> Caption:
    text, alt_text = row[columns.caption], row[columns.alt_text] if columns.alt_text else None
    for column, value in ((columns.caption, text), (columns.alt_text, alt_text)):
        if value is not None and not isinstance(value, str):
            raise RecipeError(f"{path}: row {number} has no text in {column}; name another column.")
    reason, tokens = row.get("finish_reason"), row.get("caption_tokens")
    return Caption(
        text=text or "",
        finish_reason=reason if isinstance(reason, str) else None,
        prompt=prompt,
        alt_text=alt_text or "",
        caption_tokens=tokens if isinstance(tokens, int) else None,
    )
