"""The recipe decides vLLM's arguments: for a CPU, a share of a GPU, several GPUs. Its own arguments win."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caprl_ray.engines import concurrency, gpu
from caprl_ray.engines.vllm_engine import DEFAULT_CONTEXT, engine_arguments
from caprl_ray.models.resolve import resolve
from caprl_ray.recipe.engine_arguments import CHANGES_CAPTIONS
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.prepare import Prepare
from caprl_ray.recipe.sampling import Sampling


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


def test_on_a_cpu_prompts_are_computed_whole_unless_the_recipe_has_small_steps() -> None:
    """In parts, a request with a seed would end the core."""
    assert arguments(0)["enable_chunked_prefill"] is False and "enable_chunked_prefill" not in arguments(1)
    assert arguments(0, max_num_batched_tokens=4096)["enable_chunked_prefill"] is False
    assert "enable_chunked_prefill" not in arguments(0, max_num_batched_tokens=512), "vLLM would refuse it"
    assert arguments(0, enable_chunked_prefill=True)["enable_chunked_prefill"] is True


# GPUs by what NVML says of their memory, in MiB: L4 and A10G, RTX 4090, A100, L40S, A100 and H100, H200, B200.
GPUS = [23_034, 24_564, 40_960, 46_068, 81_559, 143_771, 183_359]
WEIGHTS = 2 * 3_750_000_000
KEYS_AND_VALUES = 2 * (36 * 2 * 128) * 2  # of one token: both, of every layer and head, in bfloat16


def on(memory: float, share: float = 1) -> dict[str, Any]:
    return gpu.gpu_defaults(int(memory), share)


@pytest.mark.parametrize("mebibytes", GPUS)
@pytest.mark.parametrize("share", [1, 2])
def test_the_longest_sequences_fit_beside_the_weights(mebibytes: int, share: float) -> None:
    memory, given = mebibytes * 2**20, on(mebibytes * 2**20, share)
    longest = Prepare().max_pixels // 28**2 + 100 + Sampling().max_tokens
    left = given["gpu_memory_utilization"] * memory * share - WEIGHTS
    left -= given["max_num_seqs"] * longest * KEYS_AND_VALUES
    assert left > 2_000_000_000  # what it computes with
    assert (1 - given["gpu_memory_utilization"]) * memory > 2_000_000_000  # what it does not know of
    assert given["max_num_seqs"] >= 64


def test_a_prompt_of_the_default_recipe_fits_the_default_context_on_every_gpu() -> None:
    assert Prepare().max_pixels // 28**2 + Sampling().max_tokens < gpu.SEQUENCE_TOKENS < DEFAULT_CONTEXT
    assert not CHANGES_CAPTIONS.keys() & on(24e9).keys()  # which captions come must not depend on the node


@given(
    st.floats(1e9, 400e9),
    st.floats(1e9, 400e9),
    st.sampled_from([0.1, 0.25, 0.5, 1, 2, 8]),
    st.sampled_from([0.5, 1, 2]),
)
def test_more_memory_never_gets_less_and_replicas_that_share_a_gpu_fit_it(
    one: float, other: float, share: float, more: float
) -> None:
    less, greater = on(min(one, other), share), on(max(one, other), share)
    assert all(less[name] <= greater[name] for name in less)
    assert less["max_num_seqs"] <= on(min(one, other), share * max(1, more))["max_num_seqs"]
    assert less["gpu_memory_utilization"] * max(1, round(1 / share)) <= 0.951
    assert 1 <= greater["max_num_seqs"] <= greater["max_num_batched_tokens"]


def test_a_share_of_a_large_gpu_is_a_smaller_one() -> None:
    assert abs(on(96e9, 0.5)["max_num_seqs"] - on(48e9)["max_num_seqs"]) <= gpu.SEQUENCES_STEP
    assert on(96e9, 0.5)["max_num_batched_tokens"] == on(48e9)["max_num_batched_tokens"]


def test_the_gpu_of_the_node_decides_and_the_recipe_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments(1)["max_num_seqs"] == on(gpu.SMALL_BYTES)["max_num_seqs"]  # no GPU is here to be asked
    monkeypatch.setattr(gpu, "memory_bytes", lambda: 80_000_000_000)
    assert on(80e9).items() <= arguments(1).items()
    own = {"max_num_seqs": 7, "gpu_memory_utilization": 0.3, "max_num_batched_tokens": 5000}
    assert own.items() <= arguments(1, **own).items()
    assert not {"gpu_memory_utilization", "max_num_batched_tokens"} & arguments(0).keys()


@pytest.mark.parametrize("gpus", [0, 0.5, 1])
@pytest.mark.parametrize("engine", [{}, {"max_num_seqs": 5}])
def test_the_driver_keeps_at_least_as_many_rows_in_flight_as_any_engine_runs(
    monkeypatch: pytest.MonkeyPatch, gpus: float, engine: dict[str, Any]
) -> None:
    document = {"input": {"paths": "a"}, "output": {"path": "o"}, "model": {"source": "embedded", "engine": engine}}
    in_flight = 11 * concurrency.batches_in_flight(parse(document | {"replicas": {"gpus": gpus}}), 11)
    for mebibytes in GPUS:
        monkeypatch.setattr(gpu, "memory_bytes", lambda size=mebibytes * 2**20: size)
        assert in_flight >= 2 * arguments(gpus, **engine)["max_num_seqs"]


def test_pickles_are_no_weights_for_the_engine_either() -> None:
    assert arguments(0)["load_format"] == arguments(1)["load_format"] == "safetensors"
    assert arguments(1, load_format="dummy")["load_format"] == "dummy"
