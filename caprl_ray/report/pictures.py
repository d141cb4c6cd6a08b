"""Thumbnails of rows, from the sources that the plan names. A row whose picture cannot be shown gets the reason.

Pictures are untrusted: they are decoded in a child process with limits (prepare/sandbox.py), and tables are read in one
(read/sandbox.py). A picture is shown only if its bytes are those that were captioned.
"""

import base64
import io
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from PIL import Image
from pyroaring import BitMap

from caprl_ray import sources
from caprl_ray.errors import CaprlError, RecipeError, RowFailure, SystemFailure
from caprl_ray.plan import LeftOut, Unit
from caprl_ray.prepare.decode import Limits, prepare
from caprl_ray.prepare.sandbox import Sandbox
from caprl_ray.prepare.sizes import SizeRule
from caprl_ray.read.present import Accept, present
from caprl_ray.read.sandbox import ReadSandbox
from caprl_ray.read.unit import unit_rows
from caprl_ray.recipe.input import Columns
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.report.facts import Facts
from caprl_ray.report.strata import Row
from caprl_ray.rows.codes import PREPARE_CODES, READ_CODES
from caprl_ray.rows.schema import row_schema
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.source import Access

SIDE = 288  # a thumbnail has at most as many pixels as a square of this side
# A thumbnail with more bytes is encoded again with lower quality: 480 thumbnails of this size are 8 MB in base64.
MOST_BYTES, QUALITIES = 12 * 1024, (78, 60, 40)
WORKERS = 4  # processes that decode at most
FILES_AT_ONCE = 32  # loose files that one worker reads, of one unit
TIMEOUT_S = 10.0  # for one picture: a thumbnail is not worth more
NEVER_S = 1e9
MOST_FAULTS = 3  # of storage, after which no more is read
# Failed rows that have no picture, or whose picture cannot be decoded.
WITHOUT = (READ_CODES.keys() | PREPARE_CODES.keys()) - {"placeholder", "image_aspect"}
SCHEMA = row_schema(pa.schema([]))
PARQUET = "parquet"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A thumbnail as a `data:` URI with its size, or the reason why there is none. `encoded` are the bytes of the image
    itself, where these are asked for."""

    uri: str = ""
    encoded: bytes = b""
    width: int = 0
    height: int = 0
    missing: str = ""


class _Late(Exception):
    """The time for reading pictures is over."""


def pictures(facts: Facts, rows: Sequence[Row], seconds: float) -> Mapping[str, Picture]:
    """The thumbnails of rows by id. Reading takes at most about `seconds`."""
    return _read(facts, rows, seconds, whole=False)


def originals(facts: Facts, rows: Sequence[Row]) -> Mapping[str, Picture]:
    """The bytes of the images of rows by id, as they are stored, undecoded. All of them are in memory."""
    return _read(facts, rows, NEVER_S, whole=True)


def _read(facts: Facts, rows: Sequence[Row], seconds: float, *, whole: bool) -> Mapping[str, Picture]:
    found = {row["id"]: Picture(missing=_without(row)) for row in rows if _without(row)}
    wanted = [row for row in rows if row["id"] not in found]
    try:
        recipe = _recipe(facts)
    except RecipeError as error:
        return found | {
            row["id"]: Picture(missing=f"run.json has no recipe that can be read: {error}") for row in wanted
        }
    with _Studio(facts, recipe, time.monotonic() + seconds, seconds, whole=whole) as studio:
        return found | studio.pictures(wanted)


def _without(row: Row) -> str:
    """Why a row has no picture; empty if it may have one."""
    if row.get("code") in WITHOUT:
        return "The image could not be read." if row.get("stage") == "read" else "The image could not be decoded."
    return "" if row.get("sha256") else "No bytes of an image were read."


def _recipe(facts: Facts) -> Recipe:
    """The parts of the output's recipe that reading needs, without other columns than the images."""
    stored = {name: facts.recipe.get(name) or {} for name in ("input", "prepare", "storage")}
    recipe = parse({**stored, "output": {"path": facts.path}})
    light = {"columns": Columns(keep=[]), "rename": {}, "placeholders": [], "long_metadata": "drop"}
    given = facts.storage.settings
    storage = recipe.storage if given == StorageSettings() else given
    return recipe.model_copy(update={"input": recipe.input.model_copy(update=light), "storage": storage})


@dataclass(kw_only=True)
class _Work:
    """Rows of one unit, by their index."""

    unit: int
    rows: dict[int, Row]


class _Studio:
    """Reads and decodes in a few threads, each with child processes of its own."""

    def __init__(self, facts: Facts, recipe: Recipe, deadline: float, seconds: float, *, whole: bool) -> None:
        self._facts, self._whole = facts, whole
        self._access = Access.of(recipe)
        limits = Limits(max_bytes=recipe.prepare.max_bytes, max_source_pixels=recipe.prepare.max_source_pixels)
        rule = SizeRule(factor=None, min_pixels=0, max_pixels=SIDE * SIDE, max_aspect=float("inf"))
        self._decode = partial(prepare, rule=rule, limits=limits)
        self._timeout_s = min(recipe.prepare.timeout_s, TIMEOUT_S)
        self._deadline, self._late = deadline, f"Reading took longer than {seconds:g} s; --images-s gives more time."
        self._faults: list[str] = []
        self._own, self._children = threading.local(), ExitStack()

    def __enter__(self) -> "_Studio":
        return self

    def __exit__(self, *_: object) -> None:
        self._children.close()

    def pictures(self, rows: Sequence[Row]) -> dict[str, Picture]:
        """The thumbnails of rows by id."""
        refs = {ref.unit: ref for ref in self._facts.plan.units}
        by_unit: defaultdict[int, dict[int, Row]] = defaultdict(dict)
        lost = [row for row in rows if row["unit"] not in refs]
        for row in rows:
            if row["unit"] in refs:
                by_unit[row["unit"]][row["index"]] = row
        works = [work for unit, of in by_unit.items() for work in _cut(unit, of, refs[unit].kind)]
        works.sort(key=lambda work: -len(work.rows))  # the shards that give most come first
        with ThreadPoolExecutor(min(WORKERS, len(os.sched_getaffinity(0)))) as pool:
            done = pool.map(lambda work: self._of(work, refs[work.unit].load), works)
            found = {identity: picture for some in done for identity, picture in some.items()}
        return found | {row["id"]: Picture(missing="The plan does not hold this row's unit.") for row in lost}

    def _of(self, work: _Work, load: Callable[..., Unit]) -> dict[str, Picture]:
        """The thumbnails of one piece of work."""
        found: dict[str, Picture] = {}
        missing = "The plan's unit does not hold this row."
        try:
            for read in self._read(work, load(self._facts.storage)):
                row = work.rows[read["index"]]
                found[row["id"]] = self._picture(row, read)
        except _Late:
            missing = self._late
        except (CaprlError, OSError) as error:
            missing = str(error)
            self._faults.append(missing)
        return {row["id"]: Picture(missing=missing) for row in work.rows.values()} | found

    def _read(self, work: _Work, unit: Unit) -> Iterator[Row]:
        """The rows of a unit as they are read, up to the last one that is wanted."""
        if len(self._faults) >= MOST_FAULTS:
            raise SystemFailure(self._faults[0])
        last, committed = max(work.rows), self._facts.committed.get(work.unit)
        length = max(last + 2, unit.rows or 0, len(unit.entries), (committed and committed.rows) or 0)
        done = BitMap(range(length)) - BitMap(work.rows)
        read = self._reader(unit.kind)
        # Any present version: a picture is shown only if its bytes are those that were captioned.
        unit = present(unit, Accept.CHANGED, done, BitMap(work.rows), None, self._access, read)
        rows = unit_rows(work.unit, unit, schema=SCHEMA, access=self._access, done=done, rows=length, read=read)
        for row in rows:
            if row["index"] in work.rows:
                yield row
            if row["index"] >= last and unit.kind != PARQUET:  # what follows of a table is passed over
                return

    def _reader(self, kind: str) -> Callable[..., Iterator[Sample | None]]:
        """How the samples of a unit are read: tables in a child process, because Arrow may not survive a page."""
        read = self._mine("read", ReadSandbox) if kind == PARQUET else sources.read_unit

        def timed(unit: Unit, done: BitMap, access: Access, left_out: LeftOut) -> Iterator[Sample | None]:
            for sample in read(unit, done, access, left_out):
                if time.monotonic() > self._deadline:
                    raise _Late
                yield sample

        return timed

    def _picture(self, row: Row, read: Row) -> Picture:
        if read.get("code"):
            return Picture(missing=_said(str(read["code"]), read.get("detail")))
        if read["sha256"] != row["sha256"]:
            return Picture(missing="The source changed: it holds another image than the one that was captioned.")
        if time.monotonic() > self._deadline:
            return Picture(missing=self._late)
        return Picture(encoded=bytes(read["encoded"])) if self._whole else self._thumbnail(read)

    def _thumbnail(self, read: Row) -> Picture:
        seen = self._mine("decode", lambda: Sandbox(self._decode, self._timeout_s))(bytes(read["encoded"]))
        return shown(seen)

    def _mine(self, name: str, make: Callable[[], Any]) -> Any:
        """Something of this thread's own, which ends with the block."""
        if not hasattr(self._own, name):
            setattr(self._own, name, self._children.enter_context(make()))
        return getattr(self._own, name)


def _cut(unit: int, rows: dict[int, Row], kind: str) -> list[_Work]:
    """The rows of one unit. Loose files are read by several workers."""
    size = FILES_AT_ONCE if kind == "files" else len(rows)
    places = sorted(rows)
    return [
        _Work(unit=unit, rows={place: rows[place] for place in places[n : n + size]})
        for n in range(0, len(places), size)
    ]


def _said(code: str, detail: str | None) -> str:
    meaning = (READ_CODES | PREPARE_CODES).get(code, code)
    return f"{meaning} ({detail})" if detail else meaning


def shown(seen: Mapping[str, Any] | RowFailure) -> Picture:
    """The thumbnail of what a child process has decoded."""
    if isinstance(seen, RowFailure):
        return Picture(missing=_said(seen.code, seen.detail))
    size = seen["pixel_width"], seen["pixel_height"]
    if len(seen["pixels"]) != 3 * size[0] * size[1]:  # a picture has taken over the child
        return Picture(missing="The image could not be decoded.")
    return _thumbnail(seen["pixels"], size)


def _thumbnail(pixels: bytes, size: tuple[int, int]) -> Picture:
    """Pixels as a `data:` URI."""
    picture = Image.frombytes("RGB", size, pixels)
    tries = (_webp(picture, quality) for quality in QUALITIES)
    content = next((content for content in tries if len(content) <= MOST_BYTES), b"")
    if not content:
        picture.thumbnail((SIDE // 2, SIDE // 2))
        content = _webp(picture, QUALITIES[-1])
    uri = f"data:image/webp;base64,{base64.b64encode(content).decode()}"
    return Picture(uri=uri, width=size[0], height=size[1])


def _webp(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()
