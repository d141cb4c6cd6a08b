"""The size at which an InternVL model sees an image: a grid of square tiles, and the whole image as one more tile.

The rule is `get_optimal_tiled_canvas` of transformers (models/got_ocr2/image_processing_got_ocr2.py). InternVL's own
code calls it `dynamic_preprocess`. It is repeated here because importing it imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from caprl_ray.errors import RecipeError
from caprl_ray.prepare.sizes import SizeRule

# The model type of checkpoints that bring their own code, which only a service runs.
OWN_CODE = "internvl_chat"
# Defaults of the processor's classes, for files that leave a value out.
TILE, FEWEST_TILES, MOST_TILES = 448, 1, 12


@dataclass(frozen=True, kw_only=True)
class TileRule(SizeRule):
    """A SizeRule whose `factor` is the side of a tile, and whose `min_pixels` and `max_pixels` are whole tiles.

    Of the grids with an allowed number of tiles, the one with the nearest aspect is used. The image is stretched to it,
    as the model's processor does. So a small image gets as many tiles as a large one. The engine's processor cuts the
    tiles, and adds the whole image as a tile if there are several.
    """

    factor: int

    def target(self, width: int, height: int) -> tuple[int, int]:
        columns, rows = self.grid(width, height)
        return columns * self.factor, rows * self.factor

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """The (columns, rows) with the nearest aspect. Of equally near grids this is the larger one, unless it has
        twice as many pixels as the image."""
        best, nearest = (1, 1), float("inf")
        for columns, rows in _grids(*self._tiles()):
            off = abs(width / height - columns / rows)
            large = width * height > 0.5 * self.factor**2 * columns * rows
            if off < nearest or (off == nearest and large):
                best, nearest = (columns, rows), off
        return best

    def engine_limits(self) -> dict[str, Any]:
        fewest, most = self._tiles()
        return {"crop_to_patches": True, "min_patches": fewest, "max_patches": most}

    def _tiles(self) -> tuple[int, int]:
        return self.min_pixels // self.factor**2, self.max_pixels // self.factor**2


@lru_cache(maxsize=16)
def _grids(fewest: int, most: int) -> list[tuple[int, int]]:
    """All grids with `fewest` to `most` tiles, the smallest first, then the narrowest."""
    sides = range(1, most + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if fewest <= columns * rows <= most]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


def tile_rule(
    config: Mapping[str, Any], processor: Mapping[str, Any], *, min_pixels: int, max_pixels: int
) -> TileRule | None:
    """The rule of an InternVL model, narrowed to the recipe's limits; None for a model of another family.

    `config` and `processor` are its config.json and preprocessor_config.json. Raises RecipeError if the limits leave no
    grid.
    """
    own = _own(config, processor)
    if own is None:
        return None
    side, fewest, most = own
    low, high = max(fewest, -(-min_pixels // side**2)), min(most, max_pixels // side**2)
    if low > high:
        raise RecipeError(
            f"prepare.min_pixels={min_pixels} and prepare.max_pixels={max_pixels} leave no image size that the model "
            f"accepts: it sees {fewest} to {most} tiles of {side} x {side} pixels, so give a range that holds a number "
            f"of them, such as {fewest * side**2} to {most * side**2} for all."
        )
    return TileRule(factor=side, min_pixels=low * side**2, max_pixels=high * side**2, max_aspect=float("inf"))


def _own(config: Mapping[str, Any], processor: Mapping[str, Any]) -> tuple[int, int, int] | None:
    """A model's tile side, fewest and most tiles, from the layout of transformers or of InternVL's own code."""
    if config.get("model_type") == "internvl":
        side = (processor.get("size") or {}).get("height")
        return side or TILE, processor.get("min_patches") or FEWEST_TILES, processor.get("max_patches") or MOST_TILES
    if config.get("model_type") == OWN_CODE:
        side = config.get("force_image_size") or (config.get("vision_config") or {}).get("image_size")
        if not config.get("dynamic_image_size"):
            return side or TILE, 1, 1
        fewest, most = config.get("min_dynamic_patch"), config.get("max_dynamic_patch")
        return side or TILE, fewest or FEWEST_TILES, most or MOST_TILES
    return None
