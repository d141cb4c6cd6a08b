"""An engine for tests whose caption is computed from the pixels and the prompt, so that every mix-up still shows."""

import asyncio
import hashlib

from caprl_ray.engines import Completion, Picture


class StubEngine:
    """Answers at once, and nothing like a model: model.source `stub` must be allowed by an environment variable."""

    control_tokens = ("<|im_start|>", "<|im_end|>")

    async def caption(self, picture: Picture, prompt: str) -> Completion:
        """Caption by `stub_caption`, after one turn of the event loop."""
        await asyncio.sleep(0)
        text = stub_caption(bytes(picture.pixels), picture.width, picture.height, prompt)
        words = len(text.split())
        return Completion(text=text, finish_reason="stop", prompt_tokens=len(prompt.split()), caption_tokens=words)


def stub_caption(pixels: bytes, width: int, height: int, prompt: str) -> str:
    """The stub's caption: size, mean of each channel, a hash of the exact pixels, and the prompt."""
    red, green, blue = (round(sum(pixels[channel::3]) / max(1, width * height)) for channel in range(3))
    digest = hashlib.sha256(pixels).hexdigest()[:16]
    return f"{width}x{height} rgb({red},{green},{blue}) {digest} | {prompt}"
