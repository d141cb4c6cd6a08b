"""`caprl-ray tune`: measure engine settings with a recipe's own images, and find the fastest."""

import os
import sys
import time
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from caprl_ray.caption.job import caption_job
from caprl_ray.commands.init import gpus
from caprl_ray.commands.trial import IMAGES, sampled
from caprl_ray.engines.launch import needs_engine
from caprl_ray.errors import CaprlError, RecipeError, SystemFailure
from caprl_ray.output.fingerprint import fingerprint, installed
from caprl_ray.recipe.engine_arguments import recorded, shown
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.recipe.sections import Recipe
from caprl_ray.tune import scores, settings
from caprl_ray.tune.measuring import OutOfTime, Sample, failure, measured, passes
from caprl_ray.tune.outcome import Outcome
from caprl_ray.tune.replica import machine
from caprl_ray.tune.search import fitting, needed, search
from caprl_ray.tune.settings import Setting
from caprl_ray.tune.state import TUNED, Measurement, State

MINUTES, SECONDS = 10.0, 10.0


def tune(
    recipe: Recipe,
    path: str,
    folder: Path,
    *,
    minutes: float = MINUTES,
    seconds: float = SECONDS,
    images: int = IMAGES,
    price: float | None = None,
    score: ScoreRecipe | None = None,
    debug: bool = False,
) -> Outcome:
    """Measure settings for about this many minutes, and write the fastest to the folder.

    Args:
        path: the recipe's file, for messages.
        folder: keeps the measurements. The same call continues from them.
        seconds: how long a setting is measured in the first round.
        images: the approximate size of the sample.
        price: of a GPU hour; by default the recipe's.
        score: the recipe that scores the captions of settings that may change them.

    Raises RecipeError if the recipe cannot be tuned here, SystemFailure if the recipe itself cannot be measured, and
    both as a run would.
    """
    _check(recipe)
    began, state, conditions = time.monotonic(), State(folder), _conditions(recipe)
    state.check(conditions)
    with sampled(recipe, images, debug=debug) as seen, state:
        state.begin(conditions)
        joined = scores.joining(score, seen.rows) if score else []
        sample = Sample(recipe, seen.model, seen.rows)
        default = settings.default(recipe)
        sample.of(default)
        spent_s = time.monotonic() - began
        budget_s = 60 * minutes - spent_s
        if budget_s <= seconds:
            raise RecipeError(
                f"--minutes: {minutes:g} is too short, because reading and preparing the sample took {spent_s:.0f} s; "
                "give more."
            )
        measure = partial(_measure, state, sample)
        first = measure(default, seconds, budget_s)
        if first.failure:
            raise SystemFailure(f"tune: the recipe itself could not be measured: {first.failure.rstrip('.')}.")
        offered = settings.offered(recipe, seen.model, first.arguments)
        _say(_plan(offered, first, seconds, minutes, budget_s - first.cost_s))
        found = search(
            (default, first), offered, partial(_combined, recipe), measure, seconds=seconds, budget_s=budget_s
        )
        outcome = Outcome(
            recipe=recipe,
            path=path,
            folder=folder,
            found=found,
            price=recipe.replicas.price if price is None else price,
            images=seen.rows.num_rows,
            conditions=conditions | state.machine,
        )
        state.write(TUNED, outcome.file() if outcome.winner else None)
    if score is None:
        return outcome
    return replace(outcome, scores=scores.scored(score, folder, joined, outcome.captions()))


def _check(recipe: Recipe) -> None:
    """Raise RecipeError for a recipe that has no engine here."""
    if recipe.model.endpoint:
        raise RecipeError(
            "model.endpoint: tune measures engines of this job, and a service has its own; tune it where it runs, or "
            "try model.concurrency with caprl-ray preflight."
        )
    there = gpus()
    if needs_engine(recipe) and not os.environ.get("RAY_ADDRESS") and there < recipe.replicas.gpus:
        raise RecipeError(
            f"replicas.gpus: {recipe.replicas.gpus:g} for a replica, but this machine has {there or 'no'} "
            f"GPU{'' if there == 1 else 's'}; run tune where the job will run, on a cluster by RAY_ADDRESS, or, to see "
            "how it works, with model.source=embedded replicas.gpus=0."
        )


def _conditions(recipe: Recipe) -> dict[str, Any]:
    """The conditions of a measurement beside the setting: recipe, input, versions and machine."""
    job, plain = caption_job(recipe), recorded(recipe.model_dump())
    names = ("gpus", "accelerator_type")
    found = {f"replicas.{name}": plain["replicas"][name] for name in names}
    found |= {f"model.{name}": plain["model"][name] for name in ("engine", "engine_by_accelerator")}
    found |= {f"version.{name}": installed(name) for name in ("ray", "torch")}
    if os.environ.get("RAY_ADDRESS"):
        found["machine"] = "cluster"
    else:
        found |= machine()
    return fingerprint(job) | {"input.paths": recipe.input.paths} | found


def _measure(state: State, sample: Sample, setting: Setting, seconds: float, limit_s: float) -> Measurement:
    """Measure a setting, or return an earlier measurement. Raises RecipeError on another machine than before."""
    before = state.load(setting.name, seconds)
    if before and not before.worth_another_try(limit_s):
        _say(f"{_line(before)} (from before)")
        return before
    began = time.monotonic()
    try:
        seen = measured(setting, sample, seconds, limit_s)
        arguments = shown(seen.arguments)
        found = Measurement.of(setting, seconds, time.monotonic() - began, seen, arguments)
    except Exception as error:
        why = failure(error, limit_s)
        if why is None:
            raise
        limit = limit_s if isinstance(error, OutOfTime) else None
        once = before is None and passes(error)
        found = Measurement.failed_with(setting, seconds, time.monotonic() - began, why, limit_s=limit, passing=once)
    if not found.failure or setting.changes:  # a fault of the recipe itself may be repaired
        state.same_machine(sample.machine)
        state.keep(found)
    _say(_line(found))
    return found


def _combined(recipe: Recipe, first: Setting, second: Setting) -> Setting | None:
    try:
        return settings.combined(recipe, first, second)
    except CaprlError:
        return None  # each is allowed, but not both


def _plan(offered: list[Setting], first: Measurement, seconds: float, minutes: float, left_s: float) -> str:
    """A line with the number of settings that fit into the time, and the minutes that all need."""
    start_s = first.cost_s - seconds
    fits = fitting(offered, start_s, seconds, left_s)
    enough = ceil(minutes + (needed(offered, start_s, seconds) - left_s) / 60)
    return (
        f"the recipe took {first.cost_s:.0f} s with its engine's start; of {len(offered)} settings there is time for "
        f"about {fits} in the {max(0.0, left_s) / 60:.1f} minutes that are left"
        f"{f'; for all of them give --minutes {enough}' if fits < len(offered) else ''}"
    )


def _line(found: Measurement) -> str:
    """Progress, as each measurement ends."""
    rate = found.rate
    said = f"{rate.value:.2f} images/s" if rate else found.failure
    return f"{found.setting}: {said} ({found.cost_s:.0f} s)"


def _say(line: str) -> None:
    sys.stderr.write(f"caprl-ray: {line}\n")
