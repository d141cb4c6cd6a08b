"""What vLLM is started with follows from the recipe: a CPU, a share of a GPU, several GPUs; the recipe wins."""

from typing import Any

import pytest

from caprl_ray.engines.vllm_engine import engine_arguments
from caprl_ray.model import resolve
from caprl_ray.recipe import parse


def arguments(gpus: float, **engine: Any) -> dict[str, Any]:
    model = {"source": "embedded", "engine": engine}
    recipe = parse({"input": {"paths": "a"}, "output": {"path": "o"}, "model": model, "replicas": {"gpus": gpus}})
    return engine_arguments(recipe, resolve(recipe))


def test_the_engines_processor_gets_the_limits_that_prepare_has() -> None:
    assert arguments(0)["mm_processor_kwargs"] == {"min_pixels": 6500, "max_pixels": 9500}


@pytest.mark.parametrize(("gpus", "share"), [(0.5, 0.45), (0.25, 0.225)])
def test_replicas_that_share_a_gpu_share_its_memory(gpus: float, share: float) -> None:
    assert arguments(gpus)["gpu_memory_utilization"] == share


def test_a_replica_of_several_gpus_keeps_to_its_own() -> None:
    given = arguments(2, tensor_parallel_size=2)
    assert (given["tensor_parallel_size"], given["distributed_executor_backend"]) == (2, "mp")


def test_the_context_fits_the_model_and_the_recipe_wins() -> None:
    assert arguments(1)["max_model_len"] == 4096
    assert arguments(1, max_model_len=512)["max_model_len"] == 512
    assert arguments(0, dtype="bfloat16")["dtype"] == "bfloat16"
