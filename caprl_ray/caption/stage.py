"""The replica that captions batches of rows."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
from ray.actor import ActorHandle

from caprl_ray.caption.redecode import MOST_CAPTION_CHARACTERS
from caprl_ray.caption.rules import Rules
from caprl_ray.caption.writer import PIXELS, Writer, needed_columns
from caprl_ray.cluster import resources
from caprl_ray.engines.protocol import Engine
from caprl_ray.errors import SystemFailure
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.sections import Recipe
from caprl_ray.replica.actor import ReplicaActor

# The captions, four bytes a character, the best one twice, and the other columns that a row gets.
MOST_ADDED_BYTES = 2 * 4 * MOST_CAPTION_CHARACTERS + 4096


class Captioner(ReplicaActor):
    """One replica: rows with pixels in, the same rows with captions out."""

    name = "caption"
    drops = PIXELS
    writer: type[Writer] = Writer

    def __init__(
        self,
        recipe: Recipe,
        model: ModelRef,
        counter: ActorHandle | None,
        *,
        most_bytes: int | None = None,
        rows: int | None = None,
        **options: Any,
    ) -> None:
        """Ray would split a batch of `most_bytes` or more; None if no batch can be that large. `rows` is the size of a
        batch, by default that of a small pool."""
        self._most_bytes = most_bytes
        rows = rows or resources.batch_rows(model.size_rule.max_pixels)
        super().__init__(recipe, model, counter, rows=rows, **options)
        self.needs = needed_columns(recipe)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Caption one batch."""
        if self._most_bytes and not self._failure:
            _check_size(table, self._most_bytes)
        return super().__call__(table)

    def _writing(self, recipe: Recipe, model: ModelRef) -> Callable[[Engine], Writer]:
        rules = Rules(recipe.quality, recipe.sampling)
        return lambda engine: self.writer(recipe, model, engine, rules, self._healthy, self._suspects.passed, self._cut)


def _check_size(table: pa.Table, most_bytes: int) -> None:
    """Refuse a batch that Ray might split when its captions are added. Does not depend on the captions."""
    size = table.drop_columns(list(PIXELS)).nbytes + table.num_rows * MOST_ADDED_BYTES
    if size >= most_bytes:
        raise SystemFailure(
            f"image_column: {table.num_rows} rows that are captioned together have {size / 2**20:,.0f} MiB in their "
            f"columns, and at most {most_bytes / 2**20:,.0f} MiB can be kept; leave large columns out and join them "
            "back later."
        )
