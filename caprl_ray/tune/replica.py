"""A replica for measurements: its engine is not restarted, and it reports its load."""

import os
import random
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import ray

from caprl_ray.caption.stage import Captioner
from caprl_ray.cluster import cores
from caprl_ray.commands.sample import SEED
from caprl_ray.engines import concurrency, internals, launch
from caprl_ray.engines.protocol import AS_THE_RECIPE, Completion, Engine, EngineDied, Picture
from caprl_ray.errors import SystemFailure
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.sections import Recipe
from caprl_ray.recipe.turns import Turns

SAMPLED_S = 1.0
DRIVER = Path("/proc/driver/nvidia/gpus")  # where the driver tells the names of a machine's GPUs
GREEDY: Mapping[str, Any] = {"temperature": 0.0, "n": 1}


class DiedStarting(SystemFailure):
    """The engine died during its start, most often because other work used the memory."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The load of a replica since the last call: the mean of `gpu_busy`, 0 to 1, the peak of `gpu_bytes`, and the
    present `host_bytes`."""

    gpu_busy: float | None
    gpu_bytes: int | None
    host_bytes: int


class Measured(Captioner):
    """One replica. If its engine dies, the measurement fails: a setting that needs restarts is useless."""

    def __init__(self, recipe: Recipe, model: ModelRef) -> None:
        self._recipe = recipe
        self._steered: _Steered | None = None
        self._gpu: list[tuple[float, int]] = []
        self._machine = machine()  # an engine on a CPU may take cores for itself
        super().__init__(recipe, model, None)
        self._started = time.monotonic()
        if recipe.replicas.gpus:
            threading.Thread(target=self._look, name="load", daemon=True).start()

    def started(self) -> dict[str, Any]:
        """Wait for the engine. Returns its arguments. Raises SystemFailure if it has not started."""
        if self._failure:
            raise self._failure
        return self.engine_arguments()

    def where(self) -> tuple[str, dict[str, Any]]:
        """The id of this node, and its hardware."""
        return ray.get_runtime_context().get_node_id(), self._machine

    def greedily(self) -> None:
        """Caption greedily from now on."""
        assert self._steered
        self._steered.greedy = True

    def as_the_recipe(self, tokens: int) -> float:
        """Sample as in the recipe from now on. Returns the seconds from the engine's start to its first caption, 0
        without one.

        The first requests, which fill the engine's places, are cut to a random part of `tokens`, the mean length of a
        caption. So the engine begins as in the middle of a run. Otherwise all captions would end in waves.
        """
        assert self._steered
        places = int(self.engine_arguments().get("max_num_seqs") or concurrency.max_num_seqs(self._recipe))
        self._steered.greedy, self._steered.filling, self._steered.tokens = False, places, tokens
        return max(0.0, self._steered.first - self._started)

    def load(self) -> Load:
        """The load since the last call."""
        seen, self._gpu = self._gpu, []
        return Load(
            gpu_busy=fmean(busy for busy, _ in seen) if seen else None,
            gpu_bytes=max(used for _, used in seen) if seen else None,
            host_bytes=_host_bytes(),
        )

    def _begin(self, recipe: Recipe, model: ModelRef) -> Engine:
        try:
            return self._run(launch.start_mortal(recipe, model))
        except EngineDied as error:
            raise DiedStarting(f"{error}.") from None

    def _metered(self, recipe: Recipe) -> Any:
        self._steered = _Steered(super()._metered(recipe))
        return self._steered

    def _look(self) -> None:
        while load := internals.gpu_load():
            self._gpu.append(load)
            time.sleep(SAMPLED_S)


class _Steered:
    """Wraps an Engine: captions greedily, or shorter, on request.

    The next `filling` requests are cut to a random part of `tokens`. `first` is the time of the first caption.
    """

    def __init__(self, engine: Engine) -> None:
        self.greedy, self.filling, self.tokens, self.first = False, 0, 0, 0.0
        self._engine, self._random = engine, random.Random(SEED)
        self.control_tokens = engine.control_tokens

    async def caption(
        self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any] = AS_THE_RECIPE
    ) -> Completion:
        """Caption by the engine."""
        if self.greedy:
            completion = await self._engine.caption(picture, prompt, {**sampling, **GREEDY})
        elif self.filling and self.tokens > 1 and not sampling:  # neither a self check nor a second try
            self.filling -= 1
            most = {"max_tokens": self._random.randint(1, self.tokens)}
            completion = replace(
                await self._engine.caption(picture, prompt, {**sampling, **most}), finish_reason="stop"
            )  # so that no check flags it as truncated
        else:
            completion = await self._engine.caption(picture, prompt, sampling)
        self.first = self.first or time.monotonic()
        return completion


def machine() -> dict[str, Any]:
    """The cores that the run may use here, and the names of this machine's GPUs, as its driver has them."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(DRIVER.glob("*/information"))]
    lines = [line.partition(":") for text in texts for line in text.splitlines()]
    names = [value.strip() for name, _, value in lines if name == "Model"]
    return {"machine.cores": len(os.sched_getaffinity(0) | cores.kept()), "machine.gpus": names}


def _host_bytes() -> int:
    """The memory of this process and its children (PSS: shared memory is divided among its users)."""
    own, found = psutil.Process(), 0
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.Error):
            found += process.memory_full_info().pss
    return found
