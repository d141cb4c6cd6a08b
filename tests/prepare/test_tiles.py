"""The tiles of InternVL and the tokens of each captioner's images are those of the models' own processors."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from caprl_ray.errors import RecipeError
from caprl_ray.prepare.sizes import SizeRule, size_rule
from caprl_ray.prepare.tiles import TileRule, tile_rule
from tests.tiny_models import INTERNVL_PROCESSOR, QWEN3_PROCESSOR

NATIVE = {"model_type": "internvl"}
OWN_CODE = {
    "model_type": "internvl_chat",
    "dynamic_image_size": True,
    "force_image_size": 448,
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 12,
}
ALL = {"min_pixels": 1, "max_pixels": 10**9}
TILE = 448**2


def internvl(config: dict[str, Any] = NATIVE, **limits: int) -> TileRule:
    rule = tile_rule(config, INTERNVL_PROCESSOR, **(ALL | limits))
    assert rule
    return rule


def sizes(count: int) -> Iterator[tuple[int, int]]:
    """Small, square, tall, wide and large images, then random ones."""
    yield from [(1, 1), (20, 30), (64, 48), (640, 480), (448, 448), (449, 448), (200, 1500), (333, 77), (77, 8000)]
    yield from [(3840, 2160), (2160, 3840), (1000, 1000), (4096, 4096), (634, 317), (12000, 1000)]
    rng = random.Random(1)
    for _ in range(count):
        yield int(10 ** rng.uniform(0.5, 4)), int(10 ** rng.uniform(0.5, 4))


@pytest.mark.parametrize("limits", [{}, {"max_pixels": 1_003_520}, {"min_pixels": 3 * TILE, "max_pixels": 7 * TILE}])
def test_tiles_are_those_of_the_models_own_processor(limits: dict[str, int]) -> None:
    """They are the same before and after the image is prepared, within the recipe's limits."""
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    rule = internvl(**limits)
    fewest, most = rule.engine_limits()["min_patches"], rule.engine_limits()["max_patches"]
    assert (fewest, most) == (limits.get("min_pixels", TILE) // TILE, limits.get("max_pixels", 12 * TILE) // TILE)
    for width, height in sizes(2000):
        columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), fewest, most)
        seen = rule.settled(width, height)
        assert seen == (columns * 448, rows * 448), (width, height)
        assert get_optimal_tiled_canvas(seen[::-1], (448, 448), fewest, most) == (columns, rows)


def test_both_layouts_of_internvl_have_the_same_rule() -> None:
    """OpenGVLab/InternVL3_5-8B has code of its own; CapRL-InternVL3.5-8B has the layout of transformers."""
    assert (
        internvl()
        == internvl(OWN_CODE)
        == TileRule(factor=448, min_pixels=TILE, max_pixels=12 * TILE, max_aspect=float("inf"))
    )
    assert internvl(OWN_CODE | {"dynamic_image_size": False}).max_pixels == TILE
    assert tile_rule({"model_type": "qwen3_vl"}, QWEN3_PROCESSOR, **ALL) is None


def test_a_range_without_tiles_is_refused_in_one_sentence() -> None:
    between = {"min_pixels": TILE + 1, "max_pixels": TILE + 2}
    for limits in ({"max_pixels": TILE - 1}, {"min_pixels": 13 * TILE}, between):
        with pytest.raises(RecipeError, match="1 to 12 tiles of 448 x 448 pixels") as caught:
            internvl(**limits)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("most", [1_003_520, 10**9])
def test_tokens_of_a_prepared_image_are_those_of_the_image_itself(most: int) -> None:
    """For CapRL-3B, CapRL 2.0 and CapRL-InternVL, the engine counts as many as the model's own processor would."""
    from transformers import GotOcr2ImageProcessor, Qwen2VLImageProcessor

    limits = {"min_pixels": 3136, "max_pixels": most}
    qwen25 = QWEN3_PROCESSOR | {"patch_size": 14, "size": {"shortest_edge": 3136, "longest_edge": 12845056}}
    for processor, kind, patches in (
        (QWEN3_PROCESSOR, Qwen2VLImageProcessor, 4),
        (qwen25, Qwen2VLImageProcessor, 4),
        (INTERNVL_PROCESSOR, GotOcr2ImageProcessor, 1),
    ):
        own = kind(**{name: value for name, value in processor.items() if not name.endswith(("_type", "_class"))})
        tiled = kind is GotOcr2ImageProcessor
        rule: SizeRule = internvl(**limits) if tiled else size_rule(processor, **limits)
        narrowed = rule.engine_limits()
        if not tiled:
            narrowed["size"] = {"shortest_edge": rule.min_pixels, "longest_edge": rule.max_pixels}
        for width, height in sizes(200):
            if max(width, height) > 150 * min(width, height):
                continue  # tested in test_sizes.py
            seen = rule.settled(width, height)
            count = own.get_number_of_image_patches(height, width, narrowed)
            assert own.get_number_of_image_patches(seen[1], seen[0], narrowed) == count, (width, height)
            tokens = count // patches
            if not tiled:
                assert tokens == seen[0] * seen[1] // rule.factor**2
            else:
                tiles = seen[0] * seen[1] // TILE
                assert tokens == tiles + (tiles > 1)


def test_the_processor_cuts_exactly_the_prepared_pixels() -> None:
    from transformers import GotOcr2ImageProcessor

    rule = internvl(max_pixels=6 * TILE)
    width, height = rule.settled(900, 640)
    assert (width, height) == (3 * 448, 2 * 448)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    own = GotOcr2ImageProcessor(size={"height": 448, "width": 448}, do_normalize=False, do_rescale=False)
    seen = own(images=[Image.fromarray(pixels)], return_tensors="pt", **rule.engine_limits())["pixel_values"]
    assert len(seen) == 7
    ours = torch.from_numpy(pixels).reshape(2, 448, 3, 448, 3).permute(0, 2, 4, 1, 3).reshape(6, 3, 448, 448)
    assert torch.equal(seen[:6].to(torch.uint8), ours)
