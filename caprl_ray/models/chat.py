"""The model's chat format around the user's text, and the removal of control tokens from that text."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caprl_ray.errors import SystemFailure

# Placeholder for the row's text while the chat template is rendered once.
SLOT = "caprl-ray-user-text"
# The control tokens of common vision-language models, for a model whose tokenizer is not known here.
COMMON_CONTROL_TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|image|>"),
    *("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<image>", "<img>", "</img>", "<IMG_CONTEXT>"),
    *("[INST]", "[/INST]", "[IMG]", "<s>", "</s>"),
)
# How most models write theirs, some with wide bars.
LIKE_CONTROL_TOKENS = r"<[|\uff5c][^|\uff5c<>\s]+[|\uff5c]>"


def control_token_stripper(tokens: Iterable[str]) -> Callable[[str], str]:
    """A function that removes all `tokens` from a text, also those that a removal would put together."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    if not longest_first:
        return lambda text: text
    return _stripper("|".join(map(re.escape, longest_first)))


def without_any_control_token() -> Callable[[str], str]:
    """A function that removes the control tokens of common models from a text, and all that looks like one: for a text
    whose reader is not known."""
    return _stripper("|".join([LIKE_CONTROL_TOKENS, *map(re.escape, COMMON_CONTROL_TOKENS)]))


def _stripper(expression: str) -> Callable[[str], str]:
    pattern = re.compile(expression)

    def strip(text: str) -> str:
        count = 1
        while count:
            text, count = pattern.subn("", text)
        return text

    return strip


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """A model's chat format, rendered once with a slot for the user's text, and with an image before it or without."""

    prefix: str
    suffix: str

    def prompt(self, text: str) -> str:
        """The whole prompt for one user text."""
        return self.prefix + text + self.suffix

    @classmethod
    def render(
        cls, apply: Callable[[Sequence[Mapping[str, Any]]], str], system: str | None, *, image: bool = True
    ) -> "ChatFormat":
        """Render the model's chat template through `apply` (messages -> text, with the generation prompt).

        `system` None leaves no system turn, even if the template adds one of its own. Raises SystemFailure for a
        template whose turns cannot be told apart.
        """
        user = _user_turn(image=image)
        turns: list[dict[str, Any]] = [user] if system is None else [{"role": "system", "content": system}, user]
        text = apply(turns)
        if system is None:
            text = _without_system_turn(text, apply, user)
        prefix, found, suffix = text.rpartition(SLOT)
        if not found:
            raise SystemFailure("prompt.user: the model's chat template leaves the user's text out of the prompt.")
        return cls(prefix=prefix, suffix=suffix)


def _user_turn(*, image: bool) -> dict[str, Any]:
    """A user's turn with the slot. Templates of models without images know only texts."""
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": SLOT}] if image else SLOT}


def _without_system_turn(
    text: str, apply: Callable[[Sequence[Mapping[str, Any]]], str], user: Mapping[str, Any]
) -> str:
    """Remove a system turn that the template added by itself.

    A rendering with a marked system turn shows how turns begin: with the text before the marker, which names the role.
    So the start of the user's turn can be found in a rendering with an unwanted system turn.
    """
    marker = "caprl-ray-system-text"
    before, _, after = apply([{"role": "system", "content": marker}, user]).partition(marker)
    system_header = before[before.find("<") :] if "<" in before else before
    user_header = system_header.replace("system", "user")
    if user_header == system_header or user_header not in after:
        raise SystemFailure(
            "prompt.system: this model's chat template gives no way to leave the system turn out; give it a text."
        )
    preamble = before.removesuffix(system_header)
    return preamble + user_header + text.partition(user_header)[2]
