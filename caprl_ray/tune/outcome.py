"""The result of a tune: as a table, as data, and as a recipe file with the fastest fields."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caprl_ray.commands.estimate import LEVEL, Estimate, Interval
from caprl_ray.models.resolve import only_scenes
from caprl_ray.recipe.commented import comment, flow, section
from caprl_ray.recipe.sections import Recipe
from caprl_ray.tune.search import Found, faster
from caprl_ray.tune.settings import Setting
from caprl_ray.tune.state import TUNED, Measurement
from caprl_ray.tune.table import Row, lines_of, percent

SAME, MAY = "write the same as the recipe", "may change what is written"
BARE = re.compile(r"(?!(?:true|false|yes|no|on|off|null)$)[A-Za-z][\w-]*", re.IGNORECASE)  # YAML reads it as this text


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result for a recipe. `price` is per GPU hour, or per hour of a replica without a GPU."""

    recipe: Recipe
    path: str
    folder: Path
    found: Found
    price: float | None
    images: int
    conditions: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Interval] | None = None

    @property
    def winner(self) -> Setting | None:
        """The fastest setting that does not change captions, if it is significantly faster than the recipe."""
        best = self.found.best
        return best if best and faster(self.found.gain(best)) else None

    @property
    def rows(self) -> list[Row]:
        """The recipe, then the settings in the order of their measurement."""
        return [self._row(setting) for setting, *_ in self.found.results.values()]

    def captions(self) -> dict[str, list[str | None]]:
        """The greedy captions of the recipe, and of the settings that may change captions."""
        found = {setting.name: self._result(setting) for setting, *_ in self.found.results.values()}
        others = {name for name, (setting, *_) in self.found.results.items() if setting.captions}
        wanted = others | {self.found.default.name}
        return {name: one.greedy for name, one in found.items() if name in wanted and not one.failure}

    def report(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return {
            "level": LEVEL,
            "sampled": self.images,
            "settings": [vars(row) for row in self.rows],
            "best": self.winner.name if self.winner else None,
            "confirmed": bool(self.winner) and self.found.confirmed,
            "tuned": str(self.folder / TUNED) if self.winner else None,
            "not_measured": [setting.name for setting in self.found.left],
            "conditions": self.conditions,
        }

    def summary(self) -> str:
        """Text for people."""
        rows = self.rows
        same, may = [row for row in rows if not row.may_change], [row for row in rows if row.may_change]
        lines = only_scenes(self.recipe)
        lines += [f"{self._where()}; {self.images} images", "", f"settings that {SAME}:", *lines_of(same)]
        if may:
            lines += ["", f"settings that {MAY}, which a run of an output that has begun refuses:", *lines_of(may)]
            lines += [f"  {row.setting}: {row.note}" for row in may]
        return "\n".join([*lines, "", *self._verdict()])

    def file(self) -> str:
        """The fields of the fastest setting as a recipe file, with their gain and the machine."""
        assert self.winner
        lines = [
            *comment(f"Faster settings for {os.path.basename(self.path)}: {self._fastest(self.winner)}."),
            *comment(f"By caprl-ray tune with {self.images} images, {self._where()}."),
            *comment("They hold there, and change nothing that is written. Measure again for another model or GPU."),
            *comment(f"Use: {self._command()}"),
        ]
        for name, values in self.winner.changes.items():
            lines += ["", *section(name, values, {})]
        for setting, *_ in self.found.results.values():
            if setting.captions and faster(self.found.gain(setting)):
                row = self._row(setting)
                said = f"{setting.note}: images/s {self._gain_said(setting)}, {row.equal} of {row.compared} greedy"
                lines += ["", *comment(f"May change what is written ({said} captions are equal). Add to the command:")]
                lines.append(f"# {shlex.join(overrides(setting.changes))}")
        return "\n".join([*lines, ""])

    def _row(self, setting: Setting) -> Row:
        result, before = self._result(setting), self._result(self.found.default)
        rate, gain = result.rate, None if setting is self.found.default else self.found.gain(setting)
        equal, compared = result.equal(before)
        return Row(
            setting=setting.name,
            changes=setting.changes,
            may_change=list(setting.captions),
            note=setting.note,
            **_interval("images_s", _bounds(rate)),
            **_interval("gain", _bounds(gain)),
            faster=faster(gain),
            tokens_s=result.tokens_s.value if result.tokens_s else None,
            gpu_busy=result.gpu_busy,
            memory_bytes=result.host_bytes if result.gpu_bytes is None else result.gpu_bytes,
            start_s=result.start_s,
            first_caption_s=result.first_caption_s,
            equal=equal,
            compared=compared,
            per_million=self._per_million(setting, rate),
            **_interval("score", (self.scores or {}).get(setting.name)),
            seconds=result.seconds,
            failure=result.failure,
        )

    def _result(self, setting: Setting) -> Measurement:
        result = self.found.results[setting.name][1]
        assert isinstance(result, Measurement)
        return result

    def _per_million(self, setting: Setting, rate: Estimate | None) -> float | None:
        """The cost of a million images."""
        if self.price is None or not rate or not rate.value:
            return None
        return self.price * (setting.recipe.replicas.gpus or 1) * setting.copies * 1e6 / rate.value / 3600

    def _verdict(self) -> Iterator[str]:
        if self.winner:
            yield f"fastest: {self.winner.name}: {self._fastest(self.winner)}"
            yield f"{self.folder / TUNED}: written; {self._command()}"
        elif len(self.found.results) == 1:
            yield "there was time to measure the recipe only; give more --minutes, and the same command goes on"
        else:
            yield "nothing that writes the same is faster than the recipe by more than two measurements differ"
        if self.scores == {}:
            yield "no image that was captioned greedily has a question: nothing was scored"
        if self.found.left:
            yield f"not measured for want of time (--minutes): {', '.join(one.name for one in self.found.left)}"

    def _fastest(self, winner: Setting) -> str:
        said = "measured a second time" if self.found.confirmed else "not measured a second time (--minutes)"
        return f"images/s {self._gain_said(winner)}, {said}"

    def _command(self) -> str:
        return f"caprl-ray caption {shlex.quote(self.path)} {shlex.quote(str(self.folder / TUNED))}"

    def _gain_said(self, setting: Setting) -> str:
        gain = self.found.gain(setting)
        assert gain
        bounds = gain.interval
        return percent(gain.value, bounds.low if bounds else None, bounds.high if bounds else None)

    def _where(self) -> str:
        """The hardware of the measurements: that of one replica of the recipe."""
        gpus, known = self.recipe.replicas.gpus, self.conditions
        share = f"{gpus:g} GPU{'s' if gpus > 1 else ''}, as one replica has," if gpus else "the CPU"
        machine = "a node of the cluster" if known.get("machine") == "cluster" else "this machine"
        names = known.get("machine.gpus") or []
        kind = f" ({names[0]})" if gpus and names else f" ({known.get('machine.cores')} cores)"
        versions = ", ".join(
            f"{name} {known[f'version.{name}']}" for name in ("vllm", "ray", "torch") if known.get(f"version.{name}")
        )
        return f"measured on {share} of {machine}{kind}; {versions}"


def overrides(changes: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """The fields of a setting as words that follow a recipe."""
    for name, value in changes.items():
        if isinstance(value, dict) and value:
            yield from overrides(value, f"{place}{name}.")
        else:
            bare = isinstance(value, str) and BARE.fullmatch(value)
            yield f"{place}{name}={value if bare else flow(value)}"


def _bounds(found: Estimate | None) -> Interval | float | None:
    return (found.interval or found.value) if found else None


def _interval(name: str, found: Interval | float | None) -> dict[str, Any]:
    """The three fields of a figure."""
    if not isinstance(found, Interval):
        return {name: found, f"{name}_low": None, f"{name}_high": None}
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
