"""The output folder: run.json (job, recipe, fingerprint), the plan, and _SUCCESS at the end."""

import itertools
import json
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from caprl_ray import plan, sources
from caprl_ray.errors import LedgerUnbalanced, RecipeError, SystemFailure
from caprl_ray.job import Job
from caprl_ray.models.resolve import HUB_ID
from caprl_ray.output.commit import DATA, FAILED
from caprl_ray.output.fingerprint import fingerprint
from caprl_ray.output.lease import Lease
from caprl_ray.output.ledger import Ledger
from caprl_ray.plan import Plan, Planning, Unit
from caprl_ray.plan.known import PlannedPaths
from caprl_ray.recipe.engine_arguments import recorded
from caprl_ray.rows.schema import clashes
from caprl_ray.sources.source import Access
from caprl_ray.storage import Folder, Storage, Stored, join

RUN, SUCCESS = "run.json", "_SUCCESS"


@dataclass(frozen=True, kw_only=True)
class Output:
    """The output folder of one dataset, opened for its job."""

    job: Job
    fingerprint: dict[str, Any]
    adopted: dict[str, Any]
    planned: bool
    """Whether an earlier run has planned its input to the end. Only then can there be rows."""
    lease: Lease | None
    """The lease under which it was opened. Without one it is only looked at."""

    @property
    def path(self) -> str:
        """The folder's path."""
        return self.job.recipe.output.path

    @property
    def storage(self) -> Storage:
        """The storage of the folder."""
        return Storage(self.job.recipe.storage)

    @property
    def lease_number(self) -> int:
        """The number of the lease, for the names of objects."""
        assert self.lease, "an output that is only looked at is not written"
        return self.lease.number

    @property
    def access(self) -> Access:
        """How the input is read."""
        return Access.of(self.job.recipe, images=self.job.needs_image)

    @classmethod
    def open(cls, job: Job, adopt: Collection[str] = (), lease: Lease | None = None) -> "Output":
        """Open a new or an existing output. Raises RecipeError if it belongs to another job or recipe.

        Fields of the fingerprint in `adopt` may differ. They and their stored values become `adopted`.
        """
        storage, path, ours = Storage(job.recipe.storage), job.recipe.output.path, fingerprint(job)
        try:
            stored = read_run(storage, path)
            planned = plan.closed(storage, path)
            folders = () if planned else (DATA, FAILED)
            rows = [folder for folder in folders if storage.objects(join(path, folder), ".parquet")]
        except OSError as error:
            raise SystemFailure(f"output.path: {path} cannot be read ({error.strerror}).") from error
        before, now = _compared(stored, job, ours), json.loads(json.dumps(ours, default=str))
        unknown = sorted(set(adopt) - now.keys() - before.keys())
        if unknown:
            raise RecipeError(f"--adopt: {unknown[0]} is no field that runs of one dataset share; see {RUN}.")
        output = cls(job=job, fingerprint=ours, adopted={}, planned=planned, lease=lease)
        if stored and planned:
            _refuse_other_job(path, stored_job(stored), job.name)
            _refuse_other(path, before, now, adopt)
            output.adopted.update({field: before.get(field) for field in adopt if before.get(field) != now.get(field)})
        elif planned:
            raise RecipeError(f"output.path: {path} holds a plan without {RUN}; give an empty or a new folder.")
        elif rows:
            raise RecipeError(
                f"output.path: {path} has parquet files in {rows[0]}/ that no run has written; give an empty or a new "
                "folder."
            )
        return output

    def plan(self, planning: Planning | None = None, *, extend: bool = False) -> Plan:
        """The stored plan, or a new plan, stored before it is used. A planning that was stopped goes on.

        `extend` adds units for objects that the stored plan lacks. Raises RecipeError for an input without images or
        with a column whose name the output needs, and Abandoned when the run has ended.
        """
        planning = planning or Planning()
        planning.confirm = self.confirm
        if self.adopted:
            with planning.storing():
                self._write_run()
        stored = self._stored(planning)
        if stored.complete and not extend:
            return stored
        try:
            return self._planned_further(stored, planning)
        except RecipeError:
            if stored.end.closed:  # the extension is refused as a whole
                with planning.storing():
                    plan.discard(self.storage, self.path, stored.end.closed)
            raise

    def _stored(self, planning: Planning) -> Plan:
        """The stored plan. An unfinished one of another recipe is deleted: it has no rows."""
        stored = plan.load(self.storage, self.path)
        if stored.objects and not stored.end.closed and not self._same_recipe():
            with planning.storing():
                plan.discard(self.storage, self.path, 0)
            return plan.EMPTY
        if stored.objects and not stored.complete:
            planning.begun.set()
        return stored

    def _same_recipe(self) -> bool:
        run = read_run(self.storage, self.path) or {}
        ours = json.loads(json.dumps(self.fingerprint, default=str))
        return stored_job(run)["name"] == self.job.name and run.get("fingerprint") == ours

    def _planned_further(self, stored: Plan, planning: Planning) -> Plan:
        known = PlannedPaths(self.storage, self.path) if stored.units else ()
        goes_on = sources.goes_on(stored.end.position, self.access.input)
        if goes_on:
            planning.left_out.merge(stored.left_out)
        found = sources.plan_units(
            self.access,
            _NoInput(self.storage.lookup(self.path), known),
            stored.end.position if goes_on else None,
            stored.columns.names,
            planning.left_out,
        )
        units = _until(planning, map(self._without_clash, found))
        first = next(units, None)
        if first is None and not stored.units:
            raise RecipeError(f"input.paths: no {self.job.noun} was found in {', '.join(self.job.recipe.input.paths)}.")
        if first is None and stored.complete:
            return stored
        with planning.storing():
            self.unmark()
            if not stored.objects:
                self._write_run()
        plan.store(self.storage, self.path, itertools.chain([first] if first else [], units), stored, planning)
        return plan.load(self.storage, self.path)

    def confirm(self) -> None:
        """Make sure that the lease is still ours. Raises SystemFailure otherwise."""
        if self.lease:
            self.lease.check()

    def _without_clash(self, unit: Unit) -> Unit:
        taken = clashes(unit.columns.names, self.job.adds)
        if taken:
            raise RecipeError(
                f"input: {unit.entries[0].stored.path} has a column {taken[0]}, a name that the output needs for "
                f"itself; rename it, for instance with input.rename={{{taken[0]}: source_{taken[0]}}}."
            )
        return unit

    def unmark(self) -> None:
        """Take the mark of a complete output away: there is work to do."""
        self.confirm()
        self.storage.delete(join(self.path, SUCCESS))

    def finish(self, ledger: Ledger, *, limited: bool) -> None:
        """Mark a balanced output as complete. Raises LedgerUnbalanced for a run that should have finished."""
        if ledger.balanced:
            self.confirm()
            self.storage.put(join(self.path, SUCCESS), b"")
            return
        self.unmark()
        if not limited:
            raise LedgerUnbalanced(f"{self.path}: {ledger.summary()}; run the same command again to finish it.")

    def _write_run(self) -> None:
        before = read_run(self.storage, self.path) or {}
        adopted = [*before.get("adopted", ()), *([self.adopted] if self.adopted else ())]
        job = {"name": self.job.name, "done": self.job.done}
        content: dict[str, Any] = {"job": job, "recipe": recorded(self.job.recipe.model_dump()), **self.job.record}
        content["fingerprint"] = self.fingerprint
        if adopted:
            content["adopted"] = adopted  # the values of these fields for earlier rows, one object per run
        path = join(self.path, RUN)
        self.confirm()
        try:
            self.storage.put(path, json.dumps(content, indent=1, default=str).encode() + b"\n")
        except OSError as error:
            raise SystemFailure(f"output.path: {path} cannot be written ({error.strerror}).") from None


class _NoInput(Container[str]):
    """The paths that are not to be planned: what is planned, and the output, which may lie in a folder of the input."""

    def __init__(self, output: Stored | Folder | None, known: Container[str]) -> None:
        self._output = output.path if isinstance(output, Folder) else None
        self._known = known

    def __contains__(self, path: object) -> bool:
        assert isinstance(path, str)
        return path in self._known or (self._output is not None and path.startswith(self._output))


def _until(planning: Planning, units: Iterator[Unit]) -> Iterator[Unit]:
    for unit in itertools.chain(units, [None]):
        planning.check()
        if unit:
            yield unit


def stored_job(run: Mapping[str, Any]) -> dict[str, str]:
    """The job of a run.json: its name, and its word for finished rows."""
    job = run.get("job")
    if isinstance(job, dict) and {"name", "done"} <= job.keys():
        return {"name": str(job["name"]), "done": str(job["done"])}
    return {"name": "caption", "done": "captioned"}  # older outputs name no job


def _compared(run: Mapping[str, Any] | None, job: Job, ours: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint of a run.json, without the fields that count no more."""
    stored: dict[str, Any] = run["fingerprint"] if run else {}
    return {field: value for field, value in stored.items() if field in ours or not job.outdated(field)}


def _refuse_other_job(path: str, stored: Mapping[str, str], name: str) -> None:
    if stored["name"] != name:
        raise RecipeError(
            f"output.path: {path} holds the rows of the job {stored['name']}, not of {name}; give a new output.path."
        )


def read_run(storage: Storage, path: str) -> dict[str, Any] | None:
    """The contents of an output's run.json; None if there is none."""
    name = join(path, RUN)
    try:
        content = json.loads(storage.read(name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict) or "fingerprint" not in content:
        raise RecipeError(f"{name}: is not the run.json of a run; give an empty or a new output.path.")
    return content


def _refuse_other(path: str, stored: dict[str, Any], wanted: dict[str, Any], adopt: Collection[str]) -> None:
    differing = [
        f"{field} was {stored.get(field)!r} and is {wanted.get(field)!r}"
        for field in sorted((stored.keys() | wanted.keys()) - set(adopt))
        if stored.get(field) != wanted.get(field)
    ]
    if differing:
        raise RecipeError(
            f"output.path: {path} belongs to another recipe: {'; '.join(differing)}. "
            f"Give the stored values{_moved(stored, wanted)} to resume it, or a new output.path; "
            "--adopt with the fields' names accepts them as they are now."
        )


def _moved(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """How to pin the stored revision, if the model has the same name and another revision now."""
    name, _, was = str(stored.get("model.source")).rpartition("@")
    now = str(wanted.get("model.source"))
    if now == f"{name}@{was}" or not now.startswith(f"{name}@"):
        return ""
    return f" (pin model.revision={was})" if HUB_ID.fullmatch(name) else ""
