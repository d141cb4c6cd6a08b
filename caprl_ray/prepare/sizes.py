"""The pixel size at which the model sees an image, by the rule of the model's own image processor.

Images are resized to it before they reach the engine. So the engine's processor does not resize them again, and the
number of image tokens is known beforehand. The rule of the Qwen-VL family is `smart_resize` of transformers
(models/qwen2_vl/image_processing_qwen2_vl.py). It is repeated here because importing it imports torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from caprl_ray.errors import RecipeError, RowFailure

QWEN_MAX_ASPECT = 200.0
# Most rounds of `settled`. An elongated image shrinks geometrically, so no image has needed ten.
SETTLE_ROUNDS = 31


class _Defaults(NamedTuple):
    """An image processor's default values, for fields that preprocessor_config.json leaves out."""

    patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int


_QWEN2 = _Defaults(14, 2, 56 * 56, 28 * 28 * 1280)
# By image_processor_type, without a backend's suffix. The published file of Qwen3-VL names the Qwen2 class and sets all
# four values. A file that names the Qwen3-VL class gets these values as defaults.
_QWEN_FAMILY = {
    "Qwen2VLImageProcessor": _QWEN2,
    "Qwen2_5_VLImageProcessor": _QWEN2,
    "Qwen3VLImageProcessor": _Defaults(16, 2, 256 * 256, 4096 * 4096),
}


@dataclass(frozen=True, kw_only=True)
class SizeRule:
    """The size, in pixels, at which a model sees an image of a given size.

    `factor`: both sides become multiples of it. None for a processor of another family: then the image keeps its aspect
    and is only shrunk to `max_pixels`. `min_pixels`, `max_pixels`: the range of width * height. `max_aspect`: the
    processor refuses an image whose longer side over the shorter exceeds it.
    """

    factor: int | None
    min_pixels: int
    max_pixels: int
    max_aspect: float

    def target(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) to which the processor resizes an image of `width` x `height` pixels (both at least 1).

        Raises RowFailure image_aspect if the image is too elongated.
        """
        if max(width, height) / min(width, height) > self.max_aspect:
            raise RowFailure("image_aspect", f"{width} x {height} pixels, at most {self.max_aspect:g} to 1")
        if self.factor is None:
            return self._capped(width, height)
        return self._rounded(width, height, self.factor)

    def settled(self, width: int, height: int) -> tuple[int, int]:
        """Apply `target` until the size no longer changes. The processor does not resize an image of this size.

        One round is enough except for very elongated images. For these, `target` can exceed `max_pixels` or, by
        rounding, `max_aspect`. The latter raises RowFailure image_aspect, because the engine's processor would refuse
        the image. A range narrower than one step of `factor` may hold no such size; then this returns `target`.
        """
        first = size = self.target(width, height)
        for _ in range(SETTLE_ROUNDS):
            size, before = self.target(*size), size
            if size == before:
                return size
        return first

    def engine_limits(self) -> dict[str, Any]:
        """Arguments for the engine's image processor, so that it does not resize images of this rule."""
        return {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels} if self.factor else {}

    def _rounded(self, width: int, height: int, factor: int) -> tuple[int, int]:
        """`smart_resize` of transformers. Both use Python's `round`, which rounds half to even."""
        rounded_width = round(width / factor) * factor
        rounded_height = round(height / factor) * factor
        if rounded_width * rounded_height > self.max_pixels:
            beta = math.sqrt((height * width) / self.max_pixels)
            rounded_width = max(factor, math.floor(width / beta / factor) * factor)
            rounded_height = max(factor, math.floor(height / beta / factor) * factor)
        elif rounded_width * rounded_height < self.min_pixels:
            beta = math.sqrt(self.min_pixels / (height * width))
            rounded_width = math.ceil(width * beta / factor) * factor
            rounded_height = math.ceil(height * beta / factor) * factor
        return rounded_width, rounded_height

    def _capped(self, width: int, height: int) -> tuple[int, int]:
        if width * height <= self.max_pixels:
            return width, height
        scale = math.sqrt(self.max_pixels / (width * height))
        short = max(1, math.floor(min(width, height) * scale))
        long = min(self.max_pixels // short, math.floor(max(width, height) * scale))
        return (short, long) if width < height else (long, short)


def size_rule(processor: Mapping[str, Any], *, min_pixels: int, max_pixels: int) -> SizeRule:
    """The rule of the model whose preprocessor_config.json holds `processor`, narrowed to the recipe's limits.

    `min_pixels` and `max_pixels` are the recipe's. Raises RecipeError if they leave no size that the model accepts.
    """
    kind = str(processor.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    if kind not in _QWEN_FAMILY:
        return SizeRule(factor=None, min_pixels=0, max_pixels=max_pixels, max_aspect=math.inf)
    own = _settings(processor, _QWEN_FAMILY[kind])
    factor = own.patch_size * own.merge_size
    low, high = max(min_pixels, own.min_pixels), min(max_pixels, own.max_pixels)
    if low > high or high < factor * factor:
        raise RecipeError(
            f"prepare.min_pixels={min_pixels} and prepare.max_pixels={max_pixels} leave no image size that the model "
            f"accepts: give a range that overlaps its own limits, {own.min_pixels} to {own.max_pixels} pixels in steps "
            f"of {factor} x {factor}."
        )
    return SizeRule(factor=factor, min_pixels=low, max_pixels=high, max_aspect=QWEN_MAX_ASPECT)


def _settings(processor: Mapping[str, Any], default: _Defaults) -> _Defaults:
    """A Qwen processor's own values. min_pixels and max_pixels override `size`, as in its constructor."""
    size = processor.get("size")
    edges: Mapping[str, Any] = size if isinstance(size, Mapping) else {}
    return _Defaults(
        _first(processor.get("patch_size"), default.patch_size),
        _first(processor.get("merge_size"), default.merge_size),
        _first(processor.get("min_pixels"), edges.get("shortest_edge"), default.min_pixels),
        _first(processor.get("max_pixels"), edges.get("longest_edge"), default.max_pixels),
    )


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)
