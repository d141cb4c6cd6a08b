"""`caprl-ray plan --estimate`: time and cost of a whole input with intervals, from a sample that is captioned on this
machine.

Every figure names its basis. Intervals of 90 % are Student's t on linearized errors between units (weights.py),
Wilson's for shares, and batch means for the rate (estimate.steady).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from caprl_ray.commands.estimate import LEVEL, Estimate, Interval, bars
from caprl_ray.commands.figures import Figure, share_said, shares_said
from caprl_ray.commands.init import gpus
from caprl_ray.commands.trial import MEGAPIXELS, SECONDS, Trial, areas, trial
from caprl_ray.models.resolve import only_scenes
from caprl_ray.recipe.sections import Recipe

SAMPLE = 256


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The measurements and estimates for the recipe `asked`. `price` is per hour of a GPU, or of a replica without a
    GPU."""

    asked: Recipe
    seen: Trial
    price: float | None

    @property
    def exit_code(self) -> int:
        """0 if an image was captioned, otherwise 3."""
        return 0 if self.seen.captioned else 3

    @property
    def own_machine(self) -> bool:
        """Whether the engine ran on as many GPUs as the recipe asks for."""
        return self.seen.recipe.replicas.gpus == self.asked.replicas.gpus

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Every figure by its name."""
        count = "the listing, and shards that were read whole" if self._images.error == 0 else self._by_bytes
        return {
            "images": Figure.of(self._images, count),
            "bytes": Figure.of(Estimate(value=self.seen.bytes, error=0.0), "the listing"),
            "prompt_tokens": Figure.of(self._mean("prompt_tokens"), self._sample),
            "caption_tokens": Figure.of(self._mean("caption_tokens"), self._sample),
            "caption_tokens_median": Figure.of(self._quantile(0.5), self._sample),
            "caption_tokens_p95": Figure.of(self._quantile(0.95), self._sample),
            "all_caption_tokens": Figure.of(self._work if self._tells_tokens else None, "images and their tokens"),
            **self._time(),
        }

    def report(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        found = {name: vars(figure) for name, figure in self.figures.items()}
        return {
            "level": LEVEL,
            "sampled": self.seen.weighted.rows,
            "captioned": len(self.seen.captioned),
            "units": self.seen.units,
            "units_sampled": self.seen.weighted.units,
            "model": self.seen.label,
            "on_the_recipes_gpu": self.own_machine,
            "replicas": self.asked.replicas.most,
            "gpus": self.asked.replicas.gpus,
            "price": self.price,
            "prepare_images_s": self.seen.prepare_images_s,
            **found,
            "megapixels": self._told(self._sizes(), "images"),
            "flags": self._told(self._flags(), "captions"),
            "failed": self._told(self._codes(), "rows"),
        }

    def _told(self, shares: dict[str, Interval], of: str) -> dict[str, Any]:
        return {name: vars(Figure.of(share, f"the {of} in {self._sample}")) for name, share in shares.items()}

    def summary(self) -> str:
        """Text for people."""
        unit = "GPU hours" if self.asked.replicas.gpus else "replica hours"
        lines = only_scenes(self.asked)
        lines += [
            f"The sample: {self._sample}. Brackets are intervals of {LEVEL:.0%}. {self._where}",
            self._line("images", "images"),
            self._line("bytes", "bytes"),
            self._line("tokens of a prompt, with the image", "prompt_tokens"),
            self._line("tokens of a caption", "caption_tokens"),
            self._line("  median", "caption_tokens_median"),
            self._line("  95th percentile", "caption_tokens_p95"),
            self._line("tokens of all captions", "all_caption_tokens"),
            self._line("images/s of a replica", "images_s"),
            self._line(unit, "gpu_hours"),
            self._line(f"hours on {self._replicas}", "hours"),
            self._line("cost", "cost", "$"),
            f"prepare: {self.seen.prepare_images_s:,.1f} images/s on one core here",
            "sizes in megapixels, of the images in the sample:",
            *self._histogram(),
            f"flags of the captions in the sample: {shares_said(self._flags())}",
            f"failed rows of the sample: {shares_said(self._codes())}",
        ]
        return "\n".join(lines)

    def _line(self, label: str, name: str, before: str = "") -> str:
        return f"{label}: {self.figures[name].said(before).replace(self._sample, 'the sample')}"

    @property
    def _where(self) -> str:
        gpus, here = self.asked.replicas.gpus, "images/s, hours and cost are those of this machine"
        if not self.own_machine:
            return (
                f"The recipe asks for {gpus:g} GPU{'s' if gpus > 1 else ''} for a replica, and this machine has fewer: "
                f"{here} without them, and say nothing of a GPU. Images, bytes, sizes, tokens, lengths and flags carry "
                "over."
            )
        if self.asked.model.endpoint:
            return "Images/s, hours and cost are those of the service as one replica sees it now."
        if os.environ.get("RAY_ADDRESS"):
            return "Images/s, hours and cost are those of one replica in this cluster."
        return f"{here[0].upper()}{here[1:]}, {'with its GPU' if gpus else 'without a GPU, as the recipe says'}."

    @property
    def _replicas(self) -> str:
        most = self.asked.replicas.most
        return f"{most} replica{'s' if most > 1 else ''}"

    @property
    def _sample(self) -> str:
        seen = self.seen.weighted
        return f"{seen.rows:,} rows of {seen.units:,} of {self.seen.units:,} units, drawn by kind and size of unit"

    @property
    def _by_bytes(self) -> str:
        return f"bytes of shards over bytes of a row, in {self._sample}: of a shard, its first rows"

    @property
    def _images(self) -> Estimate:
        return self.seen.weighted.total(np.ones(self.seen.weighted.rows))

    @property
    def _kept(self) -> np.ndarray:
        return np.array([row["caption"] is not None for row in self.seen.rows])

    @property
    def _tells_tokens(self) -> bool:
        return bool(self._of("caption_tokens").any()) and self.seen.measured.tokens_s.value > 0

    def _of(self, name: str) -> np.ndarray:
        return np.array([float(row[name] or 0) if row["caption"] is not None else 0.0 for row in self.seen.rows])

    @property
    def _work(self) -> Estimate:
        """The work of the whole input: tokens of captions, or captions if tokens are unknown."""
        return self.seen.weighted.total(self._load)

    @property
    def _load(self) -> np.ndarray:
        return self._of("caption_tokens") if self._tells_tokens else self._kept.astype(float)

    def _mean(self, name: str) -> Estimate | None:
        if not self._of(name).any():
            return None
        return self.seen.weighted.ratio(self._of(name), self._kept.astype(float))

    def _quantile(self, part: float) -> Interval | None:
        values = self._of("caption_tokens")
        return self.seen.weighted.quantile(values, part, self._kept) if values.any() else None

    def _time(self) -> dict[str, Figure]:
        """Rate, hours and cost: the work of the whole input, from the sample's rows and their weights, over a replica's
        work per second."""
        measured, names = self.seen.measured, ("images_s", "gpu_hours", "hours", "cost")
        rate = measured.tokens_s if self._tells_tokens else measured.images_s
        if not self._kept.any() or not rate.value:
            return {name: Figure.of(None, "nothing was captioned") for name in names}
        replicas, ones = self.asked.replicas, np.ones(self.seen.weighted.rows)
        seconds = self._work.over(rate)
        hours = seconds.times((replicas.gpus or 1) / 3600)
        windows = f"{rate.df + 1:.0f} windows" if rate.error is not None else "too few batches for windows"
        works = "tokens" if self._tells_tokens else "captions"
        per_image = self.seen.weighted.ratio(self._load, ones)
        measure = f"{works}/s here in {windows} over {measured.seconds:,.0f} s, divided by the {works} of an image"
        return {
            "images_s": Figure.of(rate.over(per_image), measure),
            "gpu_hours": Figure.of(hours, f"{works} of all images over {works}/s here; engines start besides"),
            "hours": Figure.of(
                seconds.times(1 / 3600 / replicas.most), "the same, if no replica ever waits and none is lost"
            ),
            "cost": self._cost(hours),
        }

    def _cost(self, hours: Estimate) -> Figure:
        if self.price is None:
            return Figure.of(None, "give --price, or replicas.price in the recipe")
        what = "a GPU" if self.asked.replicas.gpus else "a replica, which has no GPU"
        return Figure.of(hours.times(self.price), f"${self.price:,.2f} for an hour of {what}")

    def _sizes(self) -> dict[str, Interval]:
        found = areas(self.seen.rows)
        known, below = ~np.isnan(found), [0.0, *MEGAPIXELS]
        return {
            f"{high:g}": self.seen.weighted.share(known & (found >= low) & (found < high), known)
            for low, high in zip(below, MEGAPIXELS, strict=False)
            if ((found >= low) & (found < high)).any()
        }

    def _flags(self) -> dict[str, Interval]:
        return self._shares([list(row["flags"] or ()) for row in self.seen.rows], self._kept)

    def _codes(self) -> dict[str, Interval]:
        codes = [[row["code"]] if row["code"] else [] for row in self.seen.rows]
        return self._shares(codes, np.ones(len(codes), bool))

    def _shares(self, names: list[list[str]], of: np.ndarray) -> dict[str, Interval]:
        """The share of rows with each name, the most frequent first."""
        found = {
            name: self.seen.weighted.share(np.array([name in own for own in names]) & of, of)
            for name in sorted({name for own in names for name in own})
        }
        return dict(sorted(found.items(), key=lambda one: -one[1].value))

    def _histogram(self) -> Iterator[str]:
        found = self._sizes()
        drawn = bars([round(1000 * share.value) for share in found.values()])
        for (name, share), bar in zip(found.items(), drawn, strict=True):
            label = f"over {MEGAPIXELS[-2]:g}" if name == "inf" else f"under {name}"
            yield f"  {label:>10} {share_said(share):24} {bar}"


def forecast(
    recipe: Recipe,
    sample: int = SAMPLE,
    *,
    price: float | None = None,
    seconds: float | None = None,
    debug: bool = False,
) -> Forecast:
    """Caption a sample of about `sample` images on this machine or cluster, and measure the engine for `seconds`.
    `price` defaults to the recipe's.

    Raises RecipeError or SystemFailure as a run would.
    """
    seen = trial(_here(recipe), sample, seconds or SECONDS, whole=True, debug=debug)
    return Forecast(asked=recipe, seen=seen, price=recipe.replicas.price if price is None else price)


def _here(recipe: Recipe) -> Recipe:
    """The recipe for one replica on this machine: on its CPU if it lacks the GPUs. On a cluster, the recipe is not
    changed."""
    if os.environ.get("RAY_ADDRESS"):
        return recipe
    replicas = recipe.replicas
    own = {"min": 1, "accelerator_type": None, "gpus": replicas.gpus if gpus() >= replicas.gpus else 0}
    return recipe.model_copy(update={"replicas": replicas.model_copy(update=own)})
