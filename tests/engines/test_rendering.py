"""Patches are cut as the model's own processor cuts them. Otherwise every image would take the slow way unnoticed."""

import asyncio
from types import SimpleNamespace
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
    from transformers import AutoTokenizer

    from caprl_ray.engines.rendering import Renderer, _Patches

    patches = _Patches(patch=14, merge=2, frames=2)
    renderer = Renderer(None, None, AutoTokenizer.from_pretrained(EMBEDDED_FOLDER))

    def cut(name: str, grey: int) -> Any:
        pixels = memoryview(bytes([grey]) * (28 * 28 * 3))
        return renderer._cut(patches, Picture(pixels=pixels, width=28, height=28, name=name))

    first = cut("row-1", 1)
    assert cut("row-1", 1) is first
    for name, grey in (("row-2", 2), ("row-1", 3), ("", 4), ("", 5)):
        assert cut(name, grey).unique().tolist() == [grey]


@pytest.mark.parametrize("alike", [True, False])
def test_texts_behind_pictures_of_one_size_share_a_rendering_where_their_tokens_are_those_of_vllm(
    monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    import torch
    from transformers import AutoTokenizer

    from caprl_ray.engines import internals
    from caprl_ray.engines.rendering import Renderer, _Patches

    tokenizer, places = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER), 4
    before = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"

    def tokens(prompt: str) -> list[int]:
        whole = prompt.replace("<|image_pad|>", "<|image_pad|>" * places)
        return list(tokenizer.encode(whole if alike else whole.replace("Describe", "describe")))

    async def rendered(llm: Any, raw: dict[str, Any]) -> dict[str, Any]:
        pixels = _patches.of_picture(picture(raw["multi_modal_data"]["image"].tobytes()))
        image = {"pixel_values": SimpleNamespace(data=pixels, field="f"), "image_grid_thw": torch.tensor([1])}
        ids = tokens(raw["prompt"])
        place = SimpleNamespace(offset=ids.index(tokenizer.convert_tokens_to_ids("<|image_pad|>")), length=places)
        return {"type": "multimodal", "prompt_token_ids": ids, "mm_kwargs": {"image": [image]},
                "mm_placeholders": {"image": [place]}}  # fmt: skip

    def picture(pixels: bytes) -> Picture:
        return Picture(pixels=memoryview(pixels), width=28, height=28)

    def engine_input(ids: list[int], *more: Any) -> dict[str, Any]:
        return {"prompt_token_ids": ids}

    monkeypatch.setattr(internals, "rendered", rendered)
    monkeypatch.setattr(internals, "engine_input", engine_input)
    _patches = _Patches(patch=14, merge=2, frames=2)
    renderer = Renderer(None, SimpleNamespace(patch_size=14, merge_size=2, temporal_patch_size=2), tokenizer)

    async def asked() -> None:
        # A text that begins with white space or an accent is rendered by vLLM: its tokens may depend on what is before.
        for text in ("Describe it.", "Describe the sky.", "Why?", "Why?", "", " Why?", "\u0301", "Describe it."):
            prompt = f"{before}{text}<|im_end|>\n<|im_start|>assistant\n"
            request = await renderer.render(picture(bytes([len(text)]) * 28 * 28 * 3), prompt, len(before))
            assert request["prompt_token_ids"] == tokens(prompt)

    asyncio.run(asked())
    assert (renderer.by_vllm, renderer.by_us) == ((4, 4) if alike else (7, 1))
