"""The output folder: run.json with recipe and fingerprint, the plan, and _SUCCESS at the end (DESIGN, Output)."""

import itertools
import json
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from caprl_ray import plan, sources, storage
from caprl_ray.errors import LedgerUnbalanced, RecipeError, SystemFailure
from caprl_ray.ledger import Ledger
from caprl_ray.model import ModelRef
from caprl_ray.plan import UnitRef
from caprl_ray.recipe import Recipe
from caprl_ray.schema import clashes

RUN, SUCCESS = "run.json", "_SUCCESS"

# Engine arguments that change how fast captions come and not what they say: runs of one dataset may differ in them.
FREE_ENGINE_ARGUMENTS = frozenset(
    {
        "disable_log_stats",
        "distributed_executor_backend",
        "download_dir",
        "enforce_eager",
        "gpu_memory_utilization",
        "max_num_batched_tokens",
        "max_num_seqs",
        "pipeline_parallel_size",
        "tensor_parallel_size",
    }
)


def fingerprint(recipe: Recipe, model: ModelRef) -> dict[str, Any]:
    """What must not change between runs of one dataset (P7), as field -> value."""
    fields: dict[str, Any] = {"model.source": model.label}
    for name in ("prepare", "prompt", "sampling"):
        fields |= {f"{name}.{key}": value for key, value in getattr(recipe, name).model_dump().items()}
    for key, value in sorted(recipe.model.engine.items()):
        if key not in FREE_ENGINE_ARGUMENTS:
            fields[f"model.engine.{key}"] = value
    if recipe.model.endpoint:
        # Without these a hub that cannot be reached for once would change, unseen, at which size images are sent.
        fields |= {f"model.size_rule.{key}": value for key, value in asdict(model.size_rule).items()}
    for package in ("caprl_ray", "pillow") if recipe.model.endpoint else ("caprl_ray", "vllm", "pillow"):
        fields[f"version.{package}"] = _installed(package)
    return fields


def _installed(package: str) -> str | None:
    for name in (package, f"{package}-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


@dataclass(frozen=True, kw_only=True)
class Output:
    """One dataset's output folder, opened for the recipe that it belongs to."""

    recipe: Recipe
    fingerprint: dict[str, Any]

    @property
    def path(self) -> str:
        """The folder."""
        return self.recipe.output.path

    @classmethod
    def open(cls, recipe: Recipe, model: ModelRef) -> "Output":
        """Open a new or an existing output. Raises RecipeError where it belongs to another recipe."""
        output = cls(recipe=recipe, fingerprint=fingerprint(recipe, model))
        stored = read_run(output.path)
        planned = bool(storage.objects(storage.join(output.path, plan.FOLDER), ".parquet"))
        if stored and planned:
            _refuse_other(output.path, stored["fingerprint"], json.loads(json.dumps(output.fingerprint)))
        elif planned:
            raise RecipeError(f"output.path: {output.path} holds a plan without {RUN}; give an empty or a new folder.")
        return output

    def plan(self) -> list[UnitRef]:
        """The stored plan, or a new one stored before it is used. Raises RecipeError for an input without images."""
        refs = plan.load(self.path) or self._new_plan()
        taken = clashes(sources.metadata_schema(ref.kind for ref in refs).names)
        if taken:
            raise RecipeError(f"input: the source's own column {taken[0]} has the name of an output column; rename it.")
        return refs

    def _new_plan(self) -> list[UnitRef]:
        units = sources.plan_units(self.recipe.input)
        first = next(units, None)
        if first is None:
            raise RecipeError(f"input.paths: no image was found in {', '.join(self.recipe.input.paths)}.")
        self._write_run()
        plan.store(self.path, itertools.chain([first], units))
        return plan.load(self.path)

    def finish(self, ledger: Ledger, *, limited: bool) -> None:
        """Mark a balanced output as complete. Raises LedgerUnbalanced for a run that should have finished."""
        if ledger.balanced:
            storage.put(storage.join(self.path, SUCCESS), b"")
        elif not limited:
            raise LedgerUnbalanced(f"{self.path}: {ledger.summary()}; run the same command again to finish it.")

    def _write_run(self) -> None:
        content = {"recipe": self.recipe.model_dump(), "fingerprint": self.fingerprint}
        path = storage.join(self.path, RUN)
        try:
            storage.put(path, json.dumps(content, indent=1, default=str).encode() + b"\n")
        except OSError as error:
            raise SystemFailure(f"output.path: {path} cannot be written ({error.strerror}).") from None


def read_run(path: str) -> dict[str, Any] | None:
    """The contents of an output's run.json; None where there is none."""
    name = storage.join(path, RUN)
    if not storage.exists(name):
        return None
    try:
        content = json.loads(storage.read(name))
    except ValueError:
        content = None
    if not isinstance(content, dict) or "fingerprint" not in content:
        raise RecipeError(f"{name}: is not the run.json of a captioning run; give an empty or a new output.path.")
    return content


def _refuse_other(path: str, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [
        f"{field} was {stored.get(field)!r} and is {wanted.get(field)!r}"
        for field in sorted(stored.keys() | wanted.keys())
        if stored.get(field) != wanted.get(field)
    ]
    if differing:
        raise RecipeError(
            f"output.path: {path} belongs to another recipe: {'; '.join(differing)}. "
            "Give the stored values to resume it, or a new output.path."
        )
