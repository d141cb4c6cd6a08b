"""Hostile files, and their outcomes in the real reader and the real prepare stage."""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from caprl_ray import plan, sources
from caprl_ray.errors import RecipeError, RowFailure
from caprl_ray.prepare.sandbox import Sandbox
from caprl_ray.prepare.sizes import size_rule
from caprl_ray.prepare.stage import Prepare
from caprl_ray.read.unit import tables, unit_rows
from caprl_ray.recipe.input import Input
from caprl_ray.recipe.prepare import Prepare as PrepareSettings
from caprl_ray.rows.schema import row_schema
from caprl_ray.rows.stage import Changes
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage
from tests import poison

RULE = size_rule({"image_processor_type": "Qwen2VLImageProcessor"}, min_pixels=3136, max_pixels=1_003_520)
HANGS_S = 0.3  # the time limit of the guarded cases
# What every payload would make, in the folder where it runs; and what names out of it would.
HARM = "harm-was-done"
ELSEWHERE = f"/tmp/caprl-ray-{HARM}"

OK, REFUSED = "ok", "refused"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A hostile file.

    `expected`: what its rows become, as `outcome` says it. `like`: for an image that comes out, a harmless one with the
    same pixels. `guarded`: its decoder is one that does what the image says, in a guarded child.
    """

    name: str
    file: str
    content: Callable[[], bytes]
    expected: str
    like: Callable[[], bytes] | None = None
    guarded: bool = False

    def write(self, folder: Path) -> Path:
        """The file, in a folder of its own."""
        path = folder / self.name / self.file
        path.parent.mkdir(parents=True)
        path.write_bytes(self.content())
        return path


class Payload:
    """An object that leaves a trace when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (HARM, "w")


PICKLED = pickle.dumps(Payload())


class Guarded(Prepare):
    """Prepare as at a task's second attempt, with the decoder that does what images say."""

    def apply(self, rows: list[dict[str, Any]]) -> list[Changes | RowFailure]:
        decode = partial(poison.prepare, **self._decode.keywords)
        with Sandbox(decode, self._timeout_s) as sandbox:
            return [sandbox(bytes(row["encoded"])) for row in rows]


def outcome(path: Path, *, guarded: bool = False) -> str:
    """The outcome of a file: `ok` or a code for each row, in order, or `refused` if planning refuses it."""
    try:
        return said(codes(path, guarded=guarded))
    except RecipeError as error:
        sentence = str(error)
    assert "\n" not in sentence and path.name in sentence
    return REFUSED


def codes(path: Path, *, guarded: bool = False) -> Iterator[str]:
    """The outcome of each row."""
    settings = PrepareSettings(timeout_s=HANGS_S) if guarded else PrepareSettings()
    access = Access(storage=Storage(), input=Input(paths=[str(path)]), max_bytes=settings.max_bytes)
    units = list(sources.plan_units(access))
    schema = row_schema(plan.unified(pa.schema([]), units))
    prepare = (Guarded if guarded else Prepare)(RULE, settings)
    for number, unit in enumerate(units):
        for table in tables(unit_rows(number, unit, schema=schema, access=access, rows=unit.rows), schema):
            for code in prepare(table)["code"].to_pylist():
                yield code or OK


def said(outcomes: Iterator[str]) -> str:
    """Outcomes in few words, such as `ok x2, truncated_unit`."""
    runs = ((code, len(list(run))) for code, run in groupby(outcomes))
    return ", ".join(code if count == 1 else f"{code} x{count}" for code, count in runs)
