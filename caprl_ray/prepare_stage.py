"""Prepare as a stage of the pipeline: compressed images in, pixels at the size that the model sees out."""

from typing import Any

import pyarrow as pa

from caprl_ray import recipe
from caprl_ray.errors import RowFailure
from caprl_ray.prepare import Limits, prepare
from caprl_ray.sizes import SizeRule
from caprl_ray.stages import Changes, run_stage


class Prepare:
    """Decodes and resizes a batch in a CPU worker, away from the engine's process (P5)."""

    name = "prepare"
    needs = ("image",)
    drops = ("image",)

    def __init__(self, rule: SizeRule, limits: recipe.Prepare) -> None:
        self._rule = rule
        self._limits = Limits(max_bytes=limits.max_bytes, max_source_pixels=limits.max_source_pixels)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Prepare one batch."""
        return run_stage(self, table)

    def apply(self, rows: list[dict[str, Any]]) -> list[Changes | RowFailure]:
        """Prepare rows one after another."""
        return [self._prepare(bytes(row["image"])) for row in rows]

    def _prepare(self, image: bytes) -> Changes | RowFailure:
        try:
            return vars(prepare(image, self._rule, self._limits))
        except RowFailure as failure:
            return failure
