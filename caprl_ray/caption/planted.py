"""Two test pictures that are captioned between a batch's rows, to detect swapped rows and missing pixels.

A released pipeline attached captions to the wrong items for months (cosmos-curate 1.1.5 to 1.1.11). The test works with
any model: two different pictures are decoded greedily, the first one twice. Its two captions must be more similar to
each other than to the caption of the second picture.
"""

import asyncio
import io
import re
import sys
from typing import Any

from caprl_ray.embedded.scenes import Scene, Thing, render
from caprl_ray.engines.protocol import Engine, Picture
from caprl_ray.errors import RowFailure
from caprl_ray.prepare.decode import Limits, prepare
from caprl_ray.prepare.sizes import SizeRule
from caprl_ray.recipe.sampling import Sampling

PROMPT = "Please describe this image in detail."
GREEDY = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 64, "n": 1}
WIDE: dict[str, Any] = {
    "structured_outputs": None,
    "allowed_token_ids": None,
    "logit_bias": None,
    "bad_words": None,
    "min_tokens": 0,
    "stop": None,
    "stop_token_ids": None,
}
SIDE = 224  # pixels, before the model's own size rule
# Engines round differently in batches of other sizes, so the two captions of a picture may differ after some words.
ALIKE = 0.3

_SPACE = re.compile(r"\s+")
PART = 3  # characters: words would not do in scripts that write no spaces
_SCENES = (
    Scene(background="gray", things=(Thing(size="large", colour="red", kind="circle", row=1, column=1),)),
    Scene(
        background="yellow",
        things=tuple(
            Thing(size="small", colour="blue", kind="square", row=row, column=column)
            for row, column in ((0, 0), (2, 2))
        ),
    ),
)


class Planted:
    """The test pictures at the size of one model. Make it once; `fault` captions them."""

    def __init__(self, rule: SizeRule, sampling: Sampling) -> None:
        self._first, self._second = (_picture(scene, rule) for scene in _SCENES)
        # A field that restricts the output would make both captions similar.
        narrow = {name: value for name, value in WIDE.items() if name in (sampling.model_extra or {})}
        self._sampling = GREEDY | narrow

    async def fault(self, engine: Engine) -> str | None:
        """Caption them; call it while other rows are captioned. Returns one sentence if the engine swaps rows or sees
        no pixels, otherwise None, also if it refuses the pictures. Raises SystemFailure if the engine does."""
        try:
            first, second, again = await asyncio.gather(
                *(
                    engine.caption(picture, PROMPT, self._sampling)
                    for picture in (self._first, self._second, self._first)
                )
            )
        except RowFailure:
            return None
        return _mixed_up(first.text, second.text, again.text)


def _picture(scene: Scene, rule: SizeRule) -> Picture:
    content = io.BytesIO()
    render(scene, SIDE, SIDE).save(content, "PNG")
    seen = prepare(content.getvalue(), rule, Limits(max_bytes=sys.maxsize, max_source_pixels=SIDE * SIDE))
    return Picture(pixels=memoryview(seen.pixels), width=seen.pixel_width, height=seen.pixel_height)


def _mixed_up(first: str, second: str, again: str) -> str | None:
    alike, unlike = _likeness(first, again), _likeness(first, second)
    if not (first.strip() and again.strip()):
        return None  # the check `empty` finds a model that writes nothing
    if alike >= ALIKE and alike > unlike:
        return None
    told = ", ".join(repr(text[:60]) for text in (first, again, second))
    return (
        "quality.self_check: the captions of a picture that was planted twice are no more like each other than like "
        f"that of another picture ({told}), so rows are mixed up or pixels are not seen; for a model that writes the "
        "same of any picture, set quality.self_check=0"
    )


def _likeness(one: str, other: str) -> float:
    """The share of parts of PART characters that two texts have in common: 0 to 1 (Jaccard)."""
    ours, theirs = map(_parts, (one, other))
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def _parts(text: str) -> set[str]:
    text = f" {_SPACE.sub(' ', text.lower().strip())} "
    return {text[place : place + PART] for place in range(len(text) - PART + 1)}
