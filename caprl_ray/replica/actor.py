"""The actor that holds one engine and works on batches of rows (docs/design.md, D8).

Ray calls the actor from several threads, one batch each. The engine has its own event loop and thread. So a batch is
not delayed by Ray's backpressure or by another, slow batch.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from caprl_ray.cluster import resources
from caprl_ray.cluster.optional import missed
from caprl_ray.engines import concurrency, launch
from caprl_ray.engines.meter import Meter
from caprl_ray.engines.protocol import Engine
from caprl_ray.errors import RecipeError, RowFailure, SystemFailure
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.sections import Recipe
from caprl_ray.replica.attempts import Attempts
from caprl_ray.replica.cut import Cut
from caprl_ray.replica.start import HOLD_S, Replica
from caprl_ray.replica.suspects import Sick, Suspects
from caprl_ray.rows.stage import Changes, run_stage
from caprl_ray.watch.batch import Batch
from caprl_ray.watch.counted import counted
from caprl_ray.watch.starts import MAIN

T = TypeVar("T")


class Writer(Protocol):
    """Turns rows into results with an engine, on its event loop."""

    async def write(self, rows: list[dict[str, Any]]) -> Sequence[Changes | RowFailure]:
        """The result of each row, in order. Raises Sick if the results cannot be trusted, and SystemFailure if the
        engine does."""
        ...

    def sums(self) -> Mapping[str, Counter[str]]:
        """Counters since the last call, beside those in the rows."""
        ...


class ReplicaActor:
    """One replica, as an actor of Ray Data. Subclasses implement `_writing`.

    A task returns one table with exactly its input rows, in their order (docs/design.md, D4).
    """

    name: str
    needs: tuple[str, ...]
    drops: tuple[str, ...] = ()

    def __init__(
        self,
        recipe: Recipe,
        model: ModelRef,
        counter: ActorHandle | None,
        *,
        rows: int,
        pool: str = MAIN,
        last: bool = True,
        replaced: bool = True,
        stopped: Sequence[ray.ObjectRef] = (),
    ) -> None:
        """`rows`: the size of a batch. `pool`: the pool's name. `last`: the commit follows, so the rows count as done.
        `replaced`: the run replaces a replica whose engine does not start (watch/replicas.py). `stopped`: the reference
        that is resolved when the run is stopped, if it can be."""
        recipe = recipe.model_copy(update={"model": recipe.model.landed(resources.accelerators())})
        self._counter, self._pool, self._last = counter, pool, last
        batches = concurrency.batches_in_flight(recipe, rows)
        node = ray.get_runtime_context().get_node_id()
        self._attempts = Attempts(counter, node, batches) if counter else None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="engine", daemon=True).start()
        self._cut = Cut()
        for ref in stopped:
            threading.Thread(target=self._cut_at, args=[ref], name="stopped", daemon=True).start()
        # A service is the same for every node: if it fails, the run fails.
        replaced = replaced and not recipe.model.endpoint
        self._replica = Replica(counter, replaced=replaced, pool=pool) if counter else None
        self._suspects = Suspects(recipe.quality.window)
        self._failure: SystemFailure | None = None
        try:
            writing = self._writing(recipe, model)
            begin = partial(self._begin, recipe, model)
            self._engine: Engine = self._replica.start(begin) if self._replica else begin()
            self._writer = writing(self._metered(recipe))
            self._say_missed()
        except RecipeError as error:  # a check of the user's own that this node cannot import, for instance
            self._failure = SystemFailure(str(error))
        except SystemFailure as failure:
            if self._replica and self._replica.replaced:
                raise
            # Raised at the first batch: there, Ray passes the exception itself to the driver; from a constructor it
            # passes only its text.
            self._failure = failure

    def __call__(self, table: pa.Table) -> pa.Table:
        """Process one batch. Raises SystemFailure if the engine or the service no longer answers."""
        if self._failure:
            raise self._failure
        began = time.monotonic()
        try:
            with self._replica.working() if self._replica else nullcontext():
                done = run_stage(self, table)
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
        if not self._suspects.add(done):
            time.sleep(HOLD_S)  # another batch has reported the fault, which ends this process or the run
            raise SystemFailure("The captions of this replica cannot be trusted.")
        self._say_missed()  # some internals are used only with the first images
        return self._told(done, time.monotonic() - began) if self._counter else done

    def _told(self, done: pa.Table, seconds: float) -> pa.Table:
        """Report a batch."""
        assert self._counter
        sums: dict[str, Mapping[str, float]] = {
            **self._writer.sums(),
            "stage_seconds": {self.name: seconds},
            "stage_rows": {self.name: done.num_rows},
        }
        load = self._replica.load() if self._replica else None
        ended = self._attempts.ended() if self._attempts else ()
        own = Batch(rows=0, sums=sums, load=load, pool=self._pool, ended=ended)
        if self._last:
            return counted(done, self._counter, own)
        self._counter.add.remote(own)
        return done

    def _writing(self, recipe: Recipe, model: ModelRef) -> Callable[[Engine], Writer]:
        """The function that makes the writer when the engine runs. Raises RecipeError before the engine starts."""
        raise NotImplementedError

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
        """Cancel requests when the run is stopped."""
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
        """Process rows concurrently. A row that fails does not affect the others."""
        if self._attempts and rows:
            task = ray.get_runtime_context().get_task_id()
            return self._run(self._attempts.caption(task, rows, self._writer.write))
        return self._run(self._writer.write(rows))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
