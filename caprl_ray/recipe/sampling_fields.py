"""Further sampling fields that a recipe may have, under vLLM's names.

FIELDS has the fields that can change a caption. vLLM's other fields ask for results other than one text, or need
objects that a recipe cannot hold.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from caprl_ray.recipe import vllm_names

Penalty = Annotated[float, Field(ge=-2, le=2)]
Texts = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
Token = Annotated[int, Field(ge=0)]
Tokens = Annotated[list[Token], Field(min_length=1)]
# As in vLLM: a JSON schema, a regular expression, texts of which one is chosen, or a grammar.
_STRUCTURED: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "json": ((dict, str), "a JSON schema"),
    "regex": (str, "a regular expression"),
    "choice": (list, "a list of texts"),
    "grammar": (str, "a grammar"),
}


def _one(value: dict[str, Any]) -> dict[str, Any]:
    """Check that exactly one kind of structure is given, and that its value has the right type."""
    kind = next(iter(value), "")
    if len(value) != 1 or kind not in _STRUCTURED:
        raise ValueError(f"should have one of {', '.join(_STRUCTURED)}")
    types, what = _STRUCTURED[kind]
    if not isinstance(value[kind], types) or not all(isinstance(text, str) for text in value[kind]):
        raise ValueError(f"should have {what} as {kind}")
    return value


Structured = Annotated[dict[str, Any], AfterValidator(_one)]

FIELDS: Mapping[str, Any] = {
    "presence_penalty": Penalty,
    "frequency_penalty": Penalty,
    "top_k": Annotated[int, Field(ge=-1)],
    "min_p": Annotated[float, Field(ge=0, le=1)],
    "seed": int | None,
    "stop": Annotated[str, Field(min_length=1)] | Texts | None,
    "stop_token_ids": Tokens | None,
    "include_stop_str_in_output": bool,
    "ignore_eos": bool,
    "min_tokens": Token,
    "skip_special_tokens": bool,
    "spaces_between_special_tokens": bool,
    "logit_bias": dict[int, Annotated[float, Field(ge=-100, le=100)]] | None,
    "allowed_token_ids": Tokens | None,
    "bad_words": Texts | None,
    "structured_outputs": Structured | None,
}
# Fields whose results the output has no place for: the only allowed value, which is vLLM's default, and the reason.
REFUSED: Mapping[str, tuple[Any, str]] = {
    "detokenize": (True, "a caption is text"),
    "logprobs": (None, "no column holds probabilities"),
    "prompt_logprobs": (None, "no column holds probabilities"),
}


def check(given: Mapping[str, Any], others: Iterable[str]) -> None:
    """Raise ValueError for the first field that a recipe cannot have, or whose value is wrong.

    `others` are the fields of the section itself; a misspelled name may mean one of them.
    """
    for name, value in given.items():
        if name in REFUSED:
            _check_refused(name, value)
        elif name in FIELDS:
            _check_value(name, value)
        else:
            known = sorted({*FIELDS, *others})
            near = difflib.get_close_matches(name.strip(), known, n=3) or known
            raise ValueError(f"{name} is not a sampling field that a recipe can have; use one of {', '.join(near)}")
    vllm_names.check("sampling", given, vllm_names.sampling_parameters())


def _check_refused(name: str, value: Any) -> None:
    default, reason = REFUSED[name]
    if type(value) is not type(default) or value != default:
        raise ValueError(f"{name} is {value!r}, but {reason}; leave it out")


def _check_value(name: str, value: Any) -> None:
    try:
        TypeAdapter(FIELDS[name], config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        for prefix in ("Input ", "List ", "String ", "Value error, "):
            message = message.removeprefix(prefix)
        raise ValueError(f"{name} is {value!r}; it {message}") from None
