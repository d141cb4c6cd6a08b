"""How many batches a replica holds: enough that long captions do not keep the engine's places from short ones."""

import heapq
import itertools
import random
from collections import Counter
from pathlib import Path

import pytest

from caprl_ray.commands.demo import demo_recipe
from caprl_ray.engines import concurrency
from caprl_ray.recipe.load import parse
from caprl_ray.replica.pool import batch_rows, in_flight

BATCHES = 400


def taken(places: int, rows: int, batches: int, lengths: list[float]) -> float:
    """The share of an engine's places that are taken until the last batch comes, in first come, first served."""
    waiting = [(length, number // rows) for number, length in enumerate(lengths)][::-1]
    here, running, left = batches * rows, list[tuple[float, int]](), Counter[int]()
    now = area = 0.0
    while waiting:
        while waiting and here and len(running) < places:
            length, batch = waiting.pop()
            here -= 1
            heapq.heappush(running, (now + length, batch))
        ended, batch = heapq.heappop(running)
        area += (ended - now) * (len(running) + 1)
        now, left[batch] = ended, left[batch] + 1
        here += rows * (left[batch] == rows)
    return area / (now * places)


@pytest.mark.parametrize(
    ("places", "rows"), [*itertools.product([16, 64, 256], [4, 11, 32]), (128, 42), (256, 85), (300, 96)]
)
def test_hardly_a_place_is_empty_though_a_batch_waits_for_its_longest_caption(places: int, rows: int) -> None:
    recipe = parse(
        demo_recipe([Path("a")], Path("o")) | {"model": {"source": "embedded", "engine": {"max_num_seqs": places}}}
    )
    batches, chance = concurrency.batches_in_flight(recipe, rows), random.Random(1)
    lengths = [chance.expovariate(1) for _ in range(places * BATCHES)]
    assert taken(places, rows, batches, lengths) > 0.93


def test_a_large_pool_has_larger_batches_if_its_engines_have_the_places() -> None:
    def rows(places: int, most: int) -> int:
        document = demo_recipe([Path("a")], Path("o")) | {
            "model": {"source": "stub", "engine": {"max_num_seqs": places}},
            "replicas": {"max": most},
        }
        return batch_rows(parse(document), 200 * 200)

    assert [rows(places, 64) for places in (4, 64, 128, 256, 512)] == [32, 32, 42, 85, 96]
    assert rows(512, 8) == 32


def test_a_batch_with_many_prompts_a_row_has_another_one_beside_it() -> None:
    def held(places: int, prompts: int) -> int:
        document = demo_recipe([Path("a")], Path("o")) | {
            "model": {"source": "stub", "engine": {"max_num_seqs": places}}
        }
        return in_flight(parse(document), 8, prompts)

    assert [held(256, prompts) for prompts in (1, 40, 10**6)] == [87, 3, 2]
    assert held(1, 1) == held(1, 40) == 1
