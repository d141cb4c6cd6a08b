"""The section `model`: which model captions, in this job or at an endpoint."""

import re
from collections.abc import Container
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from caprl_ray.recipe import engine_arguments, vllm_names
from caprl_ray.recipe.fields import Accelerator, Section, absolute_on_nodes, service_url

# The tiny models of the package: one captions, and one answers from captions. The other two are rules, not models: one
# answers from images, and one writes questions.
PACKAGED = ("embedded", "embedded-answerer", "embedded-viewer", "embedded-questioner")
PARALLEL_SIZES = frozenset({"pipeline_parallel_size", "tensor_parallel_size"})


def _variable_name(name: Any) -> str | None:
    """Check the name of an environment variable. Errors do not repeat the value, because it may be the key itself."""
    if name is None or (isinstance(name, str) and re.fullmatch("[A-Z_][A-Z0-9_]*", name)):
        return name
    raise ValueError("it should be the name of an environment variable, in capitals, and never the key itself")


class Model(Section):
    """The model that captions."""

    source: Annotated[str, Field(min_length=1)] = "internlm/CapRL-3B"
    """The model: a hub id, a folder that every node has, an `s3://` prefix, or a tiny model of the package that knows
    only its own scenes: `embedded`, `embedded-answerer` to score, or `embedded-questioner` and `embedded-viewer` to
    curate. With an endpoint it only decides which image processor and control tokens are used."""
    revision: str | None = "main"
    """The hub revision: a branch, a tag or a commit. A commit is best, because a branch can move between runs."""
    cache_dir: Annotated[str | None, AfterValidator(absolute_on_nodes)] = None
    """The folder where each node keeps models fetched from `s3://`. If left out: $CAPRL_RAY_CACHE/models, or else
    ~/.cache/caprl_ray/models. Set it if that disk is too small."""
    engine: dict[str, Any] = {}
    """Engine arguments, with vLLM's names, for example {max_model_len: 8192}. Unless they are set here, batch size and
    memory use on a GPU follow from the GPU's memory. An argument that may hold a secret is refused."""
    engine_by_accelerator: dict[Accelerator, dict[str, Any]] = {}
    """Engine arguments for replicas on one type of GPU, by Ray's name for the type: {H100: {max_num_seqs: 384}}. They
    override `engine`. Use it on clusters with several types of GPU."""
    endpoint: Annotated[str | None, BeforeValidator(service_url)] = None
    """The base URL of an OpenAI-compatible service, such as http://host:8000/v1. Set it to caption with that service
    instead of an engine in this job."""
    api_key_env: Annotated[str | None, BeforeValidator(_variable_name)] = None
    """The name of the environment variable that holds the endpoint's key. Replicas read it on their own nodes. If left
    out, OPENAI_API_KEY is used if it is set, but only for an endpoint with https or on this machine."""
    served_name: Annotated[str, Field(min_length=1)] | None = None
    """The model's name at the endpoint. If left out, model.source."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] | None = None
    """The largest number of concurrent requests of one replica to the endpoint; 64 if left out. It is reduced while the
    service answers 429 (too many requests). Raise it for a service with many GPUs."""
    timeout_s: Annotated[float, Field(ge=0.1, le=86_400)] | None = None
    """The longest time for one caption at the endpoint, in seconds; 300 if left out. A row that takes longer twice,
    while the service captions others, becomes a failed row. Raise it for long captions on a slow service."""

    @model_validator(mode="after")
    def _check_engine(self) -> "Model":
        for arguments in (self.engine, *self.engine_by_accelerator.values()):
            engine_arguments.refuse_secrets("model.engine", arguments)
            vllm_names.check("model.engine", arguments, vllm_names.engine_arguments())
            refused = {"model", "revision", "tokenizer", "trust_remote_code"} & arguments.keys()
            if refused:
                raise ValueError(
                    f"{sorted(refused)[0]} cannot be given here; model.source and model.revision name the model"
                )
        for accelerator, arguments in self.engine_by_accelerator.items():
            for name in PARALLEL_SIZES & arguments.keys():
                raise ValueError(
                    f"{name} cannot differ for {accelerator}; every replica has replicas.gpus GPUs, so it belongs in "
                    "model.engine"
                )
        return self

    def landed(self, types: Container[str]) -> "Model":
        """Return this section with the engine arguments for a node. `types` holds all names of the node's GPU types."""
        engine = dict(self.engine)
        for name, arguments in self.engine_by_accelerator.items():
            if name in types:
                engine |= arguments
        return self.model_copy(update={"engine": engine})

    @model_validator(mode="after")
    def _check_endpoint(self) -> "Model":
        if self.endpoint and (self.engine or self.engine_by_accelerator):
            raise ValueError("engine cannot be given together with endpoint; the service has its own engine arguments")
        for name in ("api_key_env", "served_name", "concurrency", "timeout_s"):
            if not self.endpoint and getattr(self, name) is not None:
                raise ValueError(f"{name} is only for an endpoint; give model.endpoint too, or leave {name} out")
        return self
