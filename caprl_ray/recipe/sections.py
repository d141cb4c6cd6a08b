"""The recipe: one YAML file that says what a run is, complete and checked before anything starts.

A recipe is frozen. Each fault is a `RecipeError` with one sentence: the field, the value, and what is allowed.
"""

import math
import re
from collections.abc import Container
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from caprl_ray.recipe import accelerators, vllm_names
from caprl_ray.recipe.prompts import PromptTemplate

Positive = Annotated[int, Field(ge=1)]
Accelerator = Annotated[str, Field(min_length=1), AfterValidator(accelerators.check)]
PARALLEL_SIZES = frozenset({"pipeline_parallel_size", "tensor_parallel_size"})


def _service_url(url: Any) -> str | None:
    """The base URL of a service, checked. A refused value is not repeated: it may hold a password."""
    if url is None:
        return None
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is not a number, or a broken IPv6 address
        known = False
    if not known or re.search(r"[\s?#\\]", url):
        raise ValueError("it should be a service's base URL such as http://host:8000/v1, without a query or fragment")
    if "@" in parts.netloc:
        raise ValueError("it may not hold a user or a password; keys and credentials come from the environment")
    return str(url).rstrip("/")


class Section(BaseModel):
    """A part of the recipe: frozen, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Input(Section):
    """What to caption."""

    kind: Literal["files", "webdataset", "parquet"] | None = None
    """How the input is packed. By default inferred for each path from its file names."""
    paths: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(min_length=1),
        BeforeValidator(lambda v: [v] if isinstance(v, str) else v),
    ]
    """Files, folders, prefixes, globs or brace ranges such as shards/{00000..00099}.tar."""
    image_column: str | None = None
    """The column of parquet files that holds the images' bytes or paths. By default found by type and name."""
    rename: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """New names in the output for columns of the source. Columns with names that the output needs must be renamed."""


class Prepare(Section):
    """How images become pixels, and which images are refused."""

    min_pixels: Positive = 3136
    """Smaller images are enlarged to this many pixels. It can only narrow the model's own limit."""
    max_pixels: Positive = 1_003_520
    """Larger images are reduced to this many pixels (28 x 28 are one image token). It can only narrow the model's own
    limit."""
    max_bytes: Positive = 64 * 2**20
    """A stored image with more bytes is a failed row."""
    max_source_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 178_956_970
    """A stored image with more pixels is a failed row and never decoded. Pillow itself accepts no more than the
    default."""
    timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = 30
    """Seconds. An image that takes longer to decode is a failed row, after three tries."""

    @model_validator(mode="after")
    def _check(self) -> "Prepare":
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels is {self.min_pixels}; it must be at most max_pixels, which is {self.max_pixels}"
            )
        return self


def _variable_name(name: Any) -> str | None:
    """The name of an environment variable. A refused value is not repeated: it may be the key itself."""
    if name is None or (isinstance(name, str) and re.fullmatch("[A-Z_][A-Z0-9_]*", name)):
        return name
    raise ValueError("it should be the name of an environment variable, in capitals, and never the key itself")


class Model(Section):
    """Which model captions."""

    source: Annotated[str, Field(min_length=1)] = "internlm/CapRL-3B"
    """A hub id, a folder, an `s3://` prefix, or `embedded`: the tiny demonstration model of the package."""
    revision: str | None = "main"
    """The hub revision: a branch, a tag or, best, a commit."""
    cache_dir: str | None = None
    """Where each node keeps models from `s3://`. By default $CAPRL_RAY_CACHE/models or ~/.cache/caprl_ray/models."""
    engine: dict[str, Any] = {}
    """Engine arguments by vLLM's own names."""
    engine_by_accelerator: dict[Accelerator, dict[str, Any]] = {}
    """More engine arguments for replicas on one type of GPU, by Ray's name for it, such as H100. They override
    `engine`."""
    endpoint: Annotated[str | None, BeforeValidator(_service_url)] = None
    """The base URL of an OpenAI-compatible service that captions in place of an engine: http://host:8000/v1."""
    api_key_env: Annotated[str | None, BeforeValidator(_variable_name)] = None
    """The environment variable with the endpoint's key, read where replicas run. By default OPENAI_API_KEY, if it is
    set."""
    served_name: Annotated[str, Field(min_length=1)] | None = None
    """The endpoint's name for the model. By default model.source."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Most requests that each replica sends to the endpoint at once; fewer while it answers 429. By default 64."""

    @model_validator(mode="after")
    def _check_engine(self) -> "Model":
        for arguments in (self.engine, *self.engine_by_accelerator.values()):
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
        """The same with the arguments for a node with these types of GPU, by all the names of each."""
        engine = dict(self.engine)
        for name, arguments in self.engine_by_accelerator.items():
            if name in types:
                engine |= arguments
        return self.model_copy(update={"engine": engine})

    @model_validator(mode="after")
    def _check_endpoint(self) -> "Model":
        if self.endpoint and (self.engine or self.engine_by_accelerator):
            raise ValueError("engine cannot be given together with endpoint; engine arguments are the service's own")
        for name in ("api_key_env", "served_name", "concurrency"):
            if not self.endpoint and getattr(self, name) is not None:
                raise ValueError(f"{name} is only for an endpoint; give model.endpoint too, or leave {name} out")
        return self


class Engine(Section):
    """How an engine is kept alive."""

    stall_timeout_s: Annotated[float, Field(ge=1)] = 300
    """Seconds without a step of the engine, while rows wait for it, after which it is ended and restarted."""


class Replicas(Section):
    """How many copies of the model caption at once."""

    min: Positive = 1
    """Replicas at the start, and the least number of replicas."""
    max: Positive | None = None
    """Most replicas, while there is work and room. By default 8 on GPUs and 1 on a CPU."""
    gpus: Annotated[float, Field(ge=0, le=64)] = 1
    """GPUs of one replica: 0 runs on the CPU, a fraction shares one, and a number above 1 must be whole."""
    accelerator_type: Accelerator | None = None
    """The type of GPU that replicas must have, by Ray's name for it, such as L40S. By default any."""
    wait_s: Annotated[float, Field(ge=1)] = 3600
    """Seconds that a run waits while no replica has a GPU, at the start or later. Then it ends and can be resumed."""

    @property
    def most(self) -> int:
        """The largest number of replicas."""
        return self.max or max(self.min, 8 if self.gpus else 1)

    @model_validator(mode="after")
    def _check(self) -> "Replicas":
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max is {self.max}; it must be at least min, which is {self.min}")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus is {self.gpus}; above 1 it must be a whole number")
        if self.accelerator_type and not self.gpus:
            raise ValueError(f"accelerator_type is {self.accelerator_type}, but gpus is 0; leave it out on the CPU")
        return self


class Prompt(Section):
    """What the model is asked."""

    system: str | None = "You are a helpful assistant."
    """The system turn. null means no system turn at all, even if the model's chat template would add one."""
    user: Annotated[str, Field(min_length=1), AfterValidator(lambda text: PromptTemplate(text).text)] = (
        "Please describe this image in detail."
    )
    """The user turn beside the image. {column} and {json[field]} are replaced by the row's own values."""


class Sampling(BaseModel):
    """How captions are decoded, by the names of vLLM's SamplingParams. Its other fields can be given too."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, use_attribute_docstrings=True)

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of nucleus sampling."""
    max_tokens: Positive = 2048
    """The longest caption, in tokens."""
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Above 1 discourages words that were already used."""

    @model_validator(mode="after")
    def _check(self) -> "Sampling":
        vllm_names.check("sampling", self.model_extra or {}, vllm_names.sampling_parameters())
        return self


class Failures(Section):
    """When failed rows stop a run."""

    max_fraction: Annotated[float, Field(ge=0, le=1)] = 0.25
    """The largest share of rows that may fail. A web dataset loses a few per cent, a wrong recipe nearly all."""
    min_rows: Positive = 1000
    """Rows that must be processed before the share counts."""


class Output(Section):
    """Where the captions go."""

    path: Annotated[str, Field(min_length=1)]
    """The folder of the output. An existing one of the same recipe is resumed."""
    rows_per_object: Positive = 2048
    """The least number of rows in one parquet object, and the rows at risk when a node dies."""


class Storage(Section):
    """How `s3://` paths are reached. Credentials come from boto3's usual chain and never from a recipe."""

    endpoint: Annotated[str | None, BeforeValidator(_service_url)] = None
    """The address of a store with S3's protocol, such as https://storage.example.org. By default Amazon's."""
    region: str | None = None
    """The region of the buckets, if the environment does not say it."""
    profile: str | None = None
    """The profile of the shared credentials file, which every node must have."""
    anonymous: bool = False
    """Read public buckets without credentials."""
    path_style: bool | None = None
    """Put buckets into the path, not into the host name. By default true if there is an endpoint."""
    timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = 60
    """Seconds without an answer, or without more of it, after which a request is retried."""


class Recipe(Section):
    """One dataset's captioning run."""

    input: Input
    prepare: Prepare = Prepare()
    model: Model = Model()
    engine: Engine = Engine()
    replicas: Annotated[Replicas, Field(validate_default=True)] = Replicas()
    prompt: Prompt = Prompt()
    sampling: Sampling = Sampling()
    failures: Failures = Failures()
    storage: Storage = Storage()
    output: Output

    @field_validator("replicas")
    @classmethod
    def _without_gpus(cls, replicas: Replicas, others: ValidationInfo) -> Replicas:
        """An endpoint's replicas only send requests. Whatever the recipe says, they take no GPU."""
        model = others.data.get("model")
        gpus = {"gpus": 0, "accelerator_type": None}
        return replicas.model_copy(update=gpus) if model and model.endpoint else replicas

    @model_validator(mode="after")
    def _check_system_turn(self) -> "Recipe":
        if self.model.endpoint and self.prompt.system is None:
            raise ValueError(
                "prompt.system: null cannot be kept with model.endpoint, because the service's own chat template may "
                "add a system turn; give it a text"
            )
        return self

    @model_validator(mode="after")
    def _check_parallelism(self) -> "Recipe":
        sizes = {name: self.model.engine.get(name, 1) for name in sorted(PARALLEL_SIZES)}
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise ValueError(
                    f"model.engine.{name}: {size!r} is not allowed; it should be a whole number of at least 1"
                )
        parallel = math.prod(sizes.values())
        if self.replicas.gpus >= 1 and parallel != self.replicas.gpus:
            raise ValueError(
                f"replicas.gpus is {self.replicas.gpus:g}, but model.engine's tensor and pipeline parallel sizes "
                f"multiply to {parallel}; make them equal"
            )
        return self
