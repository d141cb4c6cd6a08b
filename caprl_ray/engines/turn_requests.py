"""Prompts as requests to an OpenAI-compatible service, and the log-probabilities in its answers."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from caprl_ray.errors import SystemFailure
from caprl_ray.recipe.turns import Turns

# The default limits of OpenAI's interface and of vLLM.
TOP_LOGPROBS = 20
NO_PREFILL = (
    "model.endpoint: this service is not vLLM, and no other is known to go on from the beginning of an answer, which "
    "an answer of one letter needs; serve the model by vllm serve, or give model.source without an endpoint."
)
TRIAL = Turns(user="Which letter comes first?", begin="The answer is", choices=("A", "B"))
CHOICE_TOKENS = 4  # a space may be a token of its own; nothing but a choice can be answered


def ignored(said: str) -> str:
    """The sentence for a service that calls itself vLLM but does not continue with a letter. `said` is its answer."""
    return (
        f"model.endpoint: this service was asked to go on with the letter A or B, and answered {said}: it, or what is "
        "between, drops vLLM's continue_final_message or structured_outputs; reach a newer vllm serve itself, or give "
        "model.source without an endpoint."
    )


class Part(BaseModel):
    """A part of an answer. The openai client does not check answers, so these classes check what is read."""

    model_config = ConfigDict(from_attributes=True)


class Likely(Part):
    """A token that could have been sampled."""

    token: str
    logprob: float


class Place(Part):
    """The likeliest tokens in one place of an answer."""

    top_logprobs: list[Likely] = []


class Places(Part):
    """The tokens of an answer."""

    content: list[Place] | None = None


def messages(turns: Turns, image: str | None = None) -> list[dict[str, Any]]:
    """The messages of turns, with the URL of a picture before the user's text. A service goes on from the last one if
    it is the assistant's."""
    user: Any = turns.user
    if image:
        user = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": turns.user}]
    turned = (("system", turns.system), ("user", user), ("assistant", turns.begin or None))
    return [{"role": role, "content": content} for role, content in turned if content is not None]


def fields(turns: Turns, known: dict[str, Any], *, neutral: bool) -> dict[str, Any]:
    """The arguments of a request for turns. Raises SystemFailure if the service cannot go on from their beginning."""
    body: dict[str, Any] = dict(known["extra_body"])
    if turns.begin:
        if not neutral:  # refused before the run starts (launch.check_goes_on), unless the service has changed since
            raise SystemFailure(NO_PREFILL)
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if turns.choices:
        space = " " if turns.begin and not turns.begin[-1].isspace() else ""
        body |= {"structured_outputs": {"choice": [space + choice for choice in turns.choices]}}
        known = {**known, "logprobs": True, "top_logprobs": TOP_LOGPROBS, "max_tokens": CHOICE_TOKENS}
    return {**known, "extra_body": body}


def logprobs(given: Places | None, letters: Sequence[str]) -> dict[str, float] | None:
    """The log-probability of each letter; None if one is not among the likeliest tokens."""
    places = given.content if given else None
    first = {one.token.strip(): one.logprob for one in reversed(places[0].top_logprobs)} if places else {}
    return {letter: first[letter] for letter in letters} if letters and first.keys() >= set(letters) else None
