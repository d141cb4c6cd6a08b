"""Caption image datasets with CapRL on Ray: stream, caption, check, commit, resume.

The names below are for use in Python (docs/python.md). Everything else is a recipe and the command line. Each name is
imported when it is first used, because Ray and Arrow take seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

from caprl_ray.version import __version__

if TYPE_CHECKING:
    from caprl_ray.answer.reader import start_reader, stop_reader
    from caprl_ray.dataset import caption_dataset
    from caprl_ray.score.reward import RELEASED, STRICT, Reward, caption_reward, caption_reward_async
    from caprl_ray.score.trainers import trl_reward, trl_reward_async, verl_reward, verl_reward_async

__all__ = [
    "RELEASED",
    "STRICT",
    "Reward",
    "__version__",
    "caption_dataset",
    "caption_reward",
    "caption_reward_async",
    "start_reader",
    "stop_reader",
    "trl_reward",
    "trl_reward_async",
    "verl_reward",
    "verl_reward_async",
]

_MODULES = {
    "dataset": ("caption_dataset",),
    "score.reward": ("RELEASED", "STRICT", "Reward", "caption_reward", "caption_reward_async"),
    "score.trainers": ("trl_reward", "trl_reward_async", "verl_reward", "verl_reward_async"),
    "answer.reader": ("start_reader", "stop_reader"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"caprl_ray.{module}"), name)
    raise AttributeError(f"module 'caprl_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
