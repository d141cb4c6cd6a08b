"""A job: which rows go in, which stages they pass and which columns come out."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from caprl_ray.recipe.sections import Recipe
from caprl_ray.rows import schema

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.data import Dataset


@dataclass(frozen=True, kw_only=True)
class Job:
    """The parts of one kind of work that differ from other jobs.

    Jobs share everything else: plan, lease, read, resume, commit, ledger, verify, progress and circuit breaker.

    Attributes:
        name: the job's name in run.json, for instance "caption".
        done: how the ledger calls finished rows, for instance "captioned".
        recipe: input, output and limits of this run.
        adds: columns of a finished row, beside identity and the source's own columns.
        codes: failure codes of its stages and their meanings.
        stages: turns rows as they were read into finished or failed rows, and reports each batch to the counter actor
            (watch/counter.py).
        needs_image: whether rows carry an image. If so, a row without one is a failed row. If not, only parquet and
            manifests can be the input.
        has_replicas: whether a stage runs replicas. If so, the run ends when no replica starts within
            `replicas.wait_s`.
        readers: further pools of replicas, as recipes, by the section of the recipe that describes them.
        engine_on_cpu: whether replicas run a model on the cores of this machine.
        fingerprint: fields that must not change between the runs of one dataset.
        check_columns: gets the names of the source's own columns when all are planned; raises RecipeError if the job
            cannot work without another one.
        check_units: passes on the units (plan/units.py) of a new plan; raises RecipeError if the job cannot use
            them. None for a job without such a check.
        outdated: whether a field of a fingerprint that an older version stored is ignored.
        record: more entries of run.json.
        again: if finished rows can be processed again: the column whose old value is kept, and the column for it.
    """

    name: str
    done: str
    recipe: Recipe
    adds: tuple[pa.Field, ...]
    codes: Mapping[str, str]
    stages: "Callable[[Dataset, ActorHandle], Dataset]"
    needs_image: bool = True
    has_replicas: bool = True
    readers: Mapping[str, Recipe] = field(default_factory=dict)
    engine_on_cpu: bool = False
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    check_columns: Callable[[Collection[str]], None] = lambda names: None
    check_units: Callable[[Iterator[Any]], Iterator[Any]] | None = None
    outdated: Callable[[str], bool] = lambda field: False
    record: Mapping[str, Any] = field(default_factory=dict)
    again: tuple[str, str] | None = None

    @property
    def pools(self) -> dict[str, Recipe]:
        """All pools of replicas, as recipes by their names; that of the job's own stage has none."""
        return {"": self.recipe, **self.readers} if self.has_replicas else {}

    @property
    def noun(self) -> str:
        """One of the things that the job works on, in messages."""
        return "image" if self.needs_image else "row"

    def row_schema(self, metadata: pa.Schema) -> pa.Schema:
        """The schema of this job's rows between stages; `metadata` are the source's own columns."""
        return schema.row_schema(metadata, self.adds, image=self.needs_image)
