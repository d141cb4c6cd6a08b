"""The actor that holds one engine and captions batches of rows (docs/design.md, D8).

Ray calls the actor from several threads, one batch each. The engine has its own event loop and thread. So neither Ray's
backpressure nor a slow batch delays the rows of another batch.
"""

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from caprl_ray.caption.attempts import Attempts
from caprl_ray.caption.cut import Cut
from caprl_ray.caption.health import Sick
from caprl_ray.caption.redecode import MOST_CAPTION_CHARACTERS
from caprl_ray.caption.rules import Rules
from caprl_ray.caption.start import HOLD_S, Replica
from caprl_ray.caption.suspects import Suspects
from caprl_ray.caption.writer import PIXELS, Writer, needed_columns
from caprl_ray.cluster import resources
from caprl_ray.cluster.optional import missed
from caprl_ray.engines import concurrency, launch
from caprl_ray.engines.meter import Meter
from caprl_ray.engines.protocol import Engine
from caprl_ray.errors import RecipeError, RowFailure, SystemFailure
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.sections import Recipe
from caprl_ray.rows.stage import Changes, run_stage
from caprl_ray.watch.batch import Batch
from caprl_ray.watch.counted import counted

T = TypeVar("T")

# The captions, four bytes a character, the best one twice, and the other columns that a row gets.
MOST_ADDED_BYTES = 2 * 4 * MOST_CAPTION_CHARACTERS + 4096


class Captioner:
    """One replica, as Ray Data's actor: rows with pixels in, the same rows with captions out.

    A task returns one table with exactly its input rows, in their order (docs/design.md, D4).
    """

    name = "caption"
    drops = PIXELS
    writer: type[Writer] = Writer

    def __init__(
        self,
        recipe: Recipe,
        model: ModelRef,
        counter: ActorHandle | None,
        *,
        replaced: bool = True,
        most_bytes: int | None = None,
        stopped: Sequence[ray.ObjectRef] = (),
    ) -> None:
        """`replaced` says whether the run replaces a replica whose engine does not start (watch/replicas.py). From
        `most_bytes` on Ray would cut a batch; None if no batch can be so large. `stopped` holds, if a run can be
        stopped, what is there then."""
        recipe = recipe.model_copy(update={"model": recipe.model.landed(resources.accelerators())})
        self._counter = counter
        self._most_bytes = most_bytes
        batches = concurrency.batches_in_flight(recipe, resources.batch_rows(model.size_rule.max_pixels))
        node = ray.get_runtime_context().get_node_id()
        self._attempts = Attempts(counter, node, batches) if counter else None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="engine", daemon=True).start()
        self._cut = Cut()
        for ref in stopped:
            threading.Thread(target=self._cut_at, args=[ref], name="stopped", daemon=True).start()
        # A service is the same for every node: if it fails, so does the run.
        replaced = replaced and not recipe.model.endpoint
        self._replica = Replica(counter, replaced=replaced) if counter else None
        self._suspects = Suspects(recipe.quality.window)
        self._failure: SystemFailure | None = None
        try:
            rules = Rules(recipe.quality, recipe.sampling)
            begin = partial(self._begin, recipe, model)
            self._engine: Engine = self._replica.start(begin) if self._replica else begin()
            self._writer = self._begun_writer(recipe, model, rules, self._metered(recipe))
            self._say_missed()
        except RecipeError as error:  # a check of the user's own that this node cannot import, for instance
            self._failure = SystemFailure(str(error))
        except SystemFailure as failure:
            if self._replica and self._replica.replaced:
                raise
            # Raised at the first batch. Ray carries an exception from there to the driver whole; from a constructor it
            # carries only the text.
            self._failure = failure
        self.needs = needed_columns(recipe)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Caption one batch. Raises SystemFailure if the engine or the service captions nothing any more."""
        if self._failure:
            raise self._failure
        if self._most_bytes:
            _check_size(table, self._most_bytes)
        began = time.monotonic()
        try:
            with self._replica.working() if self._replica else nullcontext():
                captioned = run_stage(self, table)
        except Sick as sick:
            if self._replica and self._counter:
                self._counter.add.remote(Batch(rows=0, sums=self._writer.sums()))  # its process may end here
                self._replica.sick(str(sick), self._suspects.close())
            raise SystemFailure(f"{sick}.") from None
        except SystemFailure as failure:
            if self._replica:
                self._replica.lost(failure)
            raise
        if self._replica:
            self._replica.captioned()
        if not self._suspects.add(captioned):
            time.sleep(HOLD_S)  # another batch has found the fault, which ends this process or the run
            raise SystemFailure("The captions of this replica cannot be trusted.")
        self._say_missed()  # some of it shows only with the first images
        if not self._counter:
            return captioned
        spent = {"stage_seconds": {self.name: time.monotonic() - began}, "stage_rows": {self.name: table.num_rows}}
        load = self._replica.load() if self._replica else None
        return counted(captioned, self._counter, {**self._writer.sums(), **spent}, load)

    def _begun_writer(self, recipe: Recipe, model: ModelRef, rules: Rules, engine: Engine) -> Writer:
        """What turns rows into results by the engine. Another job has another one."""
        return self.writer(recipe, model, engine, rules, self._healthy, self._suspects.passed, self._cut)

    def _metered(self, recipe: Recipe) -> Meter:
        """The engine, with its requests counted."""
        places = self.engine_arguments().get("max_num_seqs") or concurrency.max_num_seqs(recipe)
        meter = Meter(self._engine, int(places))
        if self._replica:
            self._replica.meter = meter
        return meter

    def _begin(self, recipe: Recipe, model: ModelRef) -> Engine:
        return self._run(launch.start(recipe, model))

    def _cut_at(self, stopped: ray.ObjectRef) -> None:
        """End what is being captioned when the run is stopped."""
        with suppress(ray.exceptions.RayError):
            ray.get(stopped)
            self._loop.call_soon_threadsafe(self._cut.now)

    def _healthy(self) -> None:
        if self._counter:
            self._counter.healthy.remote()

    def _say_missed(self) -> None:
        without = missed()
        if self._counter and without:
            self._counter.note.remote(f"a replica runs {without}")

    def engine_arguments(self) -> dict[str, Any]:
        """The arguments of the engine on this node; empty for an engine without arguments."""
        return dict(getattr(self._engine, "arguments", {}))

    def apply(self, rows: list[dict[str, Any]]) -> Sequence[Changes | RowFailure]:
        """Caption rows concurrently. Each row fails alone."""
        if self._attempts and rows:
            task = ray.get_runtime_context().get_task_id()
            return self._run(self._attempts.caption(task, rows, self._writer.write))
        return self._run(self._writer.write(rows))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _check_size(table: pa.Table, most_bytes: int) -> None:
    """Refuse a batch that might be cut when its captions are there. The answer depends on no caption."""
    size = table.drop_columns(list(PIXELS)).nbytes + table.num_rows * MOST_ADDED_BYTES
    if size >= most_bytes:
        raise SystemFailure(
            f"image_column: {table.num_rows} rows that are captioned together have {size / 2**20:,.0f} MiB in their "
            f"columns, and at most {most_bytes / 2**20:,.0f} MiB can be kept; leave large columns out and join them "
            "back later."
        )
