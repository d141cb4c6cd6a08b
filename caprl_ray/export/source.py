"""The output that is exported: its plan, its rows, and how its images are read."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError
from pyroaring import BitMap

from caprl_ray import plan
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.export.rows import UnitRows
from caprl_ray.output import doubtful
from caprl_ray.output.committed import Committed, read_committed
from caprl_ray.output.duplicates import OF_PLAN
from caprl_ray.output.places import places
from caprl_ray.output.record import read_run, stored_job
from caprl_ray.output.scan import Tell
from caprl_ray.output.where import Condition, matching, output_schema
from caprl_ray.plan import Plan, UnitRef
from caprl_ray.recipe.input import Columns, Input
from caprl_ray.recipe.prepare import Prepare
from caprl_ray.rows.schema import is_own
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage, Stored, is_below

CAPTION, SEVERAL = "caption", "captions"
BATCH = 2**16
# Columns that say where a row was read and written, and nothing of its image or caption.
NOT_TOLD = frozenset({"unit", "index", "unit_rows", "unit_left_out", "source", "row", "run"})


@dataclass(frozen=True, kw_only=True)
class Source:
    """An output with captions. `schema` are the columns of its finished rows, `run` is its run.json."""

    storage: Storage
    path: str
    plan: Plan
    run: dict[str, Any]
    schema: pa.Schema

    @classmethod
    def open(cls, storage: Storage, path: str) -> "Source":
        """Open an output. Raises RecipeError if it is none, or holds no captions."""
        try:
            stored = plan.load(storage, path)
            run = read_run(storage, path) or {}
            schema = output_schema(storage, path)
        except OSError as error:
            raise SystemFailure(f"{path}: cannot be read ({error.strerror}).") from error
        if not stored.units:
            raise RecipeError(f"{path}: there is no plan in this folder, so it is not the output of a run.")
        job = stored_job(run)["name"]
        if job != CAPTION:
            raise RecipeError(f"{path}: holds the rows of the job {job}, and no captions that could be exported.")
        if CAPTION not in schema.names:
            raise RecipeError(f"{path}: there are no captions in this folder; caprl-ray verify {path} says why.")
        return cls(storage=storage, path=path, plan=stored, run=run, schema=schema)

    @property
    def own(self) -> pa.Schema:
        """The columns that are ours, without the source's own."""
        return pa.schema([field for field in self.schema if is_own(self.schema, field.name)])

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe that wrote the newest rows, as plain data."""
        found: dict[str, Any] = self.run.get("recipe") or {}
        return found

    @cached_property
    def roots(self) -> list[str]:
        """Where the images of the input lie, as the recipe says it."""
        given = self.recipe.get("input") or {}
        paths: list[str] = given.get("paths") or []
        return [*(given.get("image_roots") or []), *paths, *(path.rpartition("/")[0] for path in paths)]

    def told(self, rows: pa.Table) -> pa.Table:
        """The rows with keys that tell no place of the user's storage."""
        place, roots = rows.schema.get_field_index("key"), self.roots
        keys = [key and told_key(key, roots) for key in rows["key"].to_pylist()]
        return rows.set_column(place, rows.schema.field(place), pa.array(keys, pa.string()))

    def access(self) -> Access:
        """How the images are read. Other columns are not."""
        try:
            settings = Input.model_validate(self.recipe.get("input"))
            prepare = Prepare.model_validate(self.recipe.get("prepare") or {})
        except ValidationError:
            raise RecipeError(
                f"{self.path}/run.json: another version wrote it, so the images cannot be found; export with "
                "that version."
            ) from None
        settings = settings.model_copy(update={"columns": Columns(keep=[]), "rename": {}})
        return Access(storage=self.storage, input=settings, max_bytes=prepare.max_bytes)

    def units(self, condition: Condition | None, listed: str | None, tell: Tell) -> list[UnitRows]:
        """The exported rows of each unit: finished rows that meet the condition and are not `listed` as repeated."""
        without = _listed(self.storage, listed, self.path, self.plan.units) if listed else {}
        committed = read_committed(self.storage, self.path, tell=tell)
        for unit, rows in self._doubtful(committed).items():
            without.setdefault(unit, BitMap()).update(rows)
        met = matching(self.storage, self.path, condition, committed, tell=tell) if condition else None
        found = places(self.storage, self.path, tell)
        units = []
        for ref in self.plan.units:
            there = committed.get(ref.unit) or Committed()
            kept = there.finished if met is None else there.finished & met.get(ref.unit, BitMap())
            known = [there.rows or 0, ref.rows or 0, there.done.max() + 1 if there.done else 0]
            units.append(
                UnitRows(
                    ref=ref,
                    kept=kept - without.get(ref.unit, BitMap()),
                    places=found.of(ref.unit),
                    rows=max(known),
                    finished=len(there.finished),
                    failed=len(there.failed),
                    deadly=committed.counts.codes["read_crash"] > 0,
                )
            )
        return units

    def _doubtful(self, committed: Mapping[int, Committed]) -> dict[int, BitMap]:
        """The rows that are left out because a sick replica wrote them, which is said."""
        rows = doubtful.standing(self.storage, self.path, committed)
        if rows:
            said = f"{self.path} has {doubtful.named(rows)}; they are left out until a run has done them again"
            sys.stderr.write(f"caprl-ray: {said}.\n")
        return rows


def told_key(key: str, roots: Iterable[str]) -> str:
    """A key as it is published: an absolute path or a URI from its root on, or only its last name."""
    path = key.removeprefix("file://")
    if not path.startswith("/") and "://" not in path:
        return key
    known = [root.rstrip("/") for root in roots if root.strip("/") and is_below(path, root)]
    return path[len(max(known, key=len, default=path.rpartition("/")[0])) :].lstrip("/")


def _listed(storage: Storage, path: str, output: str, units: Sequence[UnitRef]) -> dict[int, BitMap]:
    """The rows of a list that are not kept, by unit. Raises RecipeError for what is no such list of the output."""
    try:
        found = storage.lookup(path)
        if not isinstance(found, Stored):
            raise RecipeError(
                f"--without: there is no file {path}; write it with caprl-ray duplicates OUT --list FILE."
            )
        rows: dict[int, BitMap] = {}
        with storage.open(found) as stream:
            file = pq.ParquetFile(stream)
            of_plan = (file.schema_arrow.metadata or {}).get(OF_PLAN)  # None: up to version 0.5.0
            if of_plan and not plan.identified(storage, units, of_plan.decode(errors="replace")):
                raise RecipeError(
                    f"--without: {path} lists rows of another output; write one of this output with caprl-ray "
                    f"duplicates {output} --list FILE."
                )
            for unit, index in _dropped(file):
                rows.setdefault(unit, BitMap()).add(index)
    except (pa.ArrowException, ValueError, KeyError):
        raise RecipeError(
            f"--without: {path} is no list of rows with the columns id and keep; write it with caprl-ray "
            "duplicates OUT --list FILE."
        ) from None
    except OSError as error:
        raise SystemFailure(f"--without: {path} cannot be read ({error.strerror or error}).") from error
    return rows


def _dropped(file: pq.ParquetFile) -> Iterator[tuple[int, int]]:
    if not {"id", "keep"} <= set(file.schema_arrow.names):
        raise KeyError("id")
    for batch in file.iter_batches(BATCH, columns=["id", "keep"]):
        for identity in batch.filter(pc.invert(batch["keep"]))["id"].to_pylist():
            unit, _, index = str(identity).partition("-")
            yield int(unit), int(index)
