"""The settings that `tune` measures, beside the recipe's own: each is a few fields of a recipe.

A setting counts as changing captions if it changes the recipe's fingerprint, because a resumed run refuses that. To
offer another setting, add it to `_on_gpu` or `_on_cpu`. The most promising ones come first: if time is short, the last
ones are left out.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from caprl_ray.caption.fingerprint import fingerprint
from caprl_ray.engines.concurrency import CPU_SEQUENCES
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe import vllm_names
from caprl_ray.recipe.load import merged, parse
from caprl_ray.recipe.sections import Recipe

# vLLM's own max_num_batched_tokens on a CPU.
CPU_BATCHED_TOKENS = 2048
DEFAULT = "the recipe"

Document = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A recipe to measure.

    Attributes:
        name: the fields that differ from the recipe; those of model.engine without their section.
        knobs: groups of settings that exclude each other.
        changes: the fields that differ, as a recipe file has them.
        recipe: the recipe with them.
        copies: the number of replicas that share the resources of one replica of the recipe.
        captions: the fields that may change captions.
        note: how it may change captions.
    """

    name: str
    knobs: frozenset[str]
    changes: Document
    recipe: Recipe
    copies: int = 1
    captions: tuple[str, ...] = ()
    note: str = ""


def default(recipe: Recipe) -> Setting:
    """The recipe as it is."""
    return Setting(name=DEFAULT, knobs=frozenset(), changes={}, recipe=recipe)


def offered(recipe: Recipe, model: ModelRef, arguments: Mapping[str, Any]) -> list[Setting]:
    """The settings for a recipe whose engine has these arguments on this machine, in the order of measurement.

    Arguments that this vLLM does not have, or that the recipe sets by type of GPU, are left out.
    """
    found = _on_gpu(recipe, model, arguments) if recipe.replicas.gpus else _on_cpu(model, arguments)
    return [_setting(recipe, model, *one) for one in found if _known(recipe, one[1])]


def combined(recipe: Recipe, first: Setting, second: Setting) -> Setting | None:
    """Both settings at once; None if they turn the same knob, or no recipe may have both."""
    if first.knobs & second.knobs:
        return None
    changes = merged(first.changes, second.changes)
    return Setting(
        name=f"{first.name} {second.name}",
        knobs=first.knobs | second.knobs,
        changes=changes,
        recipe=with_changes(recipe, changes),
        copies=max(first.copies, second.copies),
        captions=first.captions + second.captions,
    )


def with_changes(recipe: Recipe, changes: Document) -> Recipe:
    """The recipe with these changes, validated. Raises RecipeError."""
    return parse(merged(recipe.model_dump(exclude_unset=True), changes))


def _on_gpu(recipe: Recipe, model: ModelRef, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Document, str]]:
    tokens, places = int(arguments.get("max_num_batched_tokens", 8192)), int(arguments.get("max_num_seqs", 256))
    if recipe.replicas.gpus == 1:
        yield "replicas", _two_a_gpu(recipe), ""
    yield "tokens", _engine(max_num_batched_tokens=2 * tokens), ""
    if not recipe.model.engine.get("quantization"):
        yield "weights", _engine(quantization="fp8"), "weights of 8 bits, quantized while they are loaded"
    yield "tokens", _engine(max_num_batched_tokens=4 * tokens), ""
    yield "places", _engine(max_num_seqs=places // 2), ""
    yield "places", _engine(max_num_seqs=2 * places), ""
    yield "encoder", _engine(compilation_config={"compile_mm_encoder": True}), ""
    if recipe.model.engine.get("tensor_parallel_size", 1) > 1:
        yield "encoder's parallelism", _engine(mm_encoder_tp_mode="data"), ""
    if recipe.model.engine.get("kv_cache_dtype", "auto") == "auto":
        yield "keys and values", _engine(kv_cache_dtype="fp8"), "keys and values of 8 bits"
    yield from _fewer_pixels(model)
    yield "scheduling", _engine(async_scheduling=arguments.get("async_scheduling") is False), ""
    yield "graphs", _engine(max_cudagraph_capture_size=2 * places), ""
    yield "encoder", _engine(compilation_config={"cudagraph_mm_encoder": True}), ""
    if importlib.util.find_spec("flashinfer"):
        yield "attention", _engine(attention_backend="FLASHINFER"), "other kernels round in another way"
    yield "attention", _engine(attention_backend="TRITON_ATTN"), "other kernels round in another way"


def _on_cpu(model: ModelRef, arguments: Mapping[str, Any]) -> Iterator[tuple[str, Document, str]]:
    longest = int(arguments.get("max_model_len") or 0)  # prompts are computed whole (engines/vllm_engine.py)
    tokens = int(arguments.get("max_num_batched_tokens") or max(CPU_BATCHED_TOKENS, longest))
    places = int(arguments.get("max_num_seqs", CPU_SEQUENCES))
    yield "places", _engine(max_num_seqs=2 * places), ""
    yield "tokens", _engine(max_num_batched_tokens=2 * tokens), ""
    yield from _fewer_pixels(model)
    yield "places", _engine(max_num_seqs=max(1, places // 2)), ""
    yield "tokens", _engine(max_num_batched_tokens=4 * tokens), ""
    if arguments.get("dtype") != "bfloat16":
        yield "precision", _engine(dtype="bfloat16"), "weights and activations of 16 bits"


def _engine(**arguments: Any) -> Document:
    return {"model": {"engine": arguments}}


def _two_a_gpu(recipe: Recipe) -> Document:
    """Two replicas per GPU: twice as many replicas in the whole run, each with half of the memory."""
    replicas = {"gpus": 0.5, "min": 2 * recipe.replicas.min, "max": 2 * recipe.replicas.most}
    utilization = recipe.model.engine.get("gpu_memory_utilization")
    return {"replicas": replicas} | (_engine(gpu_memory_utilization=utilization / 2) if utilization else {})


def _fewer_pixels(model: ModelRef) -> Iterator[tuple[str, Document, str]]:
    rule = model.size_rule
    if rule.max_pixels // 2 >= rule.min_pixels:
        yield "pixels", {"prepare": {"max_pixels": rule.max_pixels // 2}}, "large images lose detail"


def _setting(recipe: Recipe, model: ModelRef, knob: str, changes: Document, note: str) -> Setting:
    changed = with_changes(recipe, changes)
    before, after = fingerprint(recipe, model), fingerprint(changed, model)
    return Setting(
        name=" ".join(_named(changes)),
        knobs=frozenset([knob]),
        changes=changes,
        recipe=changed,
        copies=2 if knob == "replicas" else 1,
        captions=tuple(sorted(name for name in before | after if before.get(name) != after.get(name))),
        note=note,
    )


def _known(recipe: Recipe, changes: Document) -> bool:
    """Whether this vLLM has the arguments, and the recipe does not set them by type of GPU."""
    names = changes.get("model", {}).get("engine", {}).keys()
    known = vllm_names.engine_arguments()
    by_type = {name for more in recipe.model.engine_by_accelerator.values() for name in more}
    return not names & by_type and (not known or names <= known)


def _named(changes: Document, place: str = "") -> Iterator[str]:
    """The differing fields; of `replicas` only `gpus`, which determines the rest."""
    for name, value in changes.items():
        if isinstance(value, dict):
            yield from _named(value, f"{place}{name}.".removeprefix("model.engine."))
        elif place != "replicas." or name == "gpus":
            yield f"{place}{name}={str(value).lower() if isinstance(value, bool) else value}"
