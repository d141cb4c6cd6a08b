"""The offered settings: each is a recipe, and those that may change captions are marked."""

from typing import Any

import pytest

from caprl_ray.caption.fingerprint import fingerprint
from caprl_ray.models.resolve import resolve
from caprl_ray.recipe import vllm_names
from caprl_ray.recipe.load import apply_override, parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.tune.outcome import overrides
from caprl_ray.tune.settings import Setting, combined, offered, with_changes

ON_GPU = {"max_num_batched_tokens": 8192, "max_num_seqs": 512}


def recipe(**sections: Any) -> Recipe:
    return parse({"input": {"paths": ["x"]}, "output": {"path": "y"}, "model": {"source": "stub"}} | sections)


def found(asked: Recipe, arguments: dict[str, Any] = ON_GPU) -> dict[str, Setting]:
    return {one.name: one for one in offered(asked, resolve(asked), arguments)}


def test_exactly_the_settings_that_change_the_fingerprint_may_change_captions() -> None:
    asked = recipe(replicas={"gpus": 1})
    model, settings = resolve(asked), found(asked)
    may = {name: setting.captions for name, setting in settings.items() if setting.captions}
    assert may == {
        "quantization=fp8": ("model.engine.quantization",),
        "kv_cache_dtype=fp8": ("model.engine.kv_cache_dtype",),
        "prepare.max_pixels=501760": ("prepare.max_pixels",),
        "attention_backend=TRITON_ATTN": ("model.engine.attention_backend",),
    }
    for setting in settings.values():
        assert (fingerprint(setting.recipe, model) == fingerprint(asked, model)) is not bool(setting.captions)
        assert setting.recipe == with_changes(asked, setting.changes) != asked
        assert bool(setting.note) is bool(setting.captions)
        told: dict[str, Any] = {}
        for word in overrides(setting.changes):
            apply_override(told, word)
        assert told == setting.changes, "tuned.yaml names it in words that follow a recipe"
    assert list(overrides(settings["kv_cache_dtype=fp8"].changes)) == ["model.engine.kv_cache_dtype=fp8"]
    assert list(overrides({"model": {"engine": {"dtype": "on", "x": {}}}})) == [
        'model.engine.dtype="on"',
        "model.engine.x={}",
    ]
    assert {"max_num_batched_tokens=16384", "max_num_seqs=256", "async_scheduling=false"} < settings.keys()


def test_two_replicas_a_gpu_are_twice_as_many_in_a_run_with_half_of_the_memory_each() -> None:
    asked = recipe(replicas={"max": 3, "min": 2}, model={"source": "stub", "engine": {"gpu_memory_utilization": 0.9}})
    both = found(asked)["replicas.gpus=0.5 gpu_memory_utilization=0.45"]
    assert both.recipe.replicas.min == 4 and both.recipe.replicas.most == 6 and both.copies == 2
    assert found(recipe(replicas={"gpus": 1}))["replicas.gpus=0.5"].recipe.replicas.most == 16
    shared = recipe(replicas={"gpus": 0.5})
    assert not any(one.copies > 1 for one in found(shared).values()), "it has others beside it already"


def test_nothing_is_offered_that_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"H200": {"max_num_seqs": 384}}
    by_type = found(recipe(replicas={"gpus": 1}, model={"source": "stub", "engine_by_accelerator": own}))
    assert not any("max_num_seqs" in name for name in by_type), "the recipe's own value for the type would stay"
    monkeypatch.setattr(vllm_names, "engine_arguments", lambda: frozenset({"max_num_seqs", "max_num_batched_tokens"}))
    names = {name.partition("=")[0] for name in found(recipe(replicas={"gpus": 1}))}
    assert names == {"max_num_seqs", "max_num_batched_tokens", "replicas.gpus", "prepare.max_pixels"}
    eight = recipe(replicas={"gpus": 1}, model={"source": "stub", "engine": {"max_num_seqs": 8}})
    assert "max_num_seqs=16" in found(eight, {"max_num_seqs": 8})


def test_settings_of_different_knobs_are_joined() -> None:
    asked = recipe(replicas={"gpus": 1})
    settings = found(asked)
    two, tokens, places = (
        settings[name] for name in ("replicas.gpus=0.5", "max_num_batched_tokens=16384", "max_num_seqs=256")
    )
    joined = combined(asked, combined(asked, two, tokens) or two, places)
    assert joined and joined.copies == 2 and joined.recipe.replicas.gpus == 0.5
    assert joined.recipe.model.engine == {"max_num_batched_tokens": 16384, "max_num_seqs": 256}
    assert combined(asked, joined, settings["max_num_batched_tokens=32768"]) is None
