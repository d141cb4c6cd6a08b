"""A whole job on one page: plan -> read -> the job's stages -> commit, then the ledger.

Every arrow is a Ray Data operator. Each operator stands in the module of its name; the stages stand with their job, for
instance caption/job.py.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import ray
from ray.actor import ActorHandle
from ray.data import Dataset

from caprl_ray.cluster import resources, session
from caprl_ray.cluster.interrupt import interruptible
from caprl_ray.errors import RecipeError, TooManyFailures
from caprl_ray.job import Job
from caprl_ray.output import fence, lease, ledger, place, verdict
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.committed import Committed, read_committed
from caprl_ray.output.extension import GONE
from caprl_ray.output.folder import Output
from caprl_ray.output.held import held_rows
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.repair import repair
from caprl_ray.plan import Plan
from caprl_ray.read import while_planning
from caprl_ray.read.datasource import PlannedRows, Work, accepting, remaining
from caprl_ray.read.present import Accept
from caprl_ray.read.while_planning import Underway
from caprl_ray.watch.breaker import CircuitBreaker
from caprl_ray.watch.counter import Counter
from caprl_ray.watch.replicas import ReplicaWatch
from caprl_ray.watch.reporter import Reporter
from caprl_ray.watch.standstill import StandstillGuard
from caprl_ray.watch.start import Start
from caprl_ray.watch.steps import Steps


def run(
    job: Job,
    *,
    limit: int | None = None,
    retry: Collection[str] = (),
    adopt: Collection[str] = (),
    extend: bool = False,
    accept_touched: bool = False,
    debug: bool = False,
) -> Ledger:
    """Finish everything in the plan that no earlier run has finished, and balance the ledger.

    Args:
        job: what is done with the rows.
        limit: stop after this many rows; the next run continues.
        retry: codes of failed rows to try again.
        adopt: fields of the fingerprint that may differ from those of earlier runs.
        extend: also plan what is new in the input.
        accept_touched: read sources whose version changed and whose size did not.
        debug: show Ray's own output.

    Raises:
        RecipeError: the recipe is wrong; nothing was started.
        SystemFailure: the run cannot go on. The same command resumes it.
        TooManyFailures: the circuit breaker stopped the run, or too many rows of the whole output failed.
        LedgerUnbalanced: the run ended and rows are missing.
    """
    seen = Output.open(job, adopt, extend=extend)  # refuses a wrong recipe before anything is written
    # Disconnect from Ray before releasing the lease: workers of a stopped run may still be writing.
    with (
        place.left_as_it_was(seen.path),
        lease.held(seen.storage, seen.path) as own,
        session.lasting(debug, job.engine_on_cpu),
    ):
        output = Output.open(job, adopt, own, extend=extend)  # again: the last run may have begun it in between
        with _forgotten_if_refused(output, own), while_planning.begun(output.plan) as underway:
            least = Accept.TOUCHED if accept_touched else Accept.SAME_ROWS if extend else Accept.NONE
            return _run(output, underway, limit, retry, least, debug)


@contextmanager
def _forgotten_if_refused(output: Output, own: lease.Lease) -> Iterator[None]:
    """Leave no lease where a recipe is refused and nothing is planned."""
    try:
        yield
    except RecipeError:
        own.forgotten = output.empty()
        raise


def _run(
    output: Output, underway: Underway, limit: int | None, retry: Collection[str], least: Accept, debug: bool
) -> Ledger:
    storage, path, job, tell = output.storage, output.path, output.job, Steps()
    worked, notes = True, list(output.notes)
    if output.planned or underway.soon():
        plan, committed = underway.whole(), read_committed(storage, path, retry, tell)
        held = partial(held_rows, storage, path, tell=tell)
        work = accepting(remaining(plan.units, committed), retry, least, storage, held)
        worked = bool(work) or not output.marked()
        notes += underway.planning.notes
        if not work:
            notes.append(nothing_to_do(output, ledger.balance(plan.units, committed, job.done), retry))
        else:
            output.unmark()
            with _examples(output):
                _finish(output, plan, committed, work, limit, debug)
            committed = read_committed(storage, path, tell=tell)
    else:
        with _examples(output):
            plan = _finish_while_planning(output, underway, limit, debug)
        committed = read_committed(storage, path, tell=tell)
    output.confirm()
    fence.sweep(storage, path)
    if repair(storage, path, committed, tell):
        committed = read_committed(storage, path, tell=tell)
    balance = ledger.balance(plan.units, committed, job.done, job.noun, plan.left_out)
    # An output that was complete and has no work is accepted already, perhaps with another limit.
    limits, known = job.recipe.failures, GONE if output.extend else frozenset()
    over = verdict.over(balance, limits, *output.accepted(), known) if worked else None
    refused = verdict.refusal(over, storage, path) if over else None
    output.finish(balance, limited=limit is not None, refused=refused)
    return replace(balance, notes=tuple(notes))


@contextmanager
def _examples(output: Output) -> Iterator[None]:
    """Show some failed rows when the breaker stops the run."""
    try:
        yield
    except TooManyFailures as error:
        shown = verdict.examples(output.storage, output.path)
        raise TooManyFailures(f"{error} Failed rows: {shown.rstrip('; ')}." if shown else str(error)) from error


def nothing_to_do(output: Output, done: Ledger, retry: Collection[str]) -> str:
    """The sentence for a run without work."""
    job = output.job
    said = f"nothing to {job.name}: every {job.noun} of the plan is {job.done} or failed"
    said += ", the input has nothing new" if output.extend else ""
    said += ", and no failed row has a code of --retry-failed" if retry else ""
    return said + (f"; --retry-failed tries failed rows again ({done.failed:,})" if done.failed and not retry else "")


def _finish(
    output: Output, plan: Plan, committed: dict[int, Committed], work: list[Work], limit: int | None, debug: bool
) -> None:
    job = output.job
    retried: defaultdict[str, int] = defaultdict(int)
    for unit in work:
        for (_, code), rows in unit.retry.items():
            retried[code] += len(rows)
    start = Start.of(ledger.balance(plan.units, committed, job.done), limit, retried, plan.units)
    with session.session(job, debug), _watched(output, debug) as watch:
        watch.reporter.start = start
        watch.breaker.allow_for(*start.judged)
        watch.breaker.ignored = GONE if output.extend else frozenset()
        rows = read(PlannedRows(work, job.row_schema(plan.columns), output.access, watch.counter))
        _process(rows, output, limit, watch)


def _finish_while_planning(output: Output, underway: Underway, limit: int | None, debug: bool) -> Plan:
    """Process a new output whose input takes long to list: the replicas start meanwhile."""
    job = output.job
    with session.session(job, debug, guarded=False), _watched(output, debug) as watch:

        def hand_over(planned: "Future[Plan]") -> None:
            try:
                plan = planned.result()
                watch.reporter.starting = None
                watch.reporter.start = Start.of(ledger.balance(plan.units, {}, job.done), limit, refs=plan.units)
                while_planning.hand_over(plan, job.row_schema(plan.columns), watch.counter)
                watch.standstill.expect_rows()
            except Exception as error:  # noqa: BLE001 (whatever it is, it ends the run)
                watch.stop(error)

        watch.reporter.starting = underway.planning.status
        underway.plan.add_done_callback(hand_over)
        _process(while_planning.read(watch.counter, output.access), output, limit, watch)
    return underway.plan.result()


@dataclass(frozen=True)
class _Watch:
    counter: ActorHandle
    breaker: CircuitBreaker
    reporter: Reporter
    standstill: StandstillGuard
    stop: Callable[[Exception], None]


@contextmanager
def _watched(output: Output, debug: bool) -> Iterator[_Watch]:
    counter, job = resources.beside_driver(Counter), output.job
    with (
        Reporter(counter, output, debug=debug) as reporter,
        interruptible() as stop,
        CircuitBreaker(counter, job, stop) as breaker,
        ReplicaWatch(counter, job, stop),
        StandstillGuard(counter, job, stop) as standstill,
    ):
        yield _Watch(counter, breaker, reporter, standstill, stop)


def _process(rows: Dataset, output: Output, limit: int | None, watch: _Watch) -> None:
    if limit is not None:
        rows = rows.limit(limit)
    commit(output.job.stages(rows, watch.counter), output, watch.counter)


def read(planned: PlannedRows) -> Dataset:
    """Plan -> rows."""
    return ray.data.read_datasource(planned, override_num_blocks=planned.tasks, num_cpus=resources.READ_CPUS)


def commit(rows: Dataset, output: Output, counter: ActorHandle) -> None:
    """Finished and failed rows -> parquet objects."""
    job, rows_each = output.job, output.job.recipe.output.rows_per_object
    number = output.lease_number
    sink = CommittedRows(output.storage, output.path, rows_each, job.adds, number, output.run, counter)
    rows.write_datasink(sink, ray_remote_args={"num_cpus": resources.WRITE_CPUS})
