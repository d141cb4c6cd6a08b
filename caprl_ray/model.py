"""Which model captions: where its files are, how large it sees images, and how its name stands in the output."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.recipe import Model, Recipe
from caprl_ray.sizes import SizeRule, size_rule

EMBEDDED = "embedded"
STUB = "stub"
ALLOW_STUB = "CAPRL_RAY_ALLOW_STUB"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded" / "model"
API_KEY_ENV = "OPENAI_API_KEY"  # unless the recipe names another
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """A model found and looked at: `path` is a folder or a hub id, `label` what rows say in their column `model`.

    At an endpoint `path` is the name by which the service knows the model, and `control_tokens` are those of its
    tokenizer, empty where nobody here knows them.
    """

    path: str
    revision: str | None
    label: str
    config: dict[str, Any]
    size_rule: SizeRule
    control_tokens: tuple[str, ...] = ()

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
    if recipe.model.endpoint:
        return _served(recipe)
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


def service_key(model: Model) -> str | None:
    """The endpoint's key, out of this process's environment; None for a service without keys.

    Raises RecipeError, which never says what the variable holds, where the recipe names one that has no key.
    """
    name = model.api_key_env or API_KEY_ENV
    key = os.environ.get(name, "").strip()
    if model.api_key_env and not key:
        raise RecipeError(
            f"model.api_key_env: the environment variable {name} is not set here; it must be set where the command "
            "runs and, on a cluster, for every worker."
        )
    if not re.fullmatch("[!-~]*", key):
        raise RecipeError(f"model.api_key_env: what the environment variable {name} holds cannot be a key.")
    return key or None


def _served(recipe: Recipe) -> ModelRef:
    """A model at an endpoint. Its rows say that, but not where: the service may move while the dataset grows."""
    service_key(recipe.model)
    source, revision = recipe.model.source, recipe.model.revision
    folder = str(EMBEDDED_FOLDER) if source == EMBEDDED else os.path.abspath(os.path.expanduser(source))
    if os.path.isdir(folder):
        files = _served_files(folder, None)
    else:
        files = _served_files(source, revision) if HUB_ID.fullmatch(source) else ({}, {}, ())
    config, processor, control_tokens = files
    name = recipe.model.served_name or source
    return ModelRef(
        path=name,
        revision=None,
        label=f"endpoint:{name}",
        config=config,
        size_rule=_size_rule(recipe, processor),
        control_tokens=control_tokens,
    )


def _served_files(path: str, revision: str | None) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """What a model's files say of it: configuration, image processor, control tokens; nothing where there are none.

    A service may know its model by a name that is on no hub: then images are only capped at prepare.max_pixels.
    """
    try:
        config, processor = _configuration(path, revision, "config.json"), _processor(path, revision)
        tokenizer = _configuration(path, revision, "tokenizer.json") or {}
    except SystemFailure:
        return {}, {}, ()
    return config or {}, processor or {}, tuple(token["content"] for token in tokenizer.get("added_tokens", ()))


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
