"""Build the engine core's input for an image here, where the result equals that of vLLM's frontend.

The frontend tokenizes every prompt and runs the model's Hugging Face processor on every image, one after another (vLLM
issue 49524). Prepared images have few sizes, and prompts begin alike up to the end of the image. So everything except
the pixel values and the text behind the image is the same from request to request. vLLM renders the first image of each
size. Its token ids and positions serve all others. The text is tokenized here, where it stands behind a special token,
at which every tokenizer cuts. Pixels are cut into patches here, as Qwen2VLImageProcessor of transformers does
(models/qwen2_vl/image_processing_qwen2_vl.py); vLLM has the model normalise them. Each first image is also the check:
if our values are not vLLM's, bit for bit, this model is left to vLLM. If only the tokens of the text are not, vLLM
renders the first image of each size and text.
"""

import asyncio
import itertools
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from caprl_ray.cluster.optional import ABSENT, miss
from caprl_ray.engines import internals
from caprl_ray.engines.protocol import Picture

Key = tuple[int, int, str]

KEPT_TEMPLATES = 512  # sizes, and prompts where texts are not tokenized here: those with a row's columns are many
KEPT_TEXTS = 64


@dataclass(frozen=True, kw_only=True)
class _Template:
    """A rendered request without its pixels and without the text behind the image: vLLM's token ids and placeholders,
    and its description of the image."""

    token_ids: list[int]
    placeholders: Any
    grid: Any
    field: Any

    def image(self, patches: torch.Tensor) -> dict[str, Any]:
        """The image's values by vLLM's names, `pixel_values` with vLLM's field."""
        return {"pixel_values": (patches, self.field), "image_grid_thw": self.grid}

    def without(self, text: list[int]) -> "_Template | None":
        """This without the tokens of a text at its end; None if it does not end with them, or has the image there."""
        cut = len(self.token_ids) - len(text)
        try:
            behind = max(place.offset + place.length for place in self.placeholders["image"])
        except (*ABSENT, ValueError):  # this vLLM describes places in another way
            return None
        return replace(self, token_ids=self.token_ids[:cut]) if self.token_ids[cut:] == text and cut >= behind else None


class Renderer:
    """Turns a picture and a prompt into an input of vLLM's engine. Use it on one event loop."""

    def __init__(self, llm: Any, image_processor: Any, tokenizer: Any) -> None:
        self._llm = llm
        self._text = lru_cache(KEPT_TEXTS)(partial(tokenizer.encode, add_special_tokens=False))
        self._special = tuple(tokenizer.get_added_vocab())
        self._apart = True  # whether texts are tokenized here
        self._patches = _Patches.of(image_processor)
        self._templates: OrderedDict[Key, _Template] = OrderedDict()
        self._first_of: dict[Key, asyncio.Event] = {}
        self._last: tuple[str, torch.Tensor] | None = None
        self._names = itertools.count()
        self.by_us, self.by_vllm = 0, 0  # images rendered in each way

    async def render(self, picture: Picture, prompt: str, text: int = 0) -> Any:
        """An engine input, or a raw prompt for vLLM. Raises as vLLM does if it refuses the prompt.

        `text` is the place of the text in the prompt, behind the image; 0 if it is not known.
        """
        while (key := self._key(picture, prompt, text)) in self._first_of and self._patches:
            await self._first_of[key].wait()
        if self._patches is None:
            return await self._by_vllm(picture, prompt)
        template = self._templates.get(key)
        if template is None:
            return await self._first(key, picture, prompt)
        self._templates.move_to_end(key)
        tokens = [*template.token_ids, *self._text(prompt[len(key[2]) :])]
        return await self._fill(template, tokens, self._cut(self._patches, picture), picture, prompt)

    def _key(self, picture: Picture, prompt: str, text: int) -> Key:
        """The parts that requests must share for one template: the size, and the prompt up to a text that is tokenized
        here. White space may belong to the special token, and an accent to the character before it."""
        apart = self._apart and prompt[:text].endswith(self._special) and prompt[text : text + 1].isalnum()
        return picture.width, picture.height, prompt[:text] if apart else prompt

    def _cut(self, patches: "_Patches", picture: Picture) -> torch.Tensor:
        """The picture's patches. They are kept for its next prompt, which comes before another picture."""
        if not picture.name:
            return patches.of_picture(picture)
        if self._last is None or self._last[0] != picture.name:
            self._last = picture.name, patches.of_picture(picture)
        return self._last[1]

    async def _first(self, key: Key, picture: Picture, prompt: str) -> Any:
        """Let vLLM render, and keep the parts for other pictures of this size and prompt. They wait meanwhile."""
        self._first_of[key] = asyncio.Event()
        try:
            rendered = await self._by_vllm(picture, prompt)
            if self._patches:
                self._keep(key, _template(rendered, self._patches.of_picture(picture)), prompt)
            return rendered
        finally:
            self._first_of.pop(key).set()

    def _keep(self, key: Key, template: _Template | None, prompt: str) -> None:
        if template is None:
            miss(internals.RENDERED)
            self._patches = None
            return
        text = self._text(prompt[len(key[2]) :])
        head = template.without(text) if text else template
        if head is None:
            self._apart = False
            return
        self._templates[key] = head
        if len(self._templates) > KEPT_TEMPLATES:
            self._templates.popitem(last=False)

    async def _fill(
        self, template: _Template, tokens: list[int], patches: torch.Tensor, picture: Picture, prompt: str
    ) -> Any:
        """The template with the tokens of this prompt and this picture's pixels."""
        try:
            name = picture.name or f"image-{next(self._names)}"
            request = internals.engine_input(tokens, template.placeholders, template.image(patches), name)
        except ABSENT:  # this vLLM builds its inputs in another way
            miss(internals.RENDERED)
            self._patches = None
            return await self._by_vllm(picture, prompt)
        self.by_us += 1
        return request

    async def _by_vllm(self, picture: Picture, prompt: str) -> Any:
        self.by_vllm += 1
        image = Image.frombuffer("RGB", (picture.width, picture.height), bytes(picture.pixels), "raw", "RGB", 0, 1)
        raw = {"prompt": prompt, "multi_modal_data": {"image": image}}
        return await internals.rendered(self._llm, raw)


@dataclass(frozen=True, kw_only=True)
class _Patches:
    """How a Qwen processor cuts an image of the final size into patches, each seen as several equal frames."""

    patch: int
    merge: int
    frames: int

    @classmethod
    def of(cls, image_processor: Any) -> "_Patches | None":
        """The processor's own values; None for a processor of another family."""
        names = ("patch_size", "merge_size", "temporal_patch_size")
        patch, merge, frames = (getattr(image_processor, name, None) for name in names)
        return cls(patch=patch, merge=merge, frames=frames) if patch and merge and frames else None

    def of_picture(self, picture: Picture) -> torch.Tensor:
        """Patches x (3 channels x frames x patch x patch), uint8: the model normalises them."""
        rows, columns = picture.height // self.patch, picture.width // self.patch
        blocks = np.frombuffer(picture.pixels, np.uint8).reshape(
            rows // self.merge, self.merge, self.patch, columns // self.merge, self.merge, self.patch, 3
        )
        once = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, self.patch**2)
        # NumPy is twice as fast as torch here.
        return torch.from_numpy(np.repeat(once, self.frames, axis=1).reshape(rows * columns, -1))


def _template(rendered: Any, patches: torch.Tensor) -> _Template | None:
    """The parts of vLLM's own rendering that serve for other images; None where our patches are not vLLM's.

    A rendering of any other shape is left to vLLM, too.
    """
    try:
        return _matching(rendered, patches)
    except (*ABSENT, ValueError):  # this vLLM renders in another way
        return None


def _matching(rendered: Any, patches: torch.Tensor) -> _Template | None:
    if rendered.get("type") != "multimodal" or set(rendered["mm_kwargs"]) != {"image"}:
        return None
    (item,) = rendered["mm_kwargs"]["image"]
    if set(item) != {"pixel_values", "image_grid_thw"}:
        return None
    theirs = item["pixel_values"].data
    if theirs.dtype != patches.dtype or not torch.equal(theirs, patches):
        return None
    return _Template(
        token_ids=rendered["prompt_token_ids"],
        placeholders=rendered["mm_placeholders"],
        grid=item["image_grid_thw"],
        field=item["pixel_values"].field,
    )
