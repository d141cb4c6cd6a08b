"""Engine arguments: those that change captions, those that may be shown, and those that are refused as secrets.

A recipe is written to run.json, compared with the fingerprint of earlier runs and printed by preflight. vLLM has
arguments that hold credentials, and others that take any mapping. So the fingerprint has only the arguments in
CHANGES_CAPTIONS, and a value is written or printed only if it is known to hold no secret.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Arguments that change captions, each with the reason. All runs of one dataset must agree in these arguments; all other
# arguments may differ.
CHANGES_CAPTIONS = {
    "dtype": "the precision of weights and activations",
    "quantization": "the precision of the weights",
    "quantization_config": "the precision of single layers",
    "kv_cache_dtype": "the precision of keys and values",
    "kv_cache_dtype_skip_layers": "the precision of keys and values in single layers",
    "mamba_cache_dtype": "the precision of a state-space model's state",
    "mamba_ssm_cache_dtype": "the precision of a state-space model's state",
    "load_format": "`dummy` loads random weights",
    "max_model_len": "which prompts are too long, and where a caption ends",
    "disable_sliding_window": "how far back attention reaches",
    "attention_backend": "some kernels compute in a lower precision",
    "attention_config": "the same, as a mapping",
    "mm_encoder_attn_backend": "the same in the vision tower",
    "mm_encoder_attn_dtype": "the same in the vision tower",
    "model_impl": "another implementation of the model",
    "model_class_overrides": "another implementation of the model",
    "config_format": "where the model's configuration is read from",
    "hf_config_path": "where the model's configuration is read from",
    "hf_overrides": "the model's configuration itself",
    "tokenizer_mode": "how text becomes tokens",
    "tokenizer_revision": "how text becomes tokens",
    "limit_mm_per_prompt": "how many images a prompt may hold",
    "language_model_only": "the image is ignored",
    "media_io_kwargs": "how an image becomes pixels",
    "mm_processor_kwargs": "how pixels become image tokens",
    "mm_device_do_normalize": "how pixels become image tokens",
    "generation_config": "the tokens that end a caption",
    "override_generation_config": "the tokens that end a caption",
    "logits_processors": "code that changes the probabilities of tokens",
    "enable_lora": "other weights",
    "default_mm_loras": "other weights for prompts with images",
    "lora_dtype": "the precision of those weights",
    "seed": "which tokens are sampled",
    "speculative_config": "other random numbers decide which tokens are sampled",
    "spec_method": "the same, as an argument of its own",
    "spec_model": "the same, as an argument of its own",
    "spec_tokens": "the same, as an argument of its own",
    "diffusion_config": "how a diffusion model writes",
    "scheduler_cls": "other code runs the model",
    "worker_cls": "other code runs the model",
    "worker_extension_cls": "other code runs the model",
}
# Arguments whose values may be shown: these, and some that take vLLM's keywords, paths or names of models.
SHOWN = CHANGES_CAPTIONS.keys() | {"distributed_executor_backend", "download_dir", "model", "revision"}
NOT_SHOWN = "(not shown)"
ENGINE = re.compile(r"(\w+\.)*model\.engine")  # the beginning of the names of engine arguments in a recipe

SECRET = re.compile("secret|passw|passphrase|credential")  # in a name: any value may be a secret
KEY = re.compile("token|key")  # in a name: a text may be a secret
ASSIGNED = re.compile(rf"({SECRET.pattern}|{KEY.pattern})\w*['\"]?\s*[:=]", re.IGNORECASE)
URL_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]*@")
DEEPEST = 16  # levels of nested values; deeper ones are refused


def changing_captions(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that belong in the fingerprint."""
    return {name: value for name, value in arguments.items() if name in CHANGES_CAPTIONS}


def shown(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as run.json and messages may have them. A value of an argument outside SHOWN is replaced by
    NOT_SHOWN, unless it is a number, true, false or null."""
    return {
        name: value if name in SHOWN or value is None or isinstance(value, int | float) else NOT_SHOWN
        for name, value in arguments.items()
    }


def recorded(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as plain data, as run.json has it: `shown` was applied to the engine arguments of each model."""
    return {
        name: _recorded_model(section) if name == "model" and isinstance(section, dict) else _recorded_within(section)
        for name, section in recipe.items()
    }


def _recorded_within(section: Any) -> Any:
    return recorded(section) if isinstance(section, dict) and isinstance(section.get("model"), dict) else section


def _recorded_model(model: dict[str, Any]) -> dict[str, Any]:
    by_type = {name: shown(arguments) for name, arguments in model["engine_by_accelerator"].items()}
    return model | {"engine": shown(model["engine"]), "engine_by_accelerator": by_type}


def refuse_secrets(section: str, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for the first argument that holds a secret. The message never repeats a value."""
    if "hf_token" in arguments:
        raise ValueError(
            f"{section}.hf_token may not be given, because a recipe must not hold secrets; set HF_TOKEN in the "
            "environment of the command and of every worker"
        )
    for name, value in arguments.items():
        for place in _secrets("" if name in SHOWN else name, value, name):
            raise ValueError(
                f"{section}.{place} may hold a secret, and a recipe must not hold secrets; set it in the environment "
                "of the workers"
            )


def redacted(value: Any) -> Any:
    """A value as a message may show it: NOT_SHOWN if it may hold a secret."""
    if isinstance(value, str):
        return NOT_SHOWN if ASSIGNED.search(value) or URL_PASSWORD.search(value) else value
    if not isinstance(value, dict | list):
        return value
    return NOT_SHOWN if any(_secrets("", value, "")) else value


def _secrets(name: str, value: Any, place: str, depth: int = 0) -> Iterator[str]:
    """The paths at or below `place` whose values may hold a secret. `name` is the part of the path in which words such
    as "token" are looked for."""
    if depth > DEEPEST:
        yield f"{place} is nested too deeply: it"
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _secrets(f"{name}.{key}", inner, f"{place}.{key}".strip("."), depth + 1)
    elif _names_secret(name, value) or (isinstance(value, str) and URL_PASSWORD.search(value)):
        yield place


def _names_secret(name: str, value: Any) -> bool:
    """Whether a value of this name may be a secret.

    A number whose name merely contains "token" or "key" is a count or an id (max_num_batched_tokens, eos_token_id).
    """
    name = name.lower().replace("tokenizer", "")
    if value is None or isinstance(value, bool):
        return False
    if SECRET.search(name) or name.endswith(("token", "key")):
        return True
    return bool(KEY.search(name)) and not isinstance(value, int | float)
