"""The arguments for Ray Data's actor pool of replicas."""

import math
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle

from caprl_ray.cluster import resources
from caprl_ray.engines import concurrency
from caprl_ray.recipe.sections import Recipe
from caprl_ray.watch.starts import MAIN


def pool(recipe: Recipe, counter: ActorHandle, rows: int, name: str = MAIN, prompts: int = 1) -> dict[str, Any]:
    """Arguments of `map_batches` for the pool of this name. A batch has `rows` rows with `prompts` prompts each."""
    return resources.replica_pool(recipe, in_flight(recipe, rows, prompts), partial(_struck, counter, name))


def batch_rows(recipe: Recipe, max_pixels: int) -> int:
    """The number of rows in a batch for a recipe's pool: more for a large pool, but at most a third of an engine's
    places. If a batch filled a larger part of the places, too many would be empty whenever a batch ends."""
    few, many = resources.batch_rows(max_pixels), resources.batch_rows(max_pixels, recipe.replicas.most)
    return max(few, min(many, concurrency.max_num_seqs(recipe) // 3))


def in_flight(recipe: Recipe, rows: int, prompts: int = 1) -> int:
    """The number of batches in a replica at once. At least two, so that the next one is there when one ends. One, if a
    single batch keeps the engine busy."""
    batches = concurrency.batches_in_flight(recipe, rows)
    return max(min(2, batches), math.ceil(batches / prompts))


def _struck(counter: ActorHandle, name: str) -> list[str]:
    """The ids of nodes that get no more replicas of the pool."""
    return list(ray.get(counter.struck.remote(name)))
