"""The actor that holds one engine and captions batches of rows (docs/design.md, D8).

Ray calls the actor from several threads, one batch each. The engine has its own event loop and thread. So neither Ray's
backpressure nor a slow batch delays the rows of another batch.
"""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.actor import ActorHandle

from caprl_ray.caption.attempts import Attempts
from caprl_ray.caption.start import Replica
from caprl_ray.cluster import resources
from caprl_ray.cluster.optional import missed
from caprl_ray.engines import concurrency, launch
from caprl_ray.engines.chat import control_token_stripper
from caprl_ray.engines.protocol import Completion, Engine, Picture
from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.prompts import PromptTemplate
from caprl_ray.recipe.sections import Recipe
from caprl_ray.rows.schema import META_PREFIX, SOURCE_FLAGS
from caprl_ray.rows.stage import Changes, run_stage
from caprl_ray.text import plain
from caprl_ray.watch.counted import counted

T = TypeVar("T")

IDENTITY = ("unit", "index")
PIXELS = ("pixels", "pixel_width", "pixel_height")
# About thirty times what CapRL writes, and small enough for resources.TARGET_BLOCK_BYTES.
MOST_CAPTION_CHARACTERS = 2**16
# A caption, four bytes a character, and the other columns that a row gets.
MOST_ADDED_BYTES = 4 * MOST_CAPTION_CHARACTERS + 4096


class Captioner:
    """One replica, as Ray Data's actor: rows with pixels in, the same rows with captions out.

    A task returns one table with exactly its input rows, in their order (docs/design.md, D4).
    """

    name = "caption"
    drops = PIXELS

    def __init__(
        self,
        recipe: Recipe,
        model: ModelRef,
        counter: ActorHandle | None,
        *,
        replaced: bool = True,
        most_bytes: int | None = None,
    ) -> None:
        """`replaced` says whether the run replaces a replica whose engine does not start (watch/replicas.py). From
        `most_bytes` on Ray would cut a batch; None if no batch can be so large."""
        recipe = recipe.model_copy(update={"model": recipe.model.landed(resources.accelerators())})
        self._model = model
        self._prompt = PromptTemplate(recipe.prompt.user)
        self._counter = counter
        self._most_bytes = most_bytes
        batches = concurrency.batches_in_flight(recipe, resources.batch_rows(model.size_rule.max_pixels))
        node = ray.get_runtime_context().get_node_id()
        self._attempts = Attempts(counter, node, batches) if counter else None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="engine", daemon=True).start()
        # A service is the same for every node: if it fails, so does the run.
        replaced = replaced and not recipe.model.endpoint
        self._replica = Replica(counter, replaced=replaced) if counter else None
        self._failure: SystemFailure | None = None
        try:
            begin = partial(self._begin, recipe, model)
            self._engine: Engine = self._replica.start(begin) if self._replica else begin()
            self._strip = control_token_stripper(self._engine.control_tokens)
            self._say_missed()
        except SystemFailure as failure:
            if self._replica and self._replica.replaced:
                raise
            # Raised at the first batch. Ray carries an exception from there to the driver whole; from a constructor it
            # carries only the text.
            self._failure = failure
        self.needs = (*IDENTITY, *PIXELS, SOURCE_FLAGS.name, *(META_PREFIX + name for name in self._prompt.columns))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Caption one batch. Raises SystemFailure if the engine or the service captions nothing any more."""
        if self._failure:
            raise self._failure
        if self._most_bytes:
            _check_size(table, self._most_bytes)
        try:
            captioned = run_stage(self, table)
        except SystemFailure as failure:
            if self._replica:
                self._replica.lost(failure)
            raise
        if self._replica:
            self._replica.captioned()
        self._say_missed()  # some of it shows only with the first images
        return counted(captioned, self._counter) if self._counter else captioned

    def _begin(self, recipe: Recipe, model: ModelRef) -> Engine:
        return self._run(launch.start(recipe, model))

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
            return self._run(self._attempts.caption(task, rows, self._caption_all))
        return self._run(self._caption_all(rows))

    async def _caption_all(self, rows: list[dict[str, Any]]) -> Sequence[Changes | RowFailure]:
        return await asyncio.gather(*map(self._caption, rows))

    async def _caption(self, row: dict[str, Any]) -> Changes | RowFailure:
        picture = Picture(pixels=row["pixels"], width=row["pixel_width"], height=row["pixel_height"])
        columns = {name.removeprefix(META_PREFIX): value for name, value in row.items() if name.startswith(META_PREFIX)}
        try:
            prompt = self._prompt.fill(columns, self._strip)
            kept = self._kept(await self._engine.caption(picture, prompt))
            return kept | {"flags": [*kept["flags"], *(row.get(SOURCE_FLAGS.name) or ())]}
        except RowFailure as failure:
            return failure

    def _kept(self, completion: Completion) -> Changes:
        caption = plain(completion.text)
        if not caption.strip():
            raise RowFailure("caption_empty")
        truncated = completion.finish_reason == "length" or len(caption) > MOST_CAPTION_CHARACTERS
        return {
            "caption": caption[:MOST_CAPTION_CHARACTERS],
            "finish_reason": completion.finish_reason,
            "flags": ["truncated"] if truncated else [],
            "prompt_tokens": completion.prompt_tokens,
            "caption_tokens": completion.caption_tokens,
            "model": self._model.label,
        }

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
