"""Answers that can only be one of some letters: the letters' tokens, and their log-probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from caprl_ray.errors import SystemFailure
from caprl_ray.recipe import vllm_names
from caprl_ray.recipe.turns import Turns

# Fields of vLLM's SamplingParams that a prompt with choices needs. A recipe cannot have them all (sampling_fields.py).
FIELDS = frozenset({"allowed_token_ids", "logprob_token_ids", "logprobs"})
FEWEST_LOGPROBS = 20  # as many as vLLM allows by default, where it cannot be asked for those of given tokens


def as_tokens(turns: Turns, tokenizer: Any) -> tuple[Turns, dict[str, int]]:
    """The turns, and the token of each choice. If no token is a space and a letter, the prompt gets the space.

    Raises SystemFailure if a letter is not one token.
    """
    space = " " if turns.begin and not turns.begin[-1].isspace() else ""
    for before in {space: None, "": None}:
        tokens = {choice: tokenizer.encode(before + choice, add_special_tokens=False) for choice in turns.choices}
        if all(len(ids) == 1 for ids in tokens.values()):
            turns = replace(turns, begin=turns.begin + space.removeprefix(before))
            return turns, {choice: ids[0] for choice, ids in tokens.items()}
    raise SystemFailure(
        "model.source: an answer of one letter needs a token for each letter, which this model does not have; take "
        "another model, or for scores score.mode=sampled."
    )


def sampling(tokens: Mapping[str, int]) -> dict[str, Any]:
    """The fields of SamplingParams with which only these tokens can be answered, and their log-probabilities come."""
    ids = list(tokens.values())
    known = vllm_names.sampling_parameters()
    asked = {"logprob_token_ids": ids} if "logprob_token_ids" in known else {"logprobs": FEWEST_LOGPROBS}
    return {"allowed_token_ids": ids, **asked}


def logprobs(pieces: Sequence[Any], tokens: Mapping[str, int]) -> dict[str, float] | None:
    """The log-probability of each choice, before others were forbidden; None if vLLM gave none of some choice."""
    first: Mapping[int, Any] = next((piece.logprobs[0] for piece in pieces if piece.logprobs), {})
    if not all(token in first for token in tokens.values()):
        return None
    return {choice: float(first[token].logprob) for choice, token in tokens.items()}
