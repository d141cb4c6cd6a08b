"""The fields of a captioning recipe that must not change between the runs of one dataset."""

from dataclasses import asdict
from typing import Any

from caprl_ray.caption.rules import Rules
from caprl_ray.models.resolve import ModelRef
from caprl_ray.output.fingerprint import engine_fields, installed
from caprl_ray.recipe.sections import Recipe


def fingerprint(recipe: Recipe, model: ModelRef) -> dict[str, Any]:
    """Everything that changes captions, as field -> value."""
    fields: dict[str, Any] = {"model.source": model.label}
    for name in ("prepare", "prompt", "sampling"):
        fields |= {f"{name}.{key}": value for key, value in getattr(recipe, name).model_dump().items()}
    if recipe.prompts:
        del fields["prompt.user"]
        fields |= {f"prompts.{name}": text for name, text in recipe.prompts.items()}
        fields["prompts.order"] = list(recipe.prompts)
    del fields["prepare.timeout_s"]  # depends on the machine, changes no pixel
    quality = recipe.quality.model_dump(exclude={"limits", "window", "self_check"})  # these change no caption
    fields |= {f"quality.{key}": value for key, value in quality.items()}
    fields["quality.versions"] = Rules(recipe.quality, recipe.sampling).versions()
    fields |= engine_fields(recipe.model)
    if recipe.model.endpoint:
        # The size rule comes from the model's files on the hub. Without these fields, an unreachable hub would change
        # the size of the images without notice.
        fields |= {f"model.size_rule.{key}": value for key, value in asdict(model.size_rule).items()}
    if recipe.quality.language:
        fields["version.py3langid"] = installed("py3langid")
    for package in ("pillow",) if recipe.model.endpoint else ("vllm", "pillow"):
        fields[f"version.{package}"] = installed(package)
    return fields
