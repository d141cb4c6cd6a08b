"""The output folder: run.json (output/record.py), the plan, and _SUCCESS at the end."""

import itertools
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from caprl_ray import plan, sources
from caprl_ray.errors import LedgerUnbalanced, RecipeError, SystemFailure, TooManyFailures
from caprl_ray.job import Job
from caprl_ray.output import fence, numbering, place, record, summary
from caprl_ray.output.extension import changes
from caprl_ray.output.fingerprint import fingerprint, short
from caprl_ray.output.lease import Lease
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.objects import DATA, FAILED
from caprl_ray.output.part import FOLDER as PARTS
from caprl_ray.output.part import Part
from caprl_ray.output.record import EXTENDING, PATHS, RUN, read_run, stored_job
from caprl_ray.output.summary import SUMMARY
from caprl_ray.plan import Plan, Planning, Unit
from caprl_ray.plan.known import PlannedPaths, PlannedVersions
from caprl_ray.rows.schema import LATER, clashes
from caprl_ray.sources.checks import checked
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage, join

SUCCESS = "_SUCCESS"


@dataclass(frozen=True, kw_only=True)
class Output:
    """The output folder of one dataset, opened for its job."""

    job: Job
    fingerprint: dict[str, Any]
    adopted: dict[str, Any]
    paths: list[str]
    """The paths of the input that its plan holds from now on."""
    extend: bool
    """Whether the plan is extended by what is new in the input."""
    again: bool
    """Whether finished rows are done again. Then the recipe may be another one, and it stays the other rows' recipe."""
    planned: bool
    """Whether an earlier run has planned its input to the end. Only then can there be rows."""
    notes: tuple[str, ...]
    """What a user should know of how the recipe and the output fit, a sentence each."""
    lease: Lease | None
    """The lease under which it was opened. Without one it is only looked at."""
    part: Part | None = None
    """The part that the run writes; None for all units."""

    @property
    def run(self) -> str:
        """The name of the recipe in the column `run`."""
        return short(self.fingerprint)

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
    def part_name(self) -> str:
        """The part, for the names of objects; empty for all units."""
        return self.part.name if self.part else ""

    @property
    def access(self) -> Access:
        """How the input is read."""
        return Access.of(self.job.recipe, images=self.job.needs_image)

    @classmethod
    def open(
        cls,
        job: Job,
        adopt: Collection[str] = (),
        lease: Lease | None = None,
        *,
        extend: bool = False,
        again: bool = False,
        part: Part | None = None,
    ) -> "Output":
        """Open a new or an existing output. Raises RecipeError if it belongs to another job or recipe.

        Fields of the fingerprint in `adopt` may differ. They and their stored values become `adopted`. With `extend`
        the recipe may have more input paths. With `again` the recipe may differ.
        """
        storage, path, ours = Storage(job.recipe.storage), job.recipe.output.path, fingerprint(job)
        try:
            stored = read_run(storage, path)
            planned = plan.closed(storage, path)
            folders = () if planned else (DATA, FAILED)
            rows = [folder for folder in folders if storage.objects(join(path, folder), ".parquet")]
        except OSError as error:
            place.refuse_whole(path)
            raise SystemFailure(f"output.path: {path} cannot be read ({error.strerror}).") from error
        before, now = record.compared(stored, job, ours), record.plain(ours)
        unknown = sorted(set(adopt) - now.keys() - before.keys() - {PATHS})
        if unknown:
            raise RecipeError(f"--adopt: {unknown[0]!r} is no field that runs of one dataset share; see {RUN}.")
        named, old = record.named_paths(job), record.stored_paths(stored or {}) if planned else []
        paths = list(dict.fromkeys([*old, *named]))
        output = cls(
            job=job,
            fingerprint=ours,
            adopted={},
            paths=paths,
            extend=extend,
            again=again,
            planned=planned,
            notes=tuple(_notes(job, storage, sorted(set(old).difference(named)), planned=planned)),
            lease=lease,
            part=part,
        )
        if stored and planned:
            record.refuse_other_job(path, stored_job(stored), job.name)
            numbering.refuse_other(path, before, now, lambda: {ref.kind for ref in plan.load(storage, path).units})
            if not again:
                record.refuse_other(path, before, now, adopt)
            if not extend and PATHS not in adopt:
                record.refuse_other_input(path, old, named, record.stored_paths(stored, EXTENDING))
            output.adopted.update({field: before.get(field) for field in adopt if before.get(field) != now.get(field)})
            if PATHS in adopt and not extend and paths != old:
                output.adopted[PATHS] = old
        elif again:
            raise RecipeError(f"--again: {path} has no rows of a run whose input was planned to its end.")
        elif planned:
            raise RecipeError(f"output.path: {path} holds a plan without {RUN}; give an empty or a new folder.")
        elif rows:
            raise RecipeError(
                f"output.path: {path} has parquet files in {rows[0]}/ that no run has written; give an empty or a new "
                "folder."
            )
        else:
            place.check(storage, path, job.recipe.input.paths)
        return output

    def plan(self, planning: Planning | None = None) -> Plan:
        """The stored plan, or a new plan, which is stored before use. Continues planning that was stopped.

        An extension adds units for objects that the stored plan lacks. Raises RecipeError for an input without images
        or with a column whose name the output needs, and Abandoned when the run has ended.
        """
        planning = planning or Planning()
        planning.confirm = self.confirm
        if self.planned and (self.adopted or self._unrecorded()):
            with planning.storing():
                self._write_run()
        stored = self._stored(planning)
        if stored.complete and not self.extend and not self._extending():
            return stored
        try:
            further = self._planned_further(stored, planning)
            with planning.storing():  # also if the paths are the same, to record that no extension is open
                self._write_input(paths=self.paths)
            return further
        except RecipeError:
            if stored.end.closed:  # the extension is refused as a whole
                with planning.storing():
                    self._write_input(paths=self._stored_paths())
                    plan.discard(self.storage, self.path, stored.end.closed)
            elif self.job.check_units:  # the input may be corrected after a refusal, so list all of it again
                with planning.storing():
                    plan.discard(self.storage, self.path, 0)
            raise

    def share(self, _: Planning) -> Plan:
        """The units of the run's part in the stored plan. Writes nothing, because the driver does not hold the lease of
        the whole output."""
        assert self.part
        return self.part.share(plan.load(self.storage, self.path))

    def whole_plan(self) -> Plan:
        """The complete stored plan. Raises RecipeError if an extension was stopped."""
        if not plan.load(self.storage, self.path).complete:
            raise RecipeError(f"--again: {self.path} is not planned to its end; run without --again first.")
        return self.plan()

    def check_columns(self, whole: Plan) -> None:
        """Raise RecipeError if this recipe does not fit the columns of the plan, which another recipe made."""
        names, kept = whole.columns.names, self.job.again[1] if self.again and self.job.again else None
        # Older outputs may have the source's own columns of some names (rows.schema.LATER).
        taken = [name for name in clashes(names, self.job.adds) if name not in LATER or name == kept]
        if taken:
            raise RecipeError(
                f"output.path: the input of {self.path} has a column {taken[0]}, a name that the output needs with "
                "this recipe; give a new output.path and input.rename."
            )
        self.job.check_columns(names)

    def _unrecorded(self) -> bool:
        """Whether run.json does not yet have the recipe."""
        return self.run not in (read_run(self.storage, self.path) or {}).get("runs", {})

    def _stored_paths(self) -> list[str]:
        return record.stored_paths(read_run(self.storage, self.path) or {})

    def _extending(self) -> bool:
        """Whether the recipe has a path of an extension that was killed, perhaps before it stored units."""
        run = read_run(self.storage, self.path) or {}
        return not set(self.paths).isdisjoint({*record.stored_paths(run, EXTENDING)} - {*record.stored_paths(run)})

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
        """Whether the recipe includes everything in an unfinished plan. It may have more paths."""
        run = read_run(self.storage, self.path) or {}
        same = stored_job(run)["name"] == self.job.name and run.get("fingerprint") == record.plain(self.fingerprint)
        planned = {*record.stored_paths(run), *record.stored_paths(run, EXTENDING)}
        return same and planned <= set(self.paths) and record.takes_alike(run, self.job)

    def _planned_further(self, stored: Plan, planning: Planning) -> Plan:
        known: PlannedPaths | PlannedVersions | tuple[()] = ()
        if stored.units:
            known = (PlannedVersions if self.extend else PlannedPaths)(self.storage, self.path)
        goes_on = sources.goes_on(stored.end.position, self.access.input)
        if goes_on:
            planning.left_out.merge(stored.left_out)
        found = sources.plan_units(
            self.access,
            known,
            stored.end.position if goes_on else None,
            stored.columns.names,
            planning.left_out,
        )
        units = _until(
            planning,
            checked(
                self._checked_units(stored, found),
                self.job.recipe.input,
                self.job.adds,
                self.job.check_columns,
                stored.columns,
            ),
        )
        first = next(units, None)
        if first is None and not stored.units:
            left = f"; left out: {planning.left_out.summary()}" if planning.left_out else ""
            paths = ", ".join(self.job.recipe.input.paths)
            raise RecipeError(f"input.paths: no {self.job.noun} was found in {paths}{left}.")
        if first is None and stored.complete:
            self._note_changes(known, planning)
            return stored
        with planning.storing():
            self.unmark()
            if not stored.objects:
                self._write_run()
            elif self.paths != self._stored_paths():  # so that the same command continues if this one is killed
                self._write_input(paths=self._stored_paths(), extending=self.paths)
        plan.store(self.storage, self.path, itertools.chain([first] if first else [], units), stored, planning)
        self._note_changes(known, planning)
        return plan.load(self.storage, self.path)

    def _checked_units(self, stored: Plan, found: Iterator[Unit]) -> Iterator[Unit]:
        """The found units, after the job's check. The check gets all units of a new plan, including those that an
        earlier run stored, and none of an extension."""
        if self.job.check_units is None or stored.end.closed:
            return found
        before = plan.load_units(self.storage, stored.units)
        return itertools.islice(self.job.check_units(itertools.chain(before, found)), len(stored.units), None)

    def _note_changes(self, known: object, planning: Planning) -> None:
        if isinstance(known, PlannedVersions):
            planning.notes += changes(known)

    def confirm(self) -> None:
        """Check that the lease is still ours. Raises SystemFailure otherwise."""
        if self.lease:
            self.lease.check()

    def unmark(self) -> None:
        """Remove the mark of a complete output, because there is work to do."""
        self.confirm()
        self.storage.delete(join(self.path, SUCCESS))

    def empty(self) -> bool:
        """Whether the output holds nothing but a lease."""
        names = [RUN, plan.FOLDER, fence.FOLDER, DATA, FAILED, PARTS]
        return not any(self.storage.lookup(join(self.path, name)) for name in names)

    def marked(self) -> bool:
        """Whether the output is marked as complete."""
        return self.storage.lookup(join(self.path, SUCCESS)) is not None

    def accepted(self) -> tuple[int, int]:
        """The numbers of rows and of failed rows when the output was last complete."""
        return record.accepted(read_run(self.storage, self.path))

    def finish(self, ledger: Ledger, *, limited: bool, refused: TooManyFailures | None = None) -> None:
        """Mark a balanced output as complete, unless it is `refused`, which is then raised.

        Raises LedgerUnbalanced for a run that should have finished.
        """
        if not ledger.balanced and not limited:
            self.unmark()
            raise LedgerUnbalanced(f"{self.path}: {ledger.summary()}; run the same command again to finish it.")
        whole = ledger.balanced and not refused
        if not whole:
            self.unmark()
        self._count_rows(ledger, accepted=whole)
        self._write_summary(ledger)
        if refused:
            raise refused
        if whole:
            self.confirm()
            self.storage.put(join(self.path, SUCCESS), b"")

    def _count_rows(self, ledger: Ledger, *, accepted: bool) -> None:
        before = read_run(self.storage, self.path)
        counted = record.counted(before, ledger, accepted=accepted) if before else None
        if counted and counted != before:
            self._put_run(counted)

    def _write_summary(self, ledger: Ledger) -> None:
        """Write the counters of the whole output, or remove those of an earlier run if they do not add up."""
        path, found = join(self.path, SUMMARY), summary.content(ledger)
        self.confirm()
        try:
            if found:
                self.storage.put(path, json.dumps(found, indent=1).encode() + b"\n")
            else:
                self.storage.delete(path)
        except OSError as error:
            raise SystemFailure(f"output.path: {path} cannot be written ({error.strerror}).") from None

    def _write_run(self) -> None:
        """Record this recipe. A path that --extend adds is recorded when its units are in the plan."""
        before = read_run(self.storage, self.path) or {}
        paths = self.paths if not self.planned or PATHS in self.adopted else record.stored_paths(before)
        found = record.content(self.job, self.fingerprint, before, self.adopted, paths)
        self._put_run({**before, "runs": found["runs"]} if self.again else found)

    def _write_input(self, **paths: list[str]) -> None:
        before = read_run(self.storage, self.path) or {}
        if before.get("input") != paths:
            self._put_run({**before, "input": paths})

    def _put_run(self, content: dict[str, Any]) -> None:
        path = join(self.path, RUN)
        self.confirm()
        try:
            self.storage.put(path, json.dumps(content, indent=1, default=str).encode() + b"\n")
        except OSError as error:
            raise SystemFailure(f"output.path: {path} cannot be written ({error.strerror}).") from None


@contextmanager
def forgotten_if_refused(output: Output) -> Iterator[None]:
    """Remove the lease if a recipe is refused and nothing is planned."""
    try:
        yield
    except RecipeError:
        if output.lease:
            output.lease.forgotten = output.empty()
        raise


def _notes(job: Job, storage: Storage, unnamed: list[str], *, planned: bool) -> Iterator[str]:
    if unnamed:
        yield f"{PATHS}: the output's plan also holds {record.some(unnamed)}, which this recipe does not name"
    # Said once: a resumed run does not ask storage about its input.
    around = None if planned else place.inside(storage, job.recipe.output.path, job.recipe.input.paths)
    if around:
        yield f"output.path lies in the input {around}; its own files are no input"


def _until(planning: Planning, units: Iterator[Unit]) -> Iterator[Unit]:
    for unit in itertools.chain(units, [None]):
        planning.check()
        if unit:
            yield unit
