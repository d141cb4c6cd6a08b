"""Find the model: its files, the size at which it sees images, and its name in the output."""

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from caprl_ray.errors import CaprlError, RecipeError
from caprl_ray.models import hub, local, weights
from caprl_ray.models.weights import StoredModel
from caprl_ray.prepare.sizes import SizeRule, size_rule
from caprl_ray.prepare.tiles import OWN_CODE, tile_rule
from caprl_ray.recipe.model import PACKAGED, Model
from caprl_ray.recipe.sections import Recipe
from caprl_ray.storage import Storage

EMBEDDED, EMBEDDED_ANSWERER, EMBEDDED_VIEWER, EMBEDDED_QUESTIONER = PACKAGED
STUB = "stub"
ALLOW_STUB = "CAPRL_RAY_ALLOW_STUB"
SCENES_ONLY = {
    EMBEDDED: "describes only its own rendered scenes, as those of caprl-ray demo; for photographs give another model, "
    "such as internlm/CapRL-3B",
    EMBEDDED_ANSWERER: "answers only questions about rendered scenes, as those of caprl-ray demo; for photographs give "
    "another model, such as internlm/CapRL-Eval-3B",
    EMBEDDED_VIEWER: "is no model: it reads rendered scenes off their pixels by rules; for photographs give a model, "
    "such as Qwen/Qwen2.5-VL-3B-Instruct",
    EMBEDDED_QUESTIONER: "is no model: it reads rendered scenes off their pixels by rules, and asks about nothing "
    "else; for photographs give a model, such as Qwen/Qwen2.5-VL-72B-Instruct",
}
EMBEDDED_FOLDER = Path(__file__).parent.parent / "embedded" / "model"
FOLDERS = {EMBEDDED: EMBEDDED_FOLDER, EMBEDDED_ANSWERER: EMBEDDED_FOLDER.with_name("answerer")}
# Names of the rules that replace a model for scenes, and their labels in rows.
RULES = {EMBEDDED_VIEWER: f"{EMBEDDED_VIEWER} (rules)", EMBEDDED_QUESTIONER: f"{EMBEDDED_QUESTIONER} (rules)"}
WITHOUT_ENGINE = (STUB, *RULES)
API_KEY_ENV = "OPENAI_API_KEY"  # unless the recipe names another
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PICKLED_FORMATS = ("auto", "hf", "npcache", "pt")  # formats of vLLM that load, or fall back to, *.bin and *.pt


def only_scenes(recipe: Recipe) -> list[str]:
    """The warning about a model that knows only rendered scenes."""
    source = recipe.model.source
    known = source in SCENES_ONLY and not recipe.model.endpoint
    return [f"model.source: {source} {SCENES_ONLY[source]}"] if known else []


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """A model that was found and checked. `path` is a folder or a hub id, `label` the value of the column `model`.

    `revision` is the commit of a hub id. A model in a bucket is `stored`; its path is a folder once a node has it. At
    an endpoint, `path` is the service's name for the model, and `control_tokens` are those of its tokenizer, empty if
    they are not known here.
    """

    path: str
    revision: str | None
    label: str
    config: dict[str, Any]
    size_rule: SizeRule
    control_tokens: tuple[str, ...] = ()
    stored: StoredModel | None = None

    @property
    def context(self) -> int | None:
        """The longest sequence that the model supports, in tokens, if its configuration says."""
        text = self.config.get("text_config", self.config)
        length = text.get("max_position_embeddings")
        return length if isinstance(length, int) else None


def resolve(recipe: Recipe) -> ModelRef:
    """Find the recipe's model and read its configuration.

    Raises RecipeError if the model is missing, damaged or sees no images, SystemFailure if the hub or the storage does
    not answer.
    """
    source = recipe.model.source
    if recipe.model.endpoint:
        return _served(recipe)
    if source in WITHOUT_ENGINE:
        return _stub(recipe) if source == STUB else _rules(recipe)
    stored, revision = None, None
    if source in FOLDERS:
        path, label = str(FOLDERS[source]), source
    elif source.startswith("s3://"):
        stored = weights.list_model(source, Storage(recipe.storage))
        path, label = stored.source, stored.label
    elif HUB_ID.fullmatch(source) and not os.path.exists(source):
        path, revision = source, _commit(source, recipe.model.revision or hub.MAIN)
        label = f"{source}@{revision}"
    else:
        path, label = os.path.abspath(os.path.expanduser(source)), source
        if not os.path.isdir(path):
            raise RecipeError(f"model.source: {source} is no folder, s3:// prefix or hub id such as internlm/CapRL-3B.")
    config = _configuration(stored or path, revision, "config.json")
    if config is None:
        raise RecipeError(f"model.source: {source} has no config.json, so it is not a model folder.")
    if config.get("model_type") == OWN_CODE:
        raise RecipeError(
            f"model.source: {source} is an InternVL with code of its own, which is not run here; give its version in "
            "the layout of transformers, such as OpenGVLab/InternVL3_5-8B-HF, or serve it and give model.endpoint."
        )
    processor = _processor(stored or path, revision)
    if recipe.text_only:
        _refuse_no_language_model(source, config)
        processor = processor or {}
    elif processor is None or "vision_config" not in config:
        raise RecipeError(f"model.source: {source} is not a vision-language model (no vision configuration was found).")
    _check_weights(recipe, stored or path)
    if label == source and source not in FOLDERS:  # a folder
        label = f"{source}@{local.digest(Path(path))[:12]}"
    rule = _size_rule(recipe, processor, config)
    return ModelRef(path=path, revision=revision, label=label, config=config, size_rule=rule, stored=stored)


def _refuse_no_language_model(source: str, config: dict[str, Any]) -> None:
    """Raise RecipeError for a model that cannot write, such as a vision tower alone."""
    names = [str(name) for name in config.get("architectures") or ()]
    if not any(name.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")) for name in names):
        said = names[0] if names else "config.json names no architecture"
        raise RecipeError(f"model.source: {source} is not a language model ({said}), so it cannot answer questions.")


def _commit(source: str, revision: str) -> str:
    """The commit that every replica loads. If the recipe does not pin it, a line on stderr names it."""
    if hub.COMMIT.fullmatch(revision):
        return revision
    commit = hub.commit_of(source, revision)
    sys.stderr.write(
        f"caprl-ray: model.revision: {revision} of {source} is not pinned; this run uses its commit {commit}. Give "
        f"model.revision={commit} to keep using it.\n"
    )
    return commit


def _check_weights(recipe: Recipe, place: str | StoredModel) -> None:
    """Raise RecipeError for weights that are missing, truncated or pickled, as far as the driver can see them."""
    source, load_format = recipe.model.source, recipe.model.engine.get("load_format")
    if load_format in PICKLED_FORMATS:
        raise RecipeError(
            f"model.engine.load_format: {load_format} may load pickled weights, which can run code; leave it out."
        )
    fault = None
    if isinstance(place, StoredModel):
        index = place.read(weights.INDEX)
        fault = weights.missing_shard(index, place.files) if index is not None else None
    elif os.path.isdir(place):
        fault = weights.fault_of(Path(place))
    if fault:
        raise RecipeError(f"model.source: {source} {fault}.")


def service_key(model: Model) -> str | None:
    """The endpoint's key, from this process's environment; None for a service without keys.

    A key that the recipe does not name is not sent through a network in the clear.

    Raises RecipeError if the variable that the recipe names has no key. The message never holds the variable's value.
    """
    name = model.api_key_env or API_KEY_ENV
    if not model.api_key_env and not _is_private(model.endpoint or ""):
        return None
    key = os.environ.get(name, "").strip()
    if model.api_key_env and not key:
        raise RecipeError(
            f"model.api_key_env: the environment variable {name} is not set here; it must be set where the command "
            "runs and, on a cluster, for every worker."
        )
    if not re.fullmatch("[!-~]*", key):
        raise RecipeError(f"model.api_key_env: the value of the environment variable {name} cannot be a key.")
    return key or None


def _is_private(endpoint: str) -> bool:
    """Whether others cannot read what is sent there: by https, or within this machine."""
    url = urlsplit(endpoint)
    return url.scheme == "https" or url.hostname in {"localhost", "127.0.0.1", "::1"}


def _served(recipe: Recipe) -> ModelRef:
    """A model at an endpoint. Its rows do not say where it is: the service may move while the dataset grows."""
    service_key(recipe.model)
    source, revision = recipe.model.source, recipe.model.revision
    folder = str(FOLDERS.get(source) or os.path.abspath(os.path.expanduser(source)))
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
        size_rule=_size_rule(recipe, processor, config),
        control_tokens=control_tokens,
    )


def _served_files(path: str, revision: str | None) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """A model's configuration, image processor and control tokens; empty if there are no files.

    A service may use a name that is on no hub. Then images are only reduced to prepare.max_pixels.
    """
    try:
        config, processor = _configuration(path, revision, "config.json"), _processor(path, revision)
        tokenizer = _configuration(path, revision, "tokenizer.json") or {}
    except CaprlError:
        return {}, {}, ()
    return config or {}, processor or {}, tuple(token["content"] for token in tokenizer.get("added_tokens", ()))


def _size_rule(recipe: Recipe, processor: dict[str, Any], config: dict[str, Any]) -> SizeRule:
    low, high = recipe.prepare.min_pixels, recipe.prepare.max_pixels
    tiles = tile_rule(config, processor, min_pixels=low, max_pixels=high)
    return tiles or size_rule(processor, min_pixels=low, max_pixels=high)


def _processor(place: str | StoredModel, revision: str | None) -> dict[str, Any] | None:
    """The image processor's configuration: its own file, or a part of the newer processor_config.json."""
    processor = _configuration(place, revision, "preprocessor_config.json")
    if processor is None:
        processor = (_configuration(place, revision, "processor_config.json") or {}).get("image_processor")
    return processor


def _configuration(place: str | StoredModel, revision: str | None, name: str) -> dict[str, Any] | None:
    """One of a model's JSON files; None if the model has no such file."""
    try:
        text = _content(place, revision, name)
        content = None if text is None else json.loads(text)
    except (OSError, ValueError) as error:
        where = place.source if isinstance(place, StoredModel) else place
        raise RecipeError(f"model.source: {where}/{name} cannot be read as JSON ({type(error).__name__}).") from None
    return content if isinstance(content, dict) else None


def _content(place: str | StoredModel, revision: str | None, name: str) -> bytes | None:
    if isinstance(place, StoredModel):
        return place.read(name)
    if os.path.isdir(place):
        file = Path(place) / name
        return file.read_bytes() if file.exists() else None
    found = hub.file(place, revision or hub.MAIN, name)
    return None if found is None else Path(found).read_bytes()


def _stub(recipe: Recipe) -> ModelRef:
    if os.environ.get(ALLOW_STUB) != "1":
        raise RecipeError(f"model.source: stub writes no real captions; it is for tests, which set {ALLOW_STUB}=1.")
    rule = _size_rule(recipe, {"image_processor_type": "Qwen2VLImageProcessor"}, {})
    return ModelRef(path=STUB, revision=None, label=STUB, config={}, size_rule=rule)


def _rules(recipe: Recipe) -> ModelRef:
    """Rules for scenes in place of a model. They see images at the size of the embedded captioner."""
    source = recipe.model.source
    if recipe.text_only:
        raise RecipeError(f"model.source: {source} is for curating, and answers nothing from captions.")
    rule = _size_rule(recipe, _processor(str(EMBEDDED_FOLDER), None) or {}, {})
    return ModelRef(path=source, revision=None, label=RULES[source], config={}, size_rule=rule)
