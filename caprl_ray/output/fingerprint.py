"""The fingerprint: what must not change between runs of one dataset."""

from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.sections import Recipe

# Engine arguments that change how fast captions come and not what they say: runs of one dataset may differ in them.
FREE_ENGINE_ARGUMENTS = frozenset(
    {
        "disable_log_stats",
        "distributed_executor_backend",
        "download_dir",
        "enforce_eager",
        "gpu_memory_utilization",
        "max_num_batched_tokens",
        "max_num_seqs",
        "pipeline_parallel_size",
        "tensor_parallel_size",
    }
)


def fingerprint(recipe: Recipe, model: ModelRef) -> dict[str, Any]:
    """What must not change between runs of one dataset (P7), as field -> value."""
    fields: dict[str, Any] = {"model.source": model.label}
    # Null where they are left out, as in outputs that are older than these fields.
    fields |= {"input.image_column": recipe.input.image_column, "input.rename": recipe.input.rename or None}
    for name in ("prepare", "prompt", "sampling"):
        fields |= {f"{name}.{key}": value for key, value in getattr(recipe, name).model_dump().items()}
    del fields["prepare.timeout_s"]  # depends on the machine, and changes no pixel
    for key, value in sorted(recipe.model.engine.items()):
        if key not in FREE_ENGINE_ARGUMENTS:
            fields[f"model.engine.{key}"] = value
    for accelerator, arguments in sorted(recipe.model.engine_by_accelerator.items()):
        for key, value in sorted(arguments.items()):
            if key not in FREE_ENGINE_ARGUMENTS:
                fields[f"model.engine_by_accelerator.{accelerator}.{key}"] = value
    if recipe.model.endpoint:
        # Without these a hub that cannot be reached for once would change, unseen, at which size images are sent.
        fields |= {f"model.size_rule.{key}": value for key, value in asdict(model.size_rule).items()}
    for package in ("caprl_ray", "pillow") if recipe.model.endpoint else ("caprl_ray", "vllm", "pillow"):
        fields[f"version.{package}"] = _installed(package)
    return fields


def _installed(package: str) -> str | None:
    for name in (package, f"{package}-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
