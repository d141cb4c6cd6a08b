"""The whole job on one page: plan -> read -> prepare -> caption -> commit, then the ledger.

Every arrow is a Ray Data operator; what each one does is in the module of its name.
"""

import math
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import ray
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, Dataset

from caprl_ray.caption.stage import Captioner
from caprl_ray.cluster import resources, session
from caprl_ray.cluster.interrupt import interruptible
from caprl_ray.engines import concurrency, launch
from caprl_ray.models.resolve import ModelRef, resolve
from caprl_ray.output import lease, ledger
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.committed import Committed, failed_attempts, read_committed
from caprl_ray.output.folder import Output
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.repair import repair
from caprl_ray.plan import Plan
from caprl_ray.prepare.stage import Prepare
from caprl_ray.read import while_planning
from caprl_ray.read.datasource import PlannedImages, Work, remaining
from caprl_ray.recipe.sections import Recipe
from caprl_ray.rows.schema import row_schema
from caprl_ray.storage import Storage
from caprl_ray.watch.breaker import CircuitBreaker
from caprl_ray.watch.counter import Counter
from caprl_ray.watch.progress import ProgressLine, Start


def run(
    recipe: Recipe,
    *,
    limit: int | None = None,
    retry: Collection[str] = (),
    adopt: Collection[str] = (),
    extend: bool = False,
    debug: bool = False,
) -> Ledger:
    """Caption everything in the plan that no earlier run has finished, and balance the ledger.

    Args:
        limit: stop after this many images; the next run goes on from there.
        retry: codes of failed rows that are to be tried again.
        adopt: fields of the fingerprint that may differ from those of the runs before.
        extend: plan what is new in the input, too.
        debug: show Ray's own output.

    Raises RecipeError before anything starts, SystemFailure when the run cannot go on (it can be resumed),
    TooManyFailures when it was stopped for its failed rows, and LedgerUnbalanced when it ended and rows are missing.
    """
    model = resolve(recipe)
    output = Output.open(recipe, model, adopt)
    # Ray is left first, and with it whatever a stopped run still writes; then another driver may begin.
    with (
        lease.held(output.storage, output.path),
        session.lasting(debug, launch.computes_on_cpu(recipe)),
        while_planning.begun(partial(output.plan, extend=extend)) as planned,
    ):
        return _run(output, planned, limit, retry, debug)


def _run(output: Output, planned: "Future[Plan]", limit: int | None, retry: Collection[str], debug: bool) -> Ledger:
    storage, path = output.storage, output.path
    if output.planned or wait([planned], while_planning.HEAD_START_S).done:
        plan, committed = planned.result(), read_committed(storage, path)
        work = remaining(plan.units, committed, failed_attempts(storage, path, retry))
        if work:
            _caption(output, plan, committed, work, limit, debug)
            committed = read_committed(storage, path)
    else:
        plan = _caption_while_planning(output, planned, limit, debug)
        committed = read_committed(storage, path)
    if repair(storage, path, committed):
        committed = read_committed(storage, path)
    balance = ledger.balance(plan.units, committed)
    output.finish(balance, limited=limit is not None)
    return balance


def _caption(
    output: Output, plan: Plan, committed: dict[int, Committed], work: list[Work], limit: int | None, debug: bool
) -> None:
    with session.session(output.recipe, debug), _watched(output.recipe) as run:
        run.line.start = Start.of(ledger.balance(plan.units, committed), limit)
        rows = read(PlannedImages(work, row_schema(plan.columns), output.access))
        _caption_rows(rows, output, limit, run)


def _caption_while_planning(output: Output, planned: "Future[Plan]", limit: int | None, debug: bool) -> Plan:
    """Caption a new output whose input takes long to list: the engines start meanwhile."""
    with session.session(output.recipe, debug), _watched(output.recipe) as run:

        def hand_over(planned: "Future[Plan]") -> None:
            try:
                run.line.start = Start.of(ledger.balance(planned.result().units, {}), limit)
                while_planning.hand_over(planned.result(), run.counter)
            except Exception as error:  # noqa: BLE001 (whatever it is, it ends the run)
                run.stop(error)

        planned.add_done_callback(hand_over)
        _caption_rows(while_planning.read(run.counter, output.access), output, limit, run)
    return planned.result()


@dataclass(frozen=True)
class _Watch:
    counter: ActorHandle
    line: ProgressLine
    stop: Callable[[Exception], None]


@contextmanager
def _watched(recipe: Recipe) -> Iterator[_Watch]:
    """What looks at a run while it goes on."""
    counter = resources.beside_driver(Counter)
    with interruptible() as stop, CircuitBreaker(counter, recipe, stop), ProgressLine(counter) as line:
        yield _Watch(counter, line, stop)


def _caption_rows(rows: Dataset, output: Output, limit: int | None, run: _Watch) -> None:
    if limit is not None:
        rows = rows.limit(limit)
    commit(captioned(rows, output.recipe, output.model, run.counter), output.recipe)


def read(images: PlannedImages) -> Dataset:
    """Plan -> rows of compressed images."""
    return ray.data.read_datasource(images, override_num_blocks=images.tasks, num_cpus=resources.READ_CPUS)


def captioned(rows: Dataset, recipe: Recipe, model: ModelRef, counter: ActorHandle | None = None) -> Dataset:
    """Compressed images -> pixels -> captions; a block of pixels is a caption batch is a block of captions (D4)."""
    batch = resources.batch_rows(model.size_rule.max_pixels)
    in_flight = concurrency.batches_in_flight(recipe, batch)
    return (
        rows.map_batches(Prepare(model.size_rule, recipe.prepare), batch_size=batch, batch_format="pyarrow", num_cpus=1)
        .repartition(target_num_rows_per_block=batch, strict=True)
        .map_batches(
            Captioner,
            fn_constructor_kwargs={
                "recipe": recipe,
                "model": model,
                "counter": counter or resources.beside_driver(Counter),
            },
            batch_size=batch,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=recipe.replicas.min,
                max_size=recipe.replicas.most,
                max_concurrent_calls_per_actor=in_flight,
                max_tasks_in_flight_per_actor=math.ceil(resources.QUEUED_OVER_TAKEN * in_flight),
                enable_true_multi_threading=True,
            ),
            **resources.replica_resources(recipe),
        )
    )


def commit(rows: Dataset, recipe: Recipe) -> None:
    """Captions -> parquet objects."""
    sink = CommittedRows(Storage(recipe.storage), recipe.output.path, recipe.output.rows_per_object)
    rows.write_datasink(sink, ray_remote_args={"num_cpus": resources.WRITE_CPUS})
