"""Which model captions: where its files are, how large it sees images, and how its name stands in the output."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.recipe import Recipe
from caprl_ray.sizes import SizeRule, size_rule

EMBEDDED = "embedded"
STUB = "stub"
ALLOW_STUB = "CAPRL_RAY_ALLOW_STUB"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded" / "model"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """A model found and looked at: `path` is a folder or a hub id, `label` what rows say in their column `model`."""

    path: str
    revision: str | None
    label: str
    config: dict[str, Any]
    size_rule: SizeRule

    @property
    def context(self) -> int | None:
        """The longest sequence that the model was made for, in tokens, where its configuration says."""
        text = self.config.get("text_config", self.config)
        length = text.get("max_position_embeddings")
        return length if isinstance(length, int) else None


def resolve(recipe: Recipe) -> ModelRef:
    """Find the recipe's model and read its configuration.

    Raises RecipeError where the model is missing or sees no images, SystemFailure where the hub does not answer.
    """
    source, revision = recipe.model.source, recipe.model.revision
    if source == STUB:
        return _stub(recipe)
    if source == EMBEDDED:
        path, revision, label = str(EMBEDDED_FOLDER), None, EMBEDDED
    elif HUB_ID.fullmatch(source) and not os.path.exists(source):
        path, label = source, f"{source}@{revision or 'main'}"
    else:
        path, revision, label = os.path.abspath(os.path.expanduser(source)), None, source
        if not os.path.isdir(path):
            raise RecipeError(f"model.source: {source} is neither a folder nor a hub id such as internlm/CapRL-3B.")
    config = _configuration(path, revision, "config.json")
    if config is None:
        raise RecipeError(f"model.source: {source} has no config.json, so it is not a model folder.")
    processor = _processor(path, revision)
    if processor is None or "vision_config" not in config:
        raise RecipeError(f"model.source: {source} is not a vision-language model (no vision configuration was found).")
    if os.path.isdir(path) and not any(Path(path).glob("*.safetensors")):
        raise RecipeError(f"model.source: {source} holds no weights (no *.safetensors file).")
    return ModelRef(path=path, revision=revision, label=label, config=config, size_rule=_size_rule(recipe, processor))


def _size_rule(recipe: Recipe, processor: dict[str, Any]) -> SizeRule:
    return size_rule(processor, min_pixels=recipe.prepare.min_pixels, max_pixels=recipe.prepare.max_pixels)


def _processor(path: str, revision: str | None) -> dict[str, Any] | None:
    """The image processor's configuration: a file of its own, or a part of the newer processor_config.json."""
    processor = _configuration(path, revision, "preprocessor_config.json")
    if processor is None:
        processor = (_configuration(path, revision, "processor_config.json") or {}).get("image_processor")
    return processor


def _configuration(path: str, revision: str | None, name: str) -> dict[str, Any] | None:
    """One of a model's JSON files; None where the model has no such file."""
    if os.path.isdir(path):
        file = Path(path) / name
        if not file.exists():
            return None
    else:
        found = _from_hub(path, revision, name)
        if found is None:
            return None
        file = Path(found)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"model.source: {file} cannot be read as JSON ({type(error).__name__}).") from None
    return content if isinstance(content, dict) else None


def _from_hub(repository: str, revision: str | None, name: str) -> str | None:
    from transformers.utils import cached_file

    try:
        found: str | None = cached_file(
            repository, name, revision=revision or "main", _raise_exceptions_for_missing_entries=False
        )
    except OSError:
        raise SystemFailure(
            f"model.source: {repository} is no local folder and the hub did not give {name} at revision "
            f"{revision or 'main'}; check the name and the network, or give the path of a downloaded copy."
        ) from None
    return found


def _stub(recipe: Recipe) -> ModelRef:
    if os.environ.get(ALLOW_STUB) != "1":
        raise RecipeError(f"model.source: stub writes no real captions; it is for tests, which set {ALLOW_STUB}=1.")
    rule = _size_rule(recipe, {"image_processor_type": "Qwen2VLImageProcessor"})
    return ModelRef(path=STUB, revision=None, label=STUB, config={}, size_rule=rule)
