"""`caprl-ray preflight`: try a recipe on a sample of its whole input, in about two minutes. Leaves nothing behind.

It refuses the same recipes as a run, with the same code, before anything starts.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from caprl_ray.commands import estimate
from caprl_ray.commands.estimate import Whole
from caprl_ray.commands.sample import SEED
from caprl_ray.commands.trial import IMAGES, MEGAPIXELS, SECONDS, Trial, areas, silent, trial
from caprl_ray.models.resolve import only_scenes
from caprl_ray.recipe.engine_arguments import shown
from caprl_ray.recipe.sections import Recipe

SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """The measurements, and the time and cost of the whole input of `images` images."""

    seen: Trial
    images: int
    whole: Whole | None

    @property
    def exit_code(self) -> int:
        """0 if an image was captioned, otherwise 3."""
        return 0 if self.seen.captioned else 3

    def report(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        tokens = [row["caption_tokens"] or 0 for row in self.seen.captioned]
        prompts = [row["prompt_tokens"] or 0 for row in self.seen.captioned]
        return {
            "sampled": len(self.seen.rows),
            "captioned": len(self.seen.captioned),
            "model": self.seen.label,
            "engine": shown(self.seen.measured.arguments),
            "start_s": self.seen.measured.start_s,
            "read_images_s": self.seen.read_images_s,
            "prepare_images_s": self.seen.prepare_images_s,
            "images_s": self.seen.measured.images_s.value,
            "caption_tokens_s": self.seen.measured.tokens_s.value,
            "prompt_tokens": estimate.mean(prompts).value,
            "caption_tokens": estimate.mean(tokens).value,
            "caption_tokens_p95": estimate.quantile(tokens, 0.95),
            "images": self.images,
            "replicas": self.seen.recipe.replicas.most,
            "whole": None if self.whole is None else asdict(self.whole),
            "megapixels": {f"{bound:g}": count for bound, count in self._sizes() if count},
            "flags": dict(Counter(flag for row in self.seen.captioned for flag in row["flags"] or ()).most_common()),
            "failed": dict(Counter(row["code"] for row in self.seen.rows if row["code"]).most_common()),
        }

    def summary(self) -> str:
        """Text for people."""
        seen, measured = self.report(), self.seen.measured
        lines = only_scenes(self.seen.recipe)
        lines += [
            f"input: about {self.images:,} images; {len(self.seen.rows)} of them sampled, read at "
            f"{self.seen.read_images_s:,.0f} images/s",
            f"prepare: {self.seen.prepare_images_s:.1f} images/s on one core",
            f"model: {self.seen.label} started in {measured.start_s:.1f} s",
        ]
        if seen["engine"]:
            lines.append(f"engine: {' '.join(f'{name}={value}' for name, value in seen['engine'].items())}")
        lines += [
            f"caption: {measured.images_s.value:.2f} images/s and {measured.tokens_s.value:.0f} caption tokens/s on "
            f"one replica, over {measured.seconds:.0f} s",
            f"tokens: prompt {seen['prompt_tokens']:.0f}, caption {seen['caption_tokens']:.0f} on average and "
            f"{seen['caption_tokens_p95']:.0f} at the 95th percentile",
            f"flags: {_counts(seen['flags'])}",
            f"failed: {_counts(seen['failed'])}",
            f"whole input: {self._whole()}",
            "sizes in megapixels:",
            *self._histogram(),
            "captions:",
        ]
        chosen = random.Random(SEED).sample(self.seen.rows, min(SHOWN, len(self.seen.rows)))
        return "\n".join([*lines, *(f"  {row['key']}: {_said(row)}" for row in chosen)])

    def _sizes(self) -> list[tuple[float, int]]:
        found = areas(self.seen.rows)
        return estimate.histogram(found[~np.isnan(found)].tolist(), MEGAPIXELS)

    def _histogram(self) -> Iterator[str]:
        counts = self._sizes()
        for (bound, count), bar in zip(counts, estimate.bars([count for _, count in counts]), strict=True):
            if count:
                yield f"  {'over 16' if bound == math.inf else f'under {bound:g}':>10} {count:4} {bar}"

    def _whole(self) -> str:
        if self.whole is None:
            return "no estimate, because nothing was captioned"
        replicas = self.seen.recipe.replicas.most
        said = f"{self.whole.seconds / 3600:,.2f} hours on {replicas} replica{'s' if replicas > 1 else ''}"
        said += f", {self.whole.gpu_hours:,.1f} GPU hours" if self.whole.gpu_hours else ""
        return said + (f", ${self.whole.cost:,.2f}" if self.whole.cost is not None else "")


def preflight(
    recipe: Recipe,
    *,
    seconds: float = SECONDS,
    price: float | None = None,
    debug: bool = False,
    tell: Callable[[str], None] = silent,
) -> Preflight:
    """Try a recipe on IMAGES images, and its engine for `seconds`. `price` is that of a GPU hour; by default the
    recipe's. `tell` is called after each step.

    Raises RecipeError or SystemFailure as a run would.
    """
    seen, replicas = trial(recipe, IMAGES, seconds, debug=debug, tell=tell), recipe.replicas
    images = round(seen.weighted.weights.sum())
    rate, price = seen.measured.images_s.value, replicas.price if price is None else price
    return Preflight(seen=seen, images=images, whole=estimate.whole(images, rate, replicas.most, replicas.gpus, price))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _said(row: dict[str, Any]) -> str:
    return row["caption"] or " ".join(filter(None, [row["code"], row["detail"]]))
