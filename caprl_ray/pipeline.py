"""A whole job on one page: plan -> read -> the job's stages -> commit, then the ledger.

Every arrow is a Ray Data operator. Each operator stands in the module of its name; the stages stand with their job, for
instance caption/job.py.
"""

from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import ray
from ray.actor import ActorHandle
from ray.data import Dataset

from caprl_ray.cluster import resources, session
from caprl_ray.cluster.interrupt import interruptible
from caprl_ray.job import Job
from caprl_ray.output import lease, ledger
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.committed import Committed, read_committed
from caprl_ray.output.folder import Output
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.repair import repair
from caprl_ray.plan import Plan
from caprl_ray.read import while_planning
from caprl_ray.read.datasource import PlannedRows, Work, remaining
from caprl_ray.storage import Storage
from caprl_ray.watch.breaker import CircuitBreaker
from caprl_ray.watch.counter import Counter
from caprl_ray.watch.progress import ProgressLine, Start, Words
from caprl_ray.watch.steps import Steps


def run(
    job: Job,
    *,
    limit: int | None = None,
    retry: Collection[str] = (),
    adopt: Collection[str] = (),
    extend: bool = False,
    debug: bool = False,
) -> Ledger:
    """Finish everything in the plan that no earlier run has finished, and balance the ledger.

    Args:
        job: what is done with the rows.
        limit: stop after this many rows; the next run continues.
        retry: codes of failed rows to try again.
        adopt: fields of the fingerprint that may differ from those of earlier runs.
        extend: also plan what is new in the input.
        debug: show Ray's own output.

    Raises:
        RecipeError: the recipe is wrong; nothing was started.
        SystemFailure: the run cannot go on. The same command resumes it.
        TooManyFailures: the circuit breaker stopped the run.
        LedgerUnbalanced: the run ended and rows are missing.
    """
    output = Output.open(job, adopt)
    # Disconnect from Ray before releasing the lease: workers of a stopped run may still be writing.
    with (
        lease.held(output.storage, output.path),
        session.lasting(debug, job.engine_on_cpu),
        while_planning.begun(partial(output.plan, extend=extend)) as planned,
    ):
        return _run(output, planned, limit, retry, debug)


def _run(output: Output, planned: "Future[Plan]", limit: int | None, retry: Collection[str], debug: bool) -> Ledger:
    storage, path, done, tell = output.storage, output.path, output.job.done, Steps()
    if output.planned or wait([planned], while_planning.HEAD_START_S).done:
        plan, committed = planned.result(), read_committed(storage, path, retry, tell)
        work = remaining(plan.units, committed)
        if work:
            output.unmark()
            _finish(output, plan, committed, work, limit, debug)
            committed = read_committed(storage, path, tell=tell)
    else:
        plan = _finish_while_planning(output, planned, limit, debug)
        committed = read_committed(storage, path, tell=tell)
    if repair(storage, path, committed, tell):
        committed = read_committed(storage, path, tell=tell)
    balance = ledger.balance(plan.units, committed, done)
    output.finish(balance, limited=limit is not None)
    return balance


def _finish(
    output: Output, plan: Plan, committed: dict[int, Committed], work: list[Work], limit: int | None, debug: bool
) -> None:
    job = output.job
    retried = sum(len(rows) for unit in work for rows in unit.retry.values())
    start = Start.of(ledger.balance(plan.units, committed, job.done), limit, retried)
    with session.session(job, debug), _watched(job) as watch:
        watch.line.start = start
        watch.breaker.allow_for(start.done, start.failed)
        rows = read(PlannedRows(work, job.row_schema(plan.columns), output.access))
        _process(rows, job, limit, watch)


def _finish_while_planning(output: Output, planned: "Future[Plan]", limit: int | None, debug: bool) -> Plan:
    """Process a new output whose input takes long to list: the replicas start meanwhile."""
    job = output.job
    with session.session(job, debug), _watched(job) as watch:

        def hand_over(planned: "Future[Plan]") -> None:
            try:
                plan = planned.result()
                watch.line.start = Start.of(ledger.balance(plan.units, {}, job.done), limit)
                while_planning.hand_over(plan, job.row_schema(plan.columns), watch.counter)
            except Exception as error:  # noqa: BLE001 (whatever it is, it ends the run)
                watch.stop(error)

        planned.add_done_callback(hand_over)
        _process(while_planning.read(watch.counter, output.access), job, limit, watch)
    return planned.result()


@dataclass(frozen=True)
class _Watch:
    counter: ActorHandle
    breaker: CircuitBreaker
    line: ProgressLine
    stop: Callable[[Exception], None]


@contextmanager
def _watched(job: Job) -> Iterator[_Watch]:
    counter = resources.beside_driver(Counter)
    with (
        interruptible() as stop,
        CircuitBreaker(counter, job, stop) as breaker,
        ProgressLine(counter, words=Words.of(job)) as line,
    ):
        yield _Watch(counter, breaker, line, stop)


def _process(rows: Dataset, job: Job, limit: int | None, watch: _Watch) -> None:
    if limit is not None:
        rows = rows.limit(limit)
    commit(job.stages(rows, watch.counter), job)


def read(planned: PlannedRows) -> Dataset:
    """Plan -> rows."""
    return ray.data.read_datasource(planned, override_num_blocks=planned.tasks, num_cpus=resources.READ_CPUS)


def commit(rows: Dataset, job: Job) -> None:
    """Finished and failed rows -> parquet objects."""
    settings = job.recipe.output
    sink = CommittedRows(Storage(job.recipe.storage), settings.path, settings.rows_per_object, job.adds)
    rows.write_datasink(sink, ray_remote_args={"num_cpus": resources.WRITE_CPUS})
