"""The section `prepare`: how images become pixels."""

from typing import Annotated

from pydantic import Field, model_validator

from caprl_ray.recipe.fields import Positive, Section


class Prepare(Section):
    """How images are decoded and resized, and which images are refused."""

    min_pixels: Positive = 3136
    """Images with fewer pixels are enlarged to this number of pixels (width x height). The model's own minimum applies
    if it is higher."""
    max_pixels: Positive = 1_003_520
    """Images with more pixels are reduced to this number of pixels (width x height). The model's own maximum applies if
    it is lower. An image token is 28 x 28 pixels for CapRL-3B, and 32 x 32 pixels for a Qwen3-VL model. An InternVL
    model gets as many tiles of 448 x 448 pixels as fit. Lower it for speed, raise it for fine detail."""
    max_bytes: Positive = 64 * 2**20
    """The largest size of a stored image, in bytes. A larger image becomes a failed row. Raise it for very large
    originals."""
    max_source_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 178_956_970
    """The largest number of pixels of a stored image. An image with more is not decoded and becomes a failed row.
    Pillow accepts no more than the default. Lower it if workers have little memory."""
    timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = 30
    """The time limit for decoding and resizing one image, in seconds. After three tries the image becomes a failed row.
    Raise it on slow or overloaded machines."""

    @model_validator(mode="after")
    def _check(self) -> "Prepare":
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels is {self.min_pixels}; it must be at most max_pixels, which is {self.max_pixels}"
            )
        return self
