"""The common parts of both trainings: the initial weights, and the optimiser of a round."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

WARM_STEPS = 100


def initialise(model: Any, depth: Callable[[str], int]) -> None:
    """Initialise the weights by fan-in. Projections back into the residual stream are scaled down by depth.

    `depth` gives the number of layers of the part (vision or text) to which a parameter's name belongs.
    """
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        if "embed_tokens" in name:
            weight.data.normal_(0, 0.5)
            continue
        deviation = weight[0].numel() ** -0.5
        if "patch_embed" in name or "lm_head" in name:
            deviation *= 0.5
        if any(part in name for part in ("o_proj", "down_proj", "attn.proj")):
            deviation *= (2 * depth(name)) ** -0.5
        weight.data.normal_(0, deviation)


class Cosine:
    """AdamW for one round. The learning rate rises to `peak` in WARM_STEPS, then falls as a cosine to `peak` / 50."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], peak: float) -> None:
        self._parameters, self._peak, self._steps = parameters, peak, 0
        self._adam = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.01, eps=1e-9)

    def step(self, loss: torch.Tensor, part: float) -> None:
        """Make one step down the gradient of the loss. `part` is the finished share of the round, 0 to 1."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._steps += 1
        warm = min(1.0, self._steps / WARM_STEPS)
        for group in self._adam.param_groups:
            group["lr"] = self._peak * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
