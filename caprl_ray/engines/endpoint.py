"""Any OpenAI-compatible service as the engine (docs/design.md, D9), for instance `vllm serve` on another machine.

The openai client retries 429, 5xx and lost connections with backoff. If only one row keeps failing, the row is at fault
(proof.py). The key is read on the replica's node. Messages never contain text from the service, because it may quote
the prompt or the key.
"""

import asyncio
import base64
import io
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import openai
from PIL import Image
from pydantic import Field

from caprl_ray.engines import turn_requests
from caprl_ray.engines.concurrency import max_num_seqs
from caprl_ray.engines.pace import CaptionTimeout, Pace, PacedClient
from caprl_ray.engines.proof import Proof, Suspect
from caprl_ray.engines.protocol import AS_THE_RECIPE, Completion, Picture
from caprl_ray.engines.turn_requests import Part
from caprl_ray.errors import RecipeError, RowFailure, SystemFailure
from caprl_ray.models.chat import COMMON_CONTROL_TOKENS
from caprl_ray.models.resolve import ModelRef, service_key
from caprl_ray.recipe.sampling import Sampling
from caprl_ray.recipe.sections import Recipe
from caprl_ray.recipe.turns import Turns

# Attempts at one request: about 40 s of backoff, plus the waits that the service asks for (Retry-After).
ATTEMPTS = 9
# The time limit of a whole caption, unless the recipe has another (model.timeout_s): PacedClient keeps it.
CAPTION_S = 300.0
TIMEOUT = openai.Timeout(None, connect=10)
# At the start, a wrong address should be reported at once.
START_ATTEMPTS, START_TIMEOUT = 3, openai.Timeout(30, connect=10)

# Answers that may be the fault of the row or of the service, and the failure code in the first case.
SUSPECT = {403: "engine_rejected", 451: "engine_rejected", 500: "engine_error", 504: "engine_timeout"}

# If the recipe leaves these out, `vllm serve` takes them from the model's generation_config.json (Qwen2.5-VL's has a
# repetition penalty of 1.05), and the engine in the process does not. Other services may not know them.
VLLM_NEUTRAL = {"repetition_penalty": 1.0, "top_k": 0, "min_p": 0.0}
TOO_LONG = ("context length", "context_length", "max_model_len", "longer than the maximum")
Count = Annotated[int, Field(ge=0, lt=2**31)]
FINISHED = ("stop", "length", "repetition")
NOT_KEPT = ("content_filter", "tool_calls", "function_call", "abort")


class Message(Part):
    """The caption."""

    content: str | None


class Choice(Part):
    """The caption and its finish reason."""

    message: Message | None
    finish_reason: str | None
    logprobs: turn_requests.Places | None = None


class Usage(Part):
    """Token counts, if the service gives them."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class Answer(Part):
    """The parts of a chat completion that are read."""

    choices: list[Choice] | None
    usage: Usage | None = None


class EndpointEngine:
    """An Engine that sends requests; make one with `start`."""

    def __init__(self, client: openai.AsyncOpenAI, recipe: Recipe, model: ModelRef, *, neutral: bool) -> None:
        self._client = client
        self._timeout_s = recipe.model.timeout_s or CAPTION_S
        self._proof = Proof(self._send)
        self._url, self._model, self._system = recipe.model.endpoint, model.path, recipe.prompt.system
        self._sampling, self._neutral = recipe.sampling, neutral
        self.control_tokens: Sequence[str] = model.control_tokens or COMMON_CONTROL_TOKENS

    @classmethod
    async def start(cls, recipe: Recipe, model: ModelRef) -> "EndpointEngine":
        """Reach the service. Raises SystemFailure if there is none, the key is refused or the model is not served."""
        assert recipe.model.endpoint
        try:
            key = service_key(recipe.model)
        except RecipeError as error:  # this process may lack the driver's environment
            raise SystemFailure(str(error)) from None
        client = openai.AsyncOpenAI(
            base_url=recipe.model.endpoint,
            api_key=key or "none",  # the client requires one
            max_retries=ATTEMPTS - 1,
            timeout=TIMEOUT,
            http_client=PacedClient(Pace(max_num_seqs(recipe)), recipe.model.timeout_s or CAPTION_S),
        )
        served = await _served_models(client, recipe.model.endpoint)
        names = [str(entry.get("id")) for entry in served or ()]
        if served is not None and model.path not in names:
            shown = ", ".join(name[:80] for name in names[:5]) or "nothing"
            raise SystemFailure(
                f"model.served_name: {recipe.model.endpoint} does not serve {model.path}; it serves {shown}."
            )
        return cls(client, recipe, model, neutral=any(entry.get("owned_by") == "vllm" for entry in served or ()))

    @property
    def goes_on(self) -> bool:
        """Whether the service can continue a given beginning of an answer. Only vLLM is known to."""
        return self._neutral

    async def caption(
        self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any] = AS_THE_RECIPE
    ) -> Completion:
        """Caption one picture, or answer. Raises RowFailure for a fault of this row, SystemFailure for all."""
        return await self._proof.caption(picture, prompt, sampling)

    def _changed(self, fields: Mapping[str, Any]) -> Sampling:
        """The recipe's sampling with other values. A service that may not know a repetition penalty gets none."""
        if not self._neutral and self._sampling.repetition_penalty == 1:
            fields = {name: value for name, value in fields.items() if name != "repetition_penalty"}
        return self._sampling.changed(fields)

    async def _send(self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any]) -> Completion:
        """Send one request. Raises Suspect if its fault may be the row's or the service's."""
        turns = prompt if isinstance(prompt, Turns) else Turns(user=prompt, system=self._system)
        image = await asyncio.to_thread(data_url, picture) if picture else None
        messages: Any = turn_requests.messages(turns, image)
        fields = request_sampling(self._changed(sampling), neutral=self._neutral)
        fields = turn_requests.fields(turns, fields, neutral=self._neutral)
        try:
            answer = await self._client.chat.completions.create(model=self._model, messages=messages, **fields)
            return completion(Answer.model_validate(answer), turns.choices)
        except openai.APIStatusError as error:
            if error.status_code in (400, 413, 422):
                raise _rejected(error) from None
            system = _system_failure(error, self._url)
            if error.status_code in SUSPECT:
                row = RowFailure(SUSPECT[error.status_code], f"HTTP {error.status_code} each time")
                raise Suspect(row, system) from None
            raise system from None
        except CaptionTimeout as error:
            row = RowFailure("engine_timeout", f"no caption within {self._timeout_s:g} s, each time")
            raise Suspect(row, _system_failure(error, self._url, self._timeout_s), timed_out=True) from None
        except (openai.APIConnectionError, ValueError) as error:  # ValueError: no JSON, or other types
            raise _system_failure(error, self._url) from None


def data_url(picture: Picture) -> str:
    """The pixels as a lossless PNG in a data URL."""
    image = Image.frombuffer("RGB", (picture.width, picture.height), bytes(picture.pixels), "raw", "RGB", 0, 1)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getbuffer()).decode("ascii")


def request_sampling(sampling: Sampling, *, neutral: bool) -> dict[str, Any]:
    """Sampling as arguments of chat.completions.create.

    Fields that the OpenAI interface lacks go into the request's body. A repetition penalty of 1 and the detection of
    loops go only to vLLM: `neutral` sets everything that vLLM would otherwise take from the model's files.
    """
    fields = sampling.model_dump(exclude={"n"})
    if not neutral or fields["repetition_detection"] is None:
        del fields["repetition_detection"]
    if fields.get("structured_outputs", ...) is None:
        del fields["structured_outputs"]
    named = {name: fields.pop(name) for name in ("temperature", "top_p", "max_tokens")}
    schema = (fields.get("structured_outputs") or {}).get("json")
    if schema is not None and not neutral:  # by the OpenAI interface's own name
        del fields["structured_outputs"]
        described = {"name": "caption", "schema": schema}
        named["response_format"] = {"type": "json_schema", "json_schema": described}
    if fields["repetition_penalty"] == 1:
        del fields["repetition_penalty"]
    return named | {"extra_body": (VLLM_NEUTRAL if neutral else {}) | fields}


def completion(answer: Answer, choices: Sequence[str] = ()) -> Completion:
    """The completion in an answer. Raises RowFailure if it holds no caption."""
    choice = answer.choices[0] if answer.choices else None
    if choice is None or choice.message is None:
        raise RowFailure("engine_rejected", "the answer has no choices")
    if choice.finish_reason not in FINISHED:
        reason = choice.finish_reason if choice.finish_reason in NOT_KEPT else "unknown"
        raise RowFailure("engine_rejected", f"finish reason {reason}")
    usage = answer.usage or Usage()
    return Completion(
        text=choice.message.content or "",
        finish_reason=choice.finish_reason,
        prompt_tokens=usage.prompt_tokens,
        caption_tokens=usage.completion_tokens,
        logprobs=turn_requests.logprobs(choice.logprobs, choices),
    )


async def _served_models(client: openai.AsyncOpenAI, url: str) -> list[Mapping[str, Any]] | None:
    """The entries of the service's /models; None if it has no such list."""
    patient = client.with_options(max_retries=START_ATTEMPTS - 1, timeout=START_TIMEOUT)
    try:
        answer = await patient.get("/models", cast_to=object)
    except openai.NotFoundError:
        return None
    except (openai.APIError, ValueError) as error:
        raise _system_failure(error, url) from None
    entries = answer.get("data") if isinstance(answer, Mapping) else None
    return [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else None


def _rejected(error: openai.APIStatusError) -> RowFailure:
    """The failure of a refused request, without the service's text, which may quote the prompt."""
    if any(words in str(error).lower() for words in TOO_LONG):
        return RowFailure("prompt_too_long")
    return RowFailure("engine_rejected", f"HTTP {error.status_code}")


def _system_failure(error: Exception, url: str | None, timeout_s: float | None = None) -> SystemFailure:
    """One sentence for a fault that every request would meet."""
    status = error.status_code if isinstance(error, openai.APIStatusError) else None
    if status in (401, 403):
        said = f"refused the key (HTTP {status}); model.api_key_env names the environment variable that must hold it"
    elif status == 404:
        said = (
            "has no such model or path (HTTP 404); check model.served_name and that the URL ends as in http://host/v1"
        )
    elif status:
        said = f"answered HTTP {status} to the last attempt; run again when the service has recovered"
    elif timeout_s:
        said = (
            f"did not answer in time (model.timeout_s is {timeout_s:g}); run again when the service has recovered, or "
            "with a lower model.concurrency or a higher model.timeout_s"
        )
    elif isinstance(error, openai.APITimeoutError):
        said = "did not answer in time; run again when the service has recovered, or with a lower model.concurrency"
    elif isinstance(error, openai.APIConnectionError):
        said = "cannot be reached; check the address and that the service runs"
    else:
        said = "did not answer as an OpenAI-compatible service does; check that the URL ends as in http://host/v1"
    return SystemFailure(f"model.endpoint: {url} {said}.")
