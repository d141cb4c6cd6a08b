"""A whole job on one page: plan -> read -> the job's stages -> commit, then the ledger.

Every arrow is a Ray Data operator. Each operator is in the module of its name; the stages are in the module of their
job, for instance caption/job.py. Several drivers may share an output, each with a part of the plan: the first one
plans, and the last one balances the whole ledger.
"""

import sys
from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import Future
from functools import partial

import ray
from ray.actor import ActorHandle
from ray.data import Dataset

from caprl_ray import divided
from caprl_ray.cluster import resources, session, signals
from caprl_ray.job import Job
from caprl_ray.output import again as doing_again
from caprl_ray.output import doubtful as doubtful_rows
from caprl_ray.output import lease, ledger, parts, place, verdict
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.committed import CommittedUnits, read_committed
from caprl_ray.output.doubtful import Identity
from caprl_ray.output.ended import ended
from caprl_ray.output.extension import GONE
from caprl_ray.output.folder import Output, forgotten_if_refused
from caprl_ray.output.held import held_rows
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.part import Part
from caprl_ray.output.repair import repair
from caprl_ray.plan import Plan
from caprl_ray.read import while_planning
from caprl_ray.read.again import Keeps
from caprl_ray.read.datasource import PlannedRows, Work, accepting, chosen_again, only_retried, remaining
from caprl_ray.read.present import Accept
from caprl_ray.read.while_planning import Underway
from caprl_ray.watch import status_file
from caprl_ray.watch.around import Watch, watched
from caprl_ray.watch.doubtful import DoubtfulRows
from caprl_ray.watch.start import Start
from caprl_ray.watch.steps import Steps

# Rounds that process the rows of sick replicas again. Rows that are left after them are missing in the ledger.
MOST_ROUNDS = 3


def run(
    job: Job,
    *,
    limit: int | None = None,
    retry: Collection[str] = (),
    adopt: Collection[str] = (),
    extend: bool = False,
    accept_touched: bool = False,
    again: str | None = None,
    part: Part | None = None,
    debug: bool = False,
    opening: str = "",
) -> Ledger:
    """Process all unfinished rows of the plan, and balance the ledger.

    Args:
        job: the job, which defines the stages.
        limit: stop after this many rows; the next run continues.
        retry: codes of failed rows to try again.
        adopt: fields of the fingerprint that may differ from those of earlier runs.
        extend: also plan what is new in the input.
        accept_touched: read sources whose version changed and whose size did not.
        again: process only finished rows that meet this condition, again; the recipe may differ.
        part: process only this part of the plan, while other drivers process the others. Not with `limit`, `extend` or
            `again`. The ledger is that of the part, or of the whole output if it is complete now.
        debug: show Ray's own output.
        opening: the first lines of the log, unless the recipe or the input is refused.

    Raises:
        RecipeError: the recipe is wrong; nothing was started.
        SystemFailure: the run cannot continue. The same command resumes it.
        Stopped: a signal ended the run. Finished rows are committed.
        TooManyFailures: the circuit breaker stopped the run, or too many rows of the whole output failed.
        LedgerUnbalanced: the run ended and rows are missing.
    """
    opened = partial(Output.open, job, adopt, extend=extend, again=again is not None, part=part)
    seen = opened()  # refuses a wrong recipe before anything is written
    with signals.handled(), place.left_as_it_was(seen.path):
        if part:
            sys.stderr.write(opening)
            divided.plan_once(seen, opened, part)
        held = parts.held(seen.storage, seen.path, part) if part else lease.held(seen.storage, seen.path)
        # Disconnect from Ray before releasing the lease: workers of a stopped run may still be writing.
        with held as own, session.lasting(debug, job.engine_on_cpu):
            output = opened(own)  # again: the last run may have begun it in the meantime
            # Of a run that ended before it could.
            doubtful_rows.settle(output.storage, output.path, part.name if part else None)
            least = Accept.TOUCHED if accept_touched else Accept.SAME_ROWS if extend else Accept.NONE
            if again is not None:
                sys.stderr.write(opening)
                with status_file.end_told(output):
                    return _run_again(output, again, limit, least, debug)
            make = output.share if part else output.plan
            with forgotten_if_refused(output), while_planning.begun(make) as underway:
                if not output.planned:
                    underway.begins()
                sys.stderr.write("" if part else opening)
                with status_file.end_told(output):
                    done = _run(output, underway, limit, retry, least, debug)
        return divided.complete(output, opened, part, done) if part else done


def _run(
    output: Output, underway: Underway, limit: int | None, retry: Collection[str], least: Accept, debug: bool
) -> Ledger:
    storage, path, job, tell = output.storage, output.path, output.job, Steps()
    worked, notes, known, doubtful = True, list(output.notes), None, set[Identity]()
    held = partial(held_rows, storage, path, tell=tell, part=output.part)
    if output.planned or underway.soon():
        plan, committed = underway.whole(), read_committed(storage, path, retry, tell, part=output.part)
        if output.adopted:
            output.check_columns(plan)
        work = accepting(remaining(plan.units, committed), retry, least, storage, held)
        worked = bool(work) or not output.marked()
        notes += underway.planning.notes
        if not work:
            done, known = ledger.balance(plan.units, committed, job.done, job.noun), committed
            notes.append(done.nothing_to_do(job.name, extended=output.extend, retried=bool(retry)))
            if output.part and worked:
                status_file.nothing_to_do(output, done)
        else:
            output.unmark()
            start = _start(job, plan, committed, limit, work)
            doubtful = _finish(output, plan, start, work, limit, debug)
    else:
        plan, doubtful = _finish_while_planning(output, underway, limit, debug)
    if doubtful:
        once_more = _once_more(output, plan, doubtful, retry, least, limit, debug)
        notes.append(f"{once_more:,} of {len(doubtful):,} {job.noun}s of sick replicas were processed once more")
    return ended(output, plan, notes, known, worked=worked, limited=limit is not None, tell=tell)


def _once_more(
    output: Output,
    plan: Plan,
    doubtful: set[Identity],
    retry: Collection[str],
    least: Accept,
    limit: int | None,
    debug: bool,
) -> int:
    """Process the rows of sick replicas again, unless the run is limited. Returns their number."""
    storage, path, tell, rows, done = output.storage, output.path, Steps(), doubtful, 0
    for _ in range(MOST_ROUNDS if limit is None else 0):
        committed = read_committed(storage, path, retry, tell, part=output.part)
        work = only_retried(remaining(plan.units, committed), rows)
        if not work:
            break
        work = accepting(work, retry, least, storage, partial(held_rows, storage, path, part=output.part))
        again = _finish(output, plan, _start(output.job, plan, committed, limit, work), work, limit, debug)
        done, rows = done + len(rows - again), again
    return done


def _run_again(output: Output, condition: str, limit: int | None, least: Accept, debug: bool) -> Ledger:
    """Process finished rows that meet a condition again, and no others."""
    assert output.job.again, "a job that can do rows again says what it keeps of their old versions"
    storage, path, tell = output.storage, output.path, Steps()
    plan, committed = output.whole_plan(), read_committed(storage, path, tell=tell)
    output.check_columns(plan)
    if doing_again.load(storage, path) is None and repair(storage, path, committed, tell):
        committed = read_committed(storage, path, tell=tell)
    request = doing_again.requested(storage, path, condition, output.run, output.lease_number, tell)
    answers, notes = doing_again.answers(storage, path, request, tell), [*output.notes]
    left = answers.left(request)
    work = accepting(chosen_again(plan.units, committed, left), (), least, storage, partial(held_rows, storage, path))
    if work:
        output.unmark()
        done = request.rows - sum(len(chosen.rows) for chosen in left.values())
        failed = sum(map(len, answers.failed.values()))
        start = Start(done=done, failed=failed, planned=request.rows, limit=limit)
        doubtful = _finish(output, plan, start, work, limit, debug)
        notes += [f"{len(doubtful):,} of these rows came from a sick replica and are left"] if doubtful else []
    unfinished = remaining(plan.units, committed)
    notes += ["rows of the plan are missing; run without --again to finish them"] if unfinished else []
    worked, limited = bool(work) or not output.marked(), bool(unfinished) or limit is not None
    return ended(output, plan, notes, worked=worked, limited=limited, tell=tell)


def _start(job: Job, plan: Plan, committed: CommittedUnits, limit: int | None, work: list[Work]) -> Start:
    retried: defaultdict[str, int] = defaultdict(int)
    for unit in work:
        for (_, code), rows in unit.retry.items():
            retried[code] += len(rows)
    return Start.of(ledger.balance(plan.units, committed, job.done), limit, retried, plan.units)


def _finish(
    output: Output, plan: Plan, start: Start, work: list[Work], limit: int | None, debug: bool
) -> set[Identity]:
    """Process rows. Returns the rows that a sick replica wrote and that are still unfinished."""
    job = output.job
    with verdict.with_examples(output.storage, output.path, output.part), watched(output, debug) as watch:
        watch.reporter.start = start
        watch.breaker.allow_for(*start.judged)
        watch.breaker.ignored = GONE if output.extend else frozenset()
        keeps = Keeps.of(output.storage, output.path, job.again)
        schema, in_order = job.row_schema(plan.columns), limit is not None
        planned = PlannedRows(work, schema, output.access, watch.counter, keeps, planned_order=in_order)
        return _process(read(planned), output, limit, watch)


def _finish_while_planning(
    output: Output, underway: Underway, limit: int | None, debug: bool
) -> tuple[Plan, set[Identity]]:
    """Process a new output while its input is still being listed, so that replicas start meanwhile. Returns the plan,
    and the same rows as `_finish`."""
    job = output.job
    with verdict.with_examples(output.storage, output.path), watched(output, debug, guarded=False) as watch:

        def hand_over(planned: "Future[Plan]") -> None:
            try:
                plan = planned.result()
                watch.reporter.starting = None
                watch.reporter.start = Start.of(ledger.balance(plan.units, {}, job.done), limit, refs=plan.units)
                schema, in_order = job.row_schema(plan.columns), limit is not None
                while_planning.hand_over(plan, schema, watch.counter, planned_order=in_order)
                watch.standstill.expect_rows()
            except Exception as error:  # noqa: BLE001 (whatever it is, it ends the run)
                watch.stop(error)

        watch.reporter.starting = underway.planning.status
        underway.plan.add_done_callback(hand_over)
        doubtful = _process(while_planning.read(watch.counter, output.access), output, limit, watch)
    return underway.plan.result(), doubtful


def _process(rows: Dataset, output: Output, limit: int | None, watch: Watch) -> set[Identity]:
    if limit is not None:
        rows = rows.limit(limit)
    with DoubtfulRows(watch.look, output):
        commit(output.job.stages(rows, watch.counter), output, watch.counter)
    # After an error, the next run does it.
    return doubtful_rows.settle(output.storage, output.path, output.part.name if output.part else None)


def read(planned: PlannedRows) -> Dataset:
    """Plan -> rows."""
    return ray.data.read_datasource(planned, override_num_blocks=planned.tasks, num_cpus=resources.READ_CPUS)


def commit(rows: Dataset, output: Output, counter: ActorHandle) -> None:
    """Finished and failed rows -> parquet objects."""
    job, rows_each = output.job, output.job.recipe.output.rows_per_object
    number, part = output.lease_number, output.part_name
    sink = CommittedRows(output.storage, output.path, rows_each, job.adds, number, output.run, part, counter)
    rows.write_datasink(sink, ray_remote_args={"num_cpus": resources.WRITE_CPUS})
