"""The facts about an output: its plan, run.json, and the ledger."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from caprl_ray import plan
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output import ledger
from caprl_ray.output.committed import CommittedUnits, read_committed
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.objects import DATA, FAILED
from caprl_ray.output.record import read_run, stored_job
from caprl_ray.output.repair import superseded
from caprl_ray.output.scan import Tell, silent
from caprl_ray.plan import Plan
from caprl_ray.storage import Folder, Storage, Stored, join

STATUS = "status.json"  # where the last run stands, if it wrote one
# Usual names of columns with an image's old text, the likeliest first.
OLD_TEXTS = ("txt", "alt_text", "alt", "text", "old_caption", "original_caption", "description", "title", "TEXT")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One output: its place, its facts, and its objects by folder.

    `superseded` are the positions of rows that do not count (docs/design.md, D7), by the paths of their objects.
    `status` is that of the last run: empty if there is none, None if it is not whole.
    """

    path: str
    storage: Storage
    run: Mapping[str, Any]
    plan: Plan
    committed: CommittedUnits
    ledger: Ledger
    objects: Mapping[str, list[Stored]]
    superseded: Mapping[str, np.ndarray]
    status: Mapping[str, Any] | None

    @property
    def balanced(self) -> bool:
        """Whether every planned row is there once, and the input was planned to its end."""
        return self.ledger.balanced and self.plan.complete

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe as run.json holds it."""
        recipe = self.run.get("recipe")
        return recipe if isinstance(recipe, dict) else {}

    def old_text(self, wanted: str | None = None) -> str | None:
        """The source's column with the old text; None if there is none.

        Raises RecipeError if the output lacks the wanted one.
        """
        names = self.plan.columns.names
        if wanted and wanted not in names:
            there = ", ".join(names) or "none"
            raise RecipeError(f"--old-column: {self.path} has no column {wanted} of its source; it has {there}.")
        quality = self.recipe.get("quality")
        alt = quality.get("alt_column") if isinstance(quality, dict) else None
        return next((name for name in (wanted, alt, *OLD_TEXTS) if name and name in names), None)


def facts(storage: Storage, path: str, tell: Tell = silent) -> Facts:
    """Read them. Raises RecipeError if there is no output, SystemFailure for what cannot be read."""
    try:
        found = storage.lookup(path)
        if found is None:
            raise RecipeError(f"{path}: there is no such folder; give the output folder of a run.")
        if not isinstance(found, Folder):
            raise RecipeError(f"{path}: this is a file; give the output folder of a run.")
        stored = plan.load(storage, path)
        if not stored.units:
            raise RecipeError(f"{path}: there is no plan in this folder, so it is not the output of a run.")
        run = read_run(storage, path) or {}
        objects, status = committed_objects(storage, path), _status(storage, path)
    except OSError as error:
        raise SystemFailure(f"{path}: cannot be read ({error.strerror or type(error).__name__}).") from error
    job = stored_job(run)
    if job["name"] != "caption":
        raise RecipeError(f"{path}: this is an output of the job {job['name']}; only captions can be shown.")
    committed = read_committed(storage, path, tell=tell)
    balance = ledger.balance(stored.units, committed, job["done"], job["noun"], stored.left_out)
    return Facts(
        path=path,
        storage=storage,
        run=run,
        plan=stored,
        committed=committed,
        ledger=balance,
        objects={folder: objects.get(folder, []) for folder in (DATA, FAILED)},
        superseded=superseded(storage, path, committed, tell),
        status=status,
    )


def _status(storage: Storage, path: str) -> Mapping[str, Any] | None:
    try:
        found = json.loads(storage.read(join(path, STATUS)))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
