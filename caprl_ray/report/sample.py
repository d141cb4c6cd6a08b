"""One pass over the chosen objects of an output: the rows to show, and the numbers that the plots need."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caprl_ray.output.committed import opened
from caprl_ray.output.objects import DATA, FAILED
from caprl_ray.output.scan import Tell, silent
from caprl_ray.report.facts import Facts
from caprl_ray.report.objects import MOST_ROWS, Footer, chosen
from caprl_ray.report.strata import Name, Row, Strata
from caprl_ray.rows.schema import is_own
from caprl_ray.storage import Stored

BATCH = 2048  # rows in memory at a time
IDENTITY = ("id", "unit", "index", "source", "key", "sha256", "width", "height", "run")
OF_DATA = (
    *("caption", "captions", "finish_reason", "flags", "repaired", "decodes", "caption_tokens", "prompt_tokens"),
    *("decoded_tokens", "model", "attempts"),
)
OF_FAILED = ("stage", "code", "detail", "attempts")
NUMBERS = ("width", "height", "decodes", "caption_tokens")


@dataclass(kw_only=True)
class Sample:
    """The rows to show with the strata that they stand for, and one number a finished row that was read.

    `rows` are rows that were read, `whole` says whether these are all of the output. `footers` are those of the objects
    of `data` that were looked at.
    """

    shown: list[tuple[Name, Row]] = field(default_factory=list)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    rows: int = 0
    whole: bool = True
    footers: list[Footer] = field(default_factory=list)


def sample(
    facts: Facts, most: int, old_text: str | None = None, tell: Tell = silent, most_rows: int = MOST_ROWS
) -> Sample:
    """Read the output. `most` rows are chosen; `old_text` is a column of the source that is read with them."""
    strata, found = Strata(most, len(facts.plan.units)), Sample()
    numbers: dict[str, list[np.ndarray]] = {name: [] for name in (*NUMBERS, "characters")}
    for folder, own in ((DATA, OF_DATA), (FAILED, OF_FAILED)):
        objects = chosen(facts.storage, facts.objects[folder], tell, most_rows)
        found.whole = found.whole and objects.all
        found.footers += objects.footers if folder == DATA else []
        for done, stored in enumerate(objects.objects, 1):
            for table in tables(facts, stored, (*IDENTITY, *own), old_text):
                strata.add(table)
                found.rows += table.num_rows
                if folder == DATA:
                    _measure(table, numbers)
            tell("reading captions", done, len(objects.objects))
    found.shown = strata.rows()
    found.numbers = {name: np.concatenate([np.empty(0, np.int64), *of]) for name, of in numbers.items()}
    return found


def tables(facts: Facts, stored: Stored, columns: tuple[str, ...], old_text: str | None) -> Iterator[pa.Table]:
    """The rows of one object that count, a bounded number at a time. The old text gets the name `old_text`."""
    superseded, end = facts.superseded.get(stored.path, np.empty(0, np.int64)), 0
    with opened(facts.storage, stored) as file:
        schema = file.schema_arrow
        ours = [name for name in columns if is_own(schema, name)]
        old = [old_text] if old_text in schema.names and old_text not in ours else []
        for batch in file.iter_batches(batch_size=BATCH, columns=[*ours, *old], use_threads=False):
            table = pa.Table.from_batches([batch]).select([*ours, *old])
            start, end = end, end + table.num_rows
            if len(superseded):
                table = table.filter(pa.array(~np.isin(np.arange(start, end), superseded)))
            yield table.rename_columns([*ours, *("old_text" for _ in old)])


def _measure(table: pa.Table, numbers: dict[str, list[np.ndarray]]) -> None:
    for name in NUMBERS:
        if name in table.schema.names:
            numbers[name].append(pc.fill_null(table[name], -1).to_numpy().astype(np.int64))
    numbers["characters"].append(pc.fill_null(pc.utf8_length(table["caption"]), 0).to_numpy().astype(np.int64))
