"""The fields of a captioning recipe that must not change between the runs of one dataset."""

from dataclasses import asdict
from typing import Any

from caprl_ray.caption.rules import Rules
from caprl_ray.models.resolve import ModelRef
from caprl_ray.output.fingerprint import installed
from caprl_ray.recipe.engine_arguments import CHANGES_CAPTIONS, changing_captions
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
    fields |= _engine_fields("model.engine", recipe.model.engine)
    for accelerator, arguments in recipe.model.engine_by_accelerator.items():
        fields |= _engine_fields(f"model.engine_by_accelerator.{accelerator}", arguments)
    if recipe.model.endpoint:
        # The size rule comes from the model's files on the hub. Without these fields a hub that cannot be reached for
        # a moment would change the size of the images, unseen.
        fields |= {f"model.size_rule.{key}": value for key, value in asdict(model.size_rule).items()}
    if recipe.quality.language:
        fields["version.py3langid"] = installed("py3langid")
    for package in ("pillow",) if recipe.model.endpoint else ("vllm", "pillow"):
        fields[f"version.{package}"] = installed(package)
    return fields


def outdated(field: str) -> bool:
    """Whether a field that an older version stored counts no more: an engine argument that changes no caption."""
    section, _, name = field.rpartition(".")
    return section.startswith("model.engine") and name not in CHANGES_CAPTIONS


def _engine_fields(section: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for name, value in changing_captions(arguments).items()}
