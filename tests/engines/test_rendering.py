"""Patches are cut here as the model's own processor cuts them: else every image would go the slow way, unseen."""

from typing import Any

import numpy as np
import pytest

from caprl_ray.engines.protocol import Picture
from caprl_ray.models.resolve import EMBEDDED_FOLDER
from tests.tiny_models import QWEN3_PROCESSOR


@pytest.mark.parametrize(("width", "height"), [(84, 84), (112, 84), (84, 112), (252, 56), (64, 96), (320, 32)])
def test_patches_are_those_of_the_models_own_processor(width: int, height: int) -> None:
    """Of Qwen2.5-VL, and in the sizes that are none of its own of Qwen3-VL."""
    import torch
    from transformers import AutoProcessor, Qwen2VLImageProcessor

    from caprl_ray.engines.rendering import _Patches

    if width % 28:
        own = {name: value for name, value in QWEN3_PROCESSOR.items() if not name.endswith(("_type", "_class"))}
        processor = Qwen2VLImageProcessor(**own)
    else:
        processor = AutoProcessor.from_pretrained(EMBEDDED_FOLDER).image_processor
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    raw = {"do_resize": False, "do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    theirs = processor(images=[torch.from_numpy(pixels).permute(2, 0, 1)], **raw)["pixel_values"]
    patches = _Patches.of(processor)
    assert patches
    ours = patches.of_picture(Picture(pixels=memoryview(pixels.tobytes()), width=width, height=height))
    assert ours.dtype == torch.uint8 and torch.equal(ours, theirs.to(torch.uint8))


def test_only_the_prompts_of_one_picture_share_its_patches() -> None:
    from caprl_ray.engines.rendering import Renderer, _Patches

    patches = _Patches(patch=14, merge=2, frames=2)
    renderer = Renderer(None, None)

    def cut(name: str, grey: int) -> Any:
        pixels = memoryview(bytes([grey]) * (28 * 28 * 3))
        return renderer._cut(patches, Picture(pixels=pixels, width=28, height=28, name=name))

    first = cut("row-1", 1)
    assert cut("row-1", 1) is first
    for name, grey in (("row-2", 2), ("row-1", 3), ("", 4), ("", 5)):
        assert cut(name, grey).unique().tolist() == [grey]
