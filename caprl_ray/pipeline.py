"""The whole job on one page: plan -> read -> prepare -> caption -> commit, then the ledger.

Every arrow is a Ray Data operator; what each one does is in the module of its name.
"""

import math
from collections.abc import Collection

import ray
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, Dataset

from caprl_ray import cluster, engines, lease, ledger
from caprl_ray.breaker import CircuitBreaker
from caprl_ray.captioner import Captioner
from caprl_ray.commit import CommittedRows
from caprl_ray.committed import failed_attempts, read_committed
from caprl_ray.counter import Counter
from caprl_ray.ledger import Ledger
from caprl_ray.model import ModelRef, resolve
from caprl_ray.output import Output
from caprl_ray.plan import Plan
from caprl_ray.prepare_stage import Prepare
from caprl_ray.progress import ProgressLine, Start
from caprl_ray.reader import PlannedImages, remaining
from caprl_ray.recipe import Recipe
from caprl_ray.repair import repair
from caprl_ray.schema import row_schema
from caprl_ray.stopping import stoppable
from caprl_ray.storage import Storage


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
    with lease.held(output.storage, output.path), cluster.lasting(debug):
        return _run(output, output.plan(extend=extend), limit, retry, debug)


def _run(output: Output, plan: Plan, limit: int | None, retry: Collection[str], debug: bool) -> Ledger:
    recipe, storage, path = output.recipe, output.storage, output.path
    committed = read_committed(storage, path)
    work = remaining(plan.units, committed, failed_attempts(storage, path, retry))
    if work:
        with cluster.session(recipe, debug):
            images = read(PlannedImages(work, row_schema(plan.columns), output.access), limit)
            counter = cluster.beside_driver(Counter)
            start = Start.of(ledger.balance(plan.units, committed), limit)
            with stoppable() as stop, CircuitBreaker(counter, recipe.failures, stop), ProgressLine(counter, start):
                commit(captioned(images, recipe, output.model, counter), recipe)
        committed = read_committed(storage, path)
    if repair(storage, path, committed):
        committed = read_committed(storage, path)
    balance = ledger.balance(plan.units, committed)
    output.finish(balance, limited=limit is not None)
    return balance


def read(images: PlannedImages, limit: int | None) -> Dataset:
    """Plan -> rows of compressed images."""
    rows = ray.data.read_datasource(images, override_num_blocks=images.tasks, num_cpus=cluster.READ_CPUS)
    return rows if limit is None else rows.limit(limit)


def captioned(rows: Dataset, recipe: Recipe, model: ModelRef, counter: ActorHandle | None = None) -> Dataset:
    """Compressed images -> pixels -> captions; a block of pixels is a caption batch is a block of captions (D4)."""
    batch = cluster.batch_rows(model.size_rule.max_pixels)
    in_flight = engines.batches_in_flight(recipe, batch)
    return (
        rows.map_batches(Prepare(model.size_rule, recipe.prepare), batch_size=batch, batch_format="pyarrow", num_cpus=1)
        .repartition(target_num_rows_per_block=batch, strict=True)
        .map_batches(
            Captioner,
            fn_constructor_kwargs={
                "recipe": recipe,
                "model": model,
                "counter": counter or cluster.beside_driver(Counter),
            },
            batch_size=batch,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=recipe.replicas.min,
                max_size=recipe.replicas.most,
                max_concurrent_calls_per_actor=in_flight,
                max_tasks_in_flight_per_actor=math.ceil(cluster.QUEUED_OVER_TAKEN * in_flight),
                enable_true_multi_threading=True,
            ),
            num_gpus=recipe.replicas.gpus,
            num_cpus=0,
        )
    )


def commit(rows: Dataset, recipe: Recipe) -> None:
    """Captions -> parquet objects."""
    sink = CommittedRows(Storage(recipe.storage), recipe.output.path, recipe.output.rows_per_object)
    rows.write_datasink(sink, ray_remote_args={"num_cpus": cluster.WRITE_CPUS})
