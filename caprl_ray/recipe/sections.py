"""The sections and fields of the recipe, the YAML file that describes a run.

`load.load` reads the file, applies `section.field=value` overrides and returns a frozen `Recipe`. The recipe is checked
before anything starts. An error is a `RecipeError` of one sentence: the field, its value, and what is allowed.

The docstrings below the fields are the reference of the recipe; `caprl-ray schema` prints them.
"""

import math
import os
import re
from collections.abc import Container, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from caprl_ray.recipe import accelerators, engine_arguments, hashes, sampling_fields, vllm_names
from caprl_ray.recipe.prompts import PromptTemplate

Positive = Annotated[int, Field(ge=1)]
Accelerator = Annotated[str, Field(min_length=1), AfterValidator(accelerators.check)]
MAX_METADATA_BYTES = 256 * 1024
STORES = ("s3", "gs", "az", "hf")  # schemes of stores that images are read from
PARALLEL_SIZES = frozenset({"pipeline_parallel_size", "tensor_parallel_size"})
PACKAGED = ("embedded", "embedded-answerer")  # models that come with the package: one captions, one answers


def _service_url(url: Any) -> str | None:
    """Check the base URL of a service. Errors do not repeat the URL, because it may contain a password."""
    if url is None:
        return None
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is not a number, or the IPv6 address is broken
        known = False
    if not known or re.search(r"[\s?#\\]", url):
        raise ValueError("it should be a service's base URL such as http://host:8000/v1, without a query or fragment")
    if "@" in parts.netloc:
        raise ValueError("it may not hold a user or a password; keys and credentials come from the environment")
    return str(url).rstrip("/")


def _absolute(path: str) -> str:
    """A local path from the working folder of this process. Workers have other working folders."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _absolute_on_nodes(path: str | None) -> str | None:
    """As `_absolute`, for a folder that each node has for itself: `~` stays the home of each node's user."""
    return path if path is None or path.startswith("~") else _absolute(path)


class Section(BaseModel):
    """A section of the recipe. It is frozen and refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def _image_root(path: str) -> str:
    """A local folder as an absolute path: Ray's workers have other working directories."""
    scheme, is_uri, place = path.partition("://")
    if "\0" in path or (is_uri and scheme != "file" and (scheme not in STORES or place.startswith("/"))):
        raise ValueError(f"{path!r} is not allowed; it should be a folder or a prefix such as s3://bucket/photos")
    return _absolute(path)


class Columns(Section):
    """Which of the source's own columns the output gets. The images are not concerned."""

    keep: list[str] | None = None
    """The columns that the output gets. If left out, all of them."""
    drop: list[str] = []
    """Columns that the output does not get. They are not read. Use it for second images and other large values."""

    def keeps(self, name: str) -> bool:
        """Whether the output gets a column of the source."""
        return name not in self.drop and (self.keep is None or name in self.keep)

    @model_validator(mode="after")
    def _check(self) -> "Columns":
        both = [name for name in self.keep or () if name in self.drop]
        if both:
            raise ValueError(f"{both[0]} stands in keep and in drop; take it out of one")
        return self


def _image_key(key: str) -> str:
    """Extensions as members have them: without a dot in front, in small letters."""
    return ";".join(part.lower().removeprefix(".") for part in key.split(";"))


class Input(Section):
    """What to caption."""

    kind: Literal["files", "webdataset", "parquet", "manifest"] | None = None
    """The kind of input. If left out, it is inferred from the file names, for each path separately. Set it if a folder
    holds several kinds of files, or if the names do not show the kind. A manifest is a list of images as CSV or JSON
    lines: it is inferred if the path itself ends like one, such as lists/*.csv."""
    paths: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(min_length=1),
        BeforeValidator(lambda v: [v] if isinstance(v, str) else v),
    ]
    """The input: files, folders, prefixes, globs or brace ranges such as shards/{00000..00099}.tar; local, s3://,
    gs://, az:// or hf://datasets/ORG/NAME@REVISION/path."""
    hidden: bool = False
    """Whether files whose names begin with a dot, or tables whose names begin with an underscore, are taken below a
    folder or glob, and what is in folders of such names. A path that names them takes them always. What tools keep
    beside data, such as __MACOSX or _delta_log, is never taken."""
    image_column: str | None = None
    """The column of a table or manifest that holds the bytes or the paths of the images. If left out, it is found by
    type and name. Set it if several columns fit. `name[*]` is a column of lists of images in parquet: each image
    becomes a row, with the other columns of its row."""
    image_key: Annotated[str, Field(pattern=r"^[^;/\s]+(;[^;/\s]+)*$"), AfterValidator(_image_key)] | None = None
    """Which member of a WebDataset sample is captioned, by its extension: jpg, or jpg;png, of which the first that a
    sample has is taken. If left out, a sample may have images of one kind only. Set it if your samples hold maps, masks
    or edges beside the photo."""
    max_metadata_bytes: Annotated[int, Field(ge=1, le=512 * 1024)] = MAX_METADATA_BYTES
    """The most bytes of text and other values beside an image that its row may carry. Raise it for long texts; blocks
    of rows have room for at most 512 KiB of each row."""
    long_metadata: Literal["drop", "fail"] = "drop"
    """What happens to a text that is longer: drop leaves it out of the row and says so in its flags, fail makes it a
    failed row. Set fail if a caption without its text is worth nothing."""
    image_roots: Annotated[
        list[Annotated[str, Field(min_length=1), AfterValidator(_image_root)]],
        BeforeValidator(lambda v: [v] if isinstance(v, str) else v),
    ] = []
    """Folders and prefixes, such as s3://bucket/photos, below which a row of a table or manifest may name its image,
    beside the table's own folder. A row that names an image elsewhere, also through a symbolic link, becomes a failed
    row. Set it if your tables hold absolute paths."""
    rename: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """New names for source columns, as {source name: output name}. A column whose name the output itself uses, such as
    width, must be renamed."""
    columns: Columns = Columns()
    """The source's own columns that the output gets, as {keep: [...]} or {drop: [...]}, by their names in the source.
    If left out, all of them."""
    placeholders: Annotated[
        list[str] | str,
        BeforeValidator(hashes.check),
        AfterValidator(lambda value: _absolute(value) if isinstance(value, str) else value),
    ] = []
    """The SHA-256 in hex of stored images that stand for a missing one, such as "image not available": as a list, or as
    the path of a text file with one a line, local or s3://, # for comments. Such a row is not captioned; it becomes a
    failed row. `caprl-ray plan --duplicates` finds them."""


class Prepare(Section):
    """How images are decoded and resized, and which images are refused."""

    min_pixels: Positive = 3136
    """Images with fewer pixels are enlarged to this number of pixels (width x height). The model's own minimum applies
    if it is higher."""
    max_pixels: Positive = 1_003_520
    """Images with more pixels are reduced to this number of pixels (width x height). The model's own maximum applies if
    it is lower. For CapRL, 28 x 28 pixels are one image token: lower it for speed, raise it for fine detail."""
    max_bytes: Positive = 64 * 2**20
    """The largest size of a stored image, in bytes. A larger image becomes a failed row. Raise it for very large
    originals."""
    max_source_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 178_956_970
    """The largest number of pixels of a stored image. An image with more is not decoded and becomes a failed row.
    Pillow accepts no more than the default. Lower it if workers have little memory."""
    timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = 30
    """The time limit for decoding and resizing one image, in seconds. After three tries the image becomes a failed row.
    Raise it on slow or overloaded machines."""

    @model_validator(mode="after")
    def _check(self) -> "Prepare":
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels is {self.min_pixels}; it must be at most max_pixels, which is {self.max_pixels}"
            )
        return self


def _variable_name(name: Any) -> str | None:
    """Check the name of an environment variable. Errors do not repeat the value, because it may be the key itself."""
    if name is None or (isinstance(name, str) and re.fullmatch("[A-Z_][A-Z0-9_]*", name)):
        return name
    raise ValueError("it should be the name of an environment variable, in capitals, and never the key itself")


class Model(Section):
    """The model that captions."""

    source: Annotated[str, Field(min_length=1)] = "internlm/CapRL-3B"
    """The model: a hub id, a folder that every node has, an `s3://` prefix, or a tiny model of the package that knows
    only its own scenes: `embedded`, or `embedded-answerer` to score. With an endpoint it only says which image
    processor and control tokens apply."""
    revision: str | None = "main"
    """The hub revision: a branch, a tag or a commit. A commit is best, because a branch can move between runs."""
    cache_dir: Annotated[str | None, AfterValidator(_absolute_on_nodes)] = None
    """The folder where each node keeps models fetched from `s3://`. If left out: $CAPRL_RAY_CACHE/models, or else
    ~/.cache/caprl_ray/models. Set it if that disk is too small."""
    engine: dict[str, Any] = {}
    """Engine arguments, with vLLM's names, for example {max_model_len: 8192}. On a GPU, batch size and memory use
    follow from the GPU's memory unless they are set here. An argument that may hold a secret is refused."""
    engine_by_accelerator: dict[Accelerator, dict[str, Any]] = {}
    """Engine arguments for replicas on one type of GPU, by Ray's name for the type: {H100: {max_num_seqs: 384}}. They
    override `engine`. Use it on clusters with several types of GPU."""
    endpoint: Annotated[str | None, BeforeValidator(_service_url)] = None
    """The base URL of an OpenAI-compatible service, such as http://host:8000/v1. Set it to caption with that service
    instead of an engine in this job."""
    api_key_env: Annotated[str | None, BeforeValidator(_variable_name)] = None
    """The name of the environment variable that holds the endpoint's key. Replicas read it on their own nodes. If left
    out, OPENAI_API_KEY is used if it is set and the endpoint has https or is on this machine."""
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


class Engine(Section):
    """How the engines of this job are kept alive."""

    stall_timeout_s: Annotated[float, Field(ge=1)] = 300
    """The longest time without an engine step while rows wait, in seconds. After it the engine is killed and restarted.
    An engine on a CPU may take longer for a step, as long as it computes."""


class Replicas(Section):
    """How many copies of the model caption in parallel, and what each of them needs."""

    min: Positive = 1
    """The number of replicas at the start of the run; the pool never shrinks below it. Raise it to request more GPUs
    from the start."""
    max: Positive | None = None
    """The largest number of replicas. The pool grows to it while there are work and free GPUs. If left out: 8 on GPUs,
    1 on a CPU, and at least `min`."""
    gpus: Annotated[float, Field(ge=0, le=64)] = 1
    """GPUs per replica: 0 runs on the CPU, a fraction shares one GPU, a value above 1 must be a whole number. From 1 on
    it must equal tensor_parallel_size x pipeline_parallel_size of model.engine. With an endpoint it is always 0, and
    with a model of the package it is 0 if left out."""
    accelerator_type: Accelerator | None = None
    """The type of GPU that replicas must have, by Ray's name for it, such as L40S. If left out, any type. Set it if
    only some of the cluster's types should be used."""
    wait_s: Annotated[float, Field(ge=1)] = 3600
    """How long a run waits while no replica has a GPU, in seconds: at the start, or after all GPU nodes were lost. Then
    the run ends with an error and can be resumed. The same holds while fewer than `min` run because the engine does not
    start on some nodes. Raise it if spot capacity is often missing for longer."""
    price: Annotated[float, Field(ge=0)] | None = None
    """What an hour of one GPU costs, in dollars. With it a run says what it has cost so far."""

    @property
    def most(self) -> int:
        """The largest number of replicas: `max`, or its default."""
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


PromptText = Annotated[str, Field(min_length=1), AfterValidator(lambda text: PromptTemplate(text).text)]
PromptName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,39}$")]


class Prompt(Section):
    """The prompt that goes with each image."""

    system: str | None = "You are a helpful assistant."
    """The text of the system turn. null means no system turn at all, even if the model's chat template would add
    one."""
    user: PromptText = "Please describe this image in detail."
    """The text of the user turn, which follows the image. {column} and {json[field]} are replaced by the row's own
    values, {column|text} by the text where a row has none."""


class RepetitionDetection(Section):
    """When the engine stops a caption that repeats itself, token by token.

    A caption ends with the finish reason `repetition` when its last `min_count` x n tokens are one pattern of n tokens
    again and again. n lies between `min_pattern_size` and `max_pattern_size`. A loop of fewer tokens is found too: some
    multiple of its length lies between them, because the upper one is about twice the lower one.
    """

    min_pattern_size: Annotated[int, Field(ge=1, le=512)] = 33
    """The shortest pattern, in tokens."""
    max_pattern_size: Annotated[int, Field(ge=1, le=512)] = 64
    """The longest pattern, in tokens. vLLM compares each length between the two at every token: a wide range costs
    time."""
    min_count: Annotated[int, Field(ge=2, le=64)] = 8
    """How often the pattern must stand there, one after the other. Equal rows of a table are a pattern too: a lower
    number saves tokens and cuts more tables."""

    @model_validator(mode="after")
    def _check(self) -> "RepetitionDetection":
        if self.min_pattern_size > self.max_pattern_size:
            raise ValueError(
                f"min_pattern_size is {self.min_pattern_size}; it must be at most max_pattern_size, which is "
                f"{self.max_pattern_size}"
            )
        return self


class Sampling(BaseModel):
    """How captions are sampled.

    More fields of vLLM's SamplingParams are allowed, under the same names: those in `sampling_fields.FIELDS`.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, use_attribute_docstrings=True)

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """The sampling temperature. 0 is greedy decoding: the same image then gives nearly always the same caption."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: only the most likely tokens, whose probabilities sum to this value, are sampled. 1 keeps
    all."""
    max_tokens: Positive = 2048
    """The longest caption, in tokens. A caption that reaches it is `truncated` (see quality). Raise it if many are."""
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Values above 1 make tokens that were already used less likely. Raise it slightly if captions repeat
    themselves."""
    n: Annotated[int, Field(ge=1, le=16)] = 1
    """How many captions each prompt gives an image. Above 1, the column `captions` has them all and `caption` the
    best. It needs a temperature above 0."""
    repetition_detection: RepetitionDetection | None = RepetitionDetection()
    """When the engine stops a caption that only repeats itself. null lets it go on to max_tokens."""

    @model_validator(mode="after")
    def _check(self) -> "Sampling":
        sampling_fields.check(self.model_extra or {})
        if self.n > 1 and not self.temperature:
            raise ValueError(f"n is {self.n}, but temperature is 0, so all captions would be equal; raise it")
        return self

    def changed(self, fields: Mapping[str, Any]) -> "Sampling":
        """This section with other values in some fields. Raises ValueError if one is not allowed."""
        return Sampling.model_validate({**self.model_dump(), **fields}) if fields else self


def _first_message(error: ValueError) -> str:
    """What pydantic says of the first fault, with the field."""
    if not isinstance(error, ValidationError):
        return str(error)
    fault = error.errors(include_url=False)[0]
    said = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else fault["msg"]
    return ": ".join(filter(None, [".".join(map(str, fault["loc"])), said]))


Action = Literal["keep", "retry", "fail", "off"]
# Decoded again with these in turn. A retry with the same sampling often gives the same loop (QwenLM/Qwen3-VL issue
# 1611); a lower top_p cuts the unlikely tokens that most loops begin with, and the penalty leads out of them.
RETRIES: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.05},
    {"temperature": 1.0, "top_p": 0.8, "repetition_penalty": 1.15},
]


class Quality(Section):
    """How captions are checked, and what is done about those that fail a check (docs: Caption quality)."""

    checks: dict[str, Action] = {}
    """What is done when a caption fails a check, by the check's name. `keep` flags it, `retry` decodes it again, `fail`
    makes a failed row of code `quality`, `off` does not check. If left out: `loop`, `truncated`, `refusal`, `garbage`,
    `empty` and `json` are retried, and the others flag. A check of your own has its import path as its name, such as
    "package.module:function"; it takes a Caption and says whether it is flagged."""
    thresholds: dict[str, int | float] = {}
    """Other thresholds, as {check.threshold: value}."""
    language: str | None = None
    """The language that captions should have, as a code such as en. Set it to turn the check `language` on; it needs
    the extra `language`."""
    alt_column: str | None = None
    """The source column with the text that the image had before. Set it to turn the check `copies_alt_text` on."""
    retries: list[dict[str, Any]] = RETRIES
    """How a caption that fails a check marked `retry` is decoded again: changes of sampling, one per further try. An
    empty list never decodes again. The best caption is kept, with its flags."""
    limits: dict[str, Annotated[float, Field(gt=0, le=1)]] = {"garbage": 0.1}
    """The largest share of a replica's latest captions that may fail a check at their first decoding, by the check's
    name. A replica above it is restarted, and its latest captions are written again; if all replicas are, the run
    ends. A broken GPU writes !!!! for a part of its captions."""
    window: Annotated[int, Field(ge=32, le=10_000)] = 200
    """How many of a replica's latest captions `limits` looks at."""
    self_check: Annotated[int, Field(ge=0)] = 100
    """Two unlike pictures are planted among the images of a replica's first batch, and of each so many batches after
    it. If their captions are not told apart, the replica is restarted as for `limits`, and all captions since
    the last of these checks are written again. 0 never checks."""
    at_end: Literal["keep", "trim", "fail"] = "keep"
    """What is done with a caption that still fails such a check after all tries. `keep` keeps it with its flags. `trim`
    cuts it after its last whole sentence, before a loop, and adds the flag `trimmed`. `fail` makes a failed row of
    code `quality`."""


class Failures(Section):
    """When a run stops because too many rows failed."""

    max_fraction: Annotated[float, Field(ge=0, le=1)] = 0.25
    """The largest share of rows that may fail, 0 to 1. A run stops above it, and a run whose whole output is above it
    at the end, however few its rows are, exits with 3 and leaves no `_SUCCESS`. Run again with a higher value to accept
    the output; 1 accepts everything. A web dataset loses a few per cent of its rows; a wrong recipe loses nearly all.
    To stop a run early, good rows of earlier runs count in its favour, up to 50 x `min_rows`."""
    min_rows: Positive = 1000
    """The number of finished rows (captioned or failed) from which on a run may be stopped early for `max_fraction`.
    Lower it to notice a wrong recipe sooner; raise it if the first shards are worse than the rest. At the end of a run
    `max_fraction` holds for any number of rows."""


def _writable(path: str) -> str:
    if path.startswith("hf://"):
        raise ValueError(f"{path} is only read; write to a folder or bucket, and upload it with the hub's own client")
    return path


class Output(Section):
    """Where the captions are written."""

    path: Annotated[str, Field(min_length=1), AfterValidator(_absolute), AfterValidator(_writable)]
    """The output folder, local, s3://, gs:// or az://. On a cluster it must be the same folder on every node. If it
    holds an earlier run of the same recipe, that run is resumed."""
    rows_per_object: Positive = 2048
    """The minimum number of rows in one parquet object (the last ones may have fewer). Rows that are not yet written
    are lost when a node dies, so a lower value loses less work, and a higher one writes fewer objects."""
    stop_s: Annotated[float, Field(ge=0, le=600)] = 10
    """The time for committing what is finished when the run is stopped by Ctrl-C, SIGTERM or `ray job stop`, in
    seconds. Captions that are not finished are cut short and left to the next run. `ray job stop` itself gives a job 3
    seconds, or RAY_JOB_STOP_WAIT_TIME_S."""


class Storage(Section):
    """How stores are accessed. `timeout_s` is for all of them, `anonymous` for all but the hub, the rest for `s3://`.

    Credentials come from the environment of every node, for S3 by boto3's usual chain, never from the recipe.
    """

    endpoint: Annotated[str | None, BeforeValidator(_service_url)] = None
    """The address of an S3-compatible store, such as https://storage.example.org. If left out, Amazon S3."""
    region: str | None = None
    """The region of the buckets. If left out, the environment's."""
    profile: str | None = None
    """The profile in the shared AWS credentials file. Every node must have that file."""
    anonymous: bool = False
    """Read public buckets without credentials, also of gs:// and az://."""
    path_style: bool | None = None
    """Put the bucket into the path of the URL, not into the host name. If left out: true with an endpoint, else boto3's
    default."""
    timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = 60
    """The time without an answer, or without further data, after which a request is retried, in seconds. Raise it for
    slow stores. At the start, an `endpoint` that answers nothing is refused after this time if it is given, otherwise
    after 10 seconds."""


MOST_CAPTIONS = 16  # of an image: each is cut to its share of what a row may have (caption/redecode.py)


class Recipe(Section):
    """The whole recipe: one captioning run over one dataset."""

    input: Input
    prepare: Prepare = Prepare()
    model: Model = Model()
    engine: Engine = Engine()
    replicas: Annotated[Replicas, Field(validate_default=True)] = Replicas()
    prompt: Prompt = Prompt()
    prompts: dict[PromptName, PromptText] = {}
    """Several prompts by name, in place of prompt.user: {dense: "Describe…", short: "Shorten this: {dense}"}. A later
    one may use the caption of an earlier one by its name. The column `captions` has a caption for each, and `caption`
    the best: of those whose flags are least severe, the first."""
    sampling: Sampling = Sampling()
    quality: Quality = Quality()
    failures: Failures = Failures()
    storage: Storage = Storage()
    output: Output

    @field_validator("replicas")
    @classmethod
    def _without_gpus(cls, replicas: Replicas, others: ValidationInfo) -> Replicas:
        """Replicas of an endpoint only send requests, so they reserve no GPU, whatever the recipe says. The models
        of the package need none."""
        model = others.data.get("model")
        gpus = {"gpus": 0, "accelerator_type": None}
        tiny = model and model.source in PACKAGED and "gpus" not in replicas.model_fields_set
        return replicas.model_copy(update=gpus) if model and (model.endpoint or tiny) else replicas

    @model_validator(mode="after")
    def _check_system_turn(self) -> "Recipe":
        if self.model.endpoint and self.prompt.system is None:
            raise ValueError(
                "prompt.system: null cannot be kept with model.endpoint, because the service's own chat template may "
                "add a system turn; give it a text"
            )
        return self

    @property
    def named_prompts(self) -> dict[str, str]:
        """The prompts by name, in order; the only one of most recipes is named `prompt`."""
        return self.prompts or {"prompt": self.prompt.user}

    @property
    def captions(self) -> int:
        """How many captions a row has."""
        return len(self.named_prompts) * self.sampling.n

    @model_validator(mode="after")
    def _check_captions(self) -> "Recipe":
        if self.captions > MOST_CAPTIONS:
            raise ValueError(
                f"prompts and sampling.n give {self.captions} captions an image; at most {MOST_CAPTIONS} can be kept, "
                "of 65,536 characters together"
            )
        return self

    @property
    def several(self) -> bool:
        """Whether a row has several captions."""
        return self.captions > 1

    @property
    def text_only(self) -> bool:
        """Whether the model gets prompts without images (recipe/score.py)."""
        return False

    @model_validator(mode="after")
    def _check_prompts(self) -> "Recipe":
        if self.prompts and "user" in self.prompt.model_fields_set:
            raise ValueError("prompt.user and prompts cannot both be given; make prompt.user one of prompts")
        return self

    @model_validator(mode="after")
    def _check_retries(self) -> "Recipe":
        given = "retries" in self.quality.model_fields_set
        for number, fields in enumerate(self.quality.retries if given else ()):
            if "n" in fields:
                raise ValueError(f"quality.retries[{number}]: n cannot be changed; a retry gives one caption")
            try:
                changed = self.sampling.changed(fields)
            except ValueError as error:
                raise ValueError(f"quality.retries[{number}]: {_first_message(error)}") from None
            if changed == self.sampling:
                raise ValueError(
                    f"quality.retries[{number}]: {fields} changes nothing of sampling, and the same sampling often "
                    "gives the same fault; change a field, or leave the entry out"
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
