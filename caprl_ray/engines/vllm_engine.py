"""vLLM in this process (docs/design.md, D8): one AsyncLLM whose core, a process of its own, runs the model."""

import asyncio
import gc
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pydantic

from caprl_ray.cluster import cores
from caprl_ray.cluster.optional import miss
from caprl_ray.engines import choices, core_process, gpu, internals
from caprl_ray.engines.concurrency import max_num_seqs
from caprl_ray.engines.internals import CORE_DIED, core_died
from caprl_ray.engines.protocol import AS_THE_RECIPE, Completion, EngineDied, Picture
from caprl_ray.engines.reaper import Reaper
from caprl_ray.engines.shared_text import SharedText
from caprl_ray.engines.sharing import starting_alone
from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.models import weights
from caprl_ray.models.chat import ChatFormat
from caprl_ray.models.resolve import ModelRef
from caprl_ray.recipe.sections import Recipe
from caprl_ray.recipe.turns import Turns
from caprl_ray.text import plain

# An image of the default budget has 1,280 tokens and a caption at most 2,048, which leaves room for a long prompt. One
# such sequence has 302 MB of keys and values, so every GPU that holds the model has room for it.
DEFAULT_CONTEXT = 8192
# An engine that has not started after this many seconds hangs: the largest models load and compile in a third of it.
START_TIMEOUT_S = 1800.0

# Processor time of an engine on a CPU that counts as a step. One step of a large model on few cores may take longer
# than the stall timeout. A core that hangs uses next to none. (On a GPU it may wait in a loop, so there it proves
# nothing.)
STEP_CPU_S = 5.0

# The same for every model and machine. The recipe's own values override them.
COMMON: dict[str, Any] = {
    "load_format": "safetensors",  # vLLM's own default falls back to pickles
    "limit_mm_per_prompt": {"image": 1, "video": 0},
    "mm_processor_cache_gb": 0,  # every image is seen once
    "enable_prefix_caching": False,  # prompts differ from the image on, which comes first
    "disable_log_stats": True,  # they cost time for every token; a recipe that wants them has them as metrics of Ray
}
CPU: dict[str, Any] = {
    "dtype": "float32",  # bfloat16 is emulated on most CPUs
    "enforce_eager": True,  # compiling takes longer than a small run
    "distributed_executor_backend": "uni",
    # Prompts are computed whole. vLLM 0.29 cannot compute one in parts on a CPU if its request has a seed: it sets the
    # offset of the request's generator back, which ends the core, because generators of a CPU have none.
    "enable_chunked_prefill": False,
}
CPU_ENVIRONMENT = {
    # GiB of KV cache. vLLM's own default takes half of the machine's memory.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # The core runs the model itself. By default vLLM gives it a worker process and spins while it waits for answers: a
    # quarter of all CPU time on two cores (benchmarks/throughput.py).
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
# vLLM's kinds of outputs: one for a whole caption, or one for each piece of it.
WHOLE, PIECES = "FINAL_ONLY", "DELTA"
# In Ray's actors vLLM spawns anyway. A forked core would not carry the mark of its reaper.
ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}


def engine_arguments(recipe: Recipe, model: ModelRef) -> dict[str, Any]:
    """The arguments of vLLM's AsyncEngineArgs for this recipe on this node: our defaults, then the recipe's own."""
    arguments: dict[str, Any] = {
        "model": model.path,
        "revision": model.revision,
        "max_model_len": min(DEFAULT_CONTEXT, model.context or DEFAULT_CONTEXT),
        **COMMON,
    }
    if limits := model.size_rule.engine_limits():
        arguments["mm_processor_kwargs"] = limits
    if recipe.image_again or recipe.text_only:  # their prompts are equal up to the end of the image, or of the caption
        arguments["enable_prefix_caching"] = True
    if recipe.text_only:
        arguments["limit_mm_per_prompt"] = {"image": 0, "video": 0}  # the vision tower is not loaded
    if recipe.replicas.gpus == 0:
        arguments |= CPU | {"max_num_seqs": max_num_seqs(recipe)}
    else:
        arguments |= gpu.gpu_defaults(gpu.memory_bytes(), recipe.replicas.gpus)
    if recipe.replicas.gpus > 1:
        arguments["distributed_executor_backend"] = "mp"  # the actor's own GPUs, without a placement group
    arguments |= recipe.model.engine
    if "enable_chunked_prefill" not in recipe.model.engine and _has_small_steps(arguments):
        arguments.pop("enable_chunked_prefill", None)
    return arguments


def _has_small_steps(arguments: Mapping[str, Any]) -> bool:
    """Whether a prompt may be longer than a step. vLLM refuses that unless it computes prompts in parts."""
    tokens, context = arguments.get("max_num_batched_tokens"), arguments.get("max_model_len")
    return isinstance(tokens, int) and (not isinstance(context, int) or tokens < context)


def _on_this_node(recipe: Recipe, model: ModelRef) -> ModelRef:
    """The model where the engine finds it: fetched from a bucket, checked in a folder; a hub id as it is."""
    if model.stored:
        folder = weights.fetch(model.stored, weights.cache_folder(recipe.model.cache_dir))
        return replace(model, path=str(folder))
    if os.path.isabs(model.path):
        weights.check_folder(Path(model.path))
    return model


class VllmEngine:
    """A MortalEngine on vLLM's AsyncLLM; make one with `start`."""

    def __init__(
        self,
        llm: Any,
        reaper: Reaper,
        chat: Callable[[str | None, bool], ChatFormat],
        processor: Any,
        sampling: Callable[[str, Mapping[str, Any]], Any],
        arguments: dict[str, Any],
        *,
        system: str | None = None,
        on_cpu: bool = False,
    ) -> None:
        from caprl_ray.engines.rendering import Renderer  # imports torch

        self.arguments = arguments
        self._steps = 0
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._renderer = Renderer(llm, getattr(processor, "image_processor", None), self._tokenizer)
        self._shared = SharedText(lambda text, whole: self._tokenizer.encode(text, add_special_tokens=whole))
        self._letters = lru_cache(64)(self._letter_tokens)
        self._llm = llm
        self._reaper = reaper
        self._on_cpu = on_cpu
        self._chat, self._system = chat, system
        self._sampling = sampling
        self._requests = itertools.count()
        self.control_tokens: Sequence[str] = list(self._tokenizer.get_added_vocab())
        # Whether counting of the core's answers is known to work. Until then, captions are requested in pieces, and
        # each piece counts as a step: without steps, a healthy engine would be killed as stalled.
        self._counted = False
        self._tried = asyncio.Event()  # the first request has had an answer
        internals.count_answers(llm, self._answered)

    @classmethod
    async def start(cls, recipe: Recipe, model: ModelRef) -> "VllmEngine":
        """Load the model, and fetch it to this node if needed.

        Raises SystemFailure if something of it does not fit, EngineDied if its core died while it started.
        """
        if recipe.replicas.gpus == 0:
            _prepare_environment(spared=0 if recipe.text_only else 1)
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        reaper = Reaper()
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", compiled(recipe, reaper.folder))
        try:
            with reaper.marking():
                core_process.import_ahead()
            engine = cls._loaded(recipe, _on_this_node(recipe, model), reaper)
            cores.take(reaper.processes())
            # Imported objects stay. Otherwise Python's garbage collector would scan all of them just after the first
            # requests, for a second or two without any other request (vLLM's own server does the same).
            gc.collect()
            gc.freeze()
            return engine
        except BaseException:
            reaper.kill()
            internals.end_forkserver()
            raise

    @classmethod
    def _loaded(cls, recipe: Recipe, model: ModelRef, reaper: Reaper) -> "VllmEngine":
        from transformers import AutoProcessor, AutoTokenizer
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        def sampling(kind: str, changes: Mapping[str, Any]) -> Any:
            own = {name: value for name, value in changes.items() if name not in choices.FIELDS}
            fields = recipe.sampling.changed(own).model_dump(exclude={"n"})
            fields |= {name: value for name, value in changes.items() if name in choices.FIELDS}
            return SamplingParams(**internals.sampling_classes(fields), output_kind=RequestOutputKind[kind])

        try:
            sampling(WHOLE, AS_THE_RECIPE)
            files = AutoTokenizer if recipe.text_only else AutoProcessor
            processor = files.from_pretrained(model.path, revision=model.revision)
            arguments = engine_arguments(recipe, model)
            with starting_alone(recipe.replicas.gpus):
                llm = _launched(arguments, reaper, chunked=not recipe.sampling.model_dump().get("stop"))
        # The libraries raise these for arguments and files. A core that dies while it starts is a RuntimeError.
        except (ValueError, TypeError, KeyError, OSError, RuntimeError) as error:
            sentence = f"model.source: {model.label} did not start ({_first_line(error)})"
            if core_died(error):
                raise EngineDied(sentence) from error
            raise SystemFailure(f"{sentence}.") from error

        def apply(messages: Any) -> str:
            return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

        @cache
        def chat(system: str | None, image: bool) -> ChatFormat:
            return ChatFormat.render(apply, system, image=image)

        system = recipe.prompt.system
        chat(system, not recipe.text_only)  # raises for a template whose turns cannot be told apart
        on_cpu = recipe.replicas.gpus == 0
        return cls(llm, reaper, chat, processor, sampling, arguments, system=system, on_cpu=on_cpu)

    @property
    def steps(self) -> int:
        """Grows while the core computes: with each of its answers, and on a CPU with the time that it uses."""
        return self._steps + (int(self._reaper.cpu_seconds() / STEP_CPU_S) if self._on_cpu else 0)

    async def caption(
        self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any] = AS_THE_RECIPE
    ) -> Completion:
        """Caption one picture, or answer. Raises RowFailure `engine_rejected`, or EngineDied when the core is gone."""
        from vllm.exceptions import VLLMClientError, VLLMServerError

        turns, tokens = prompt if isinstance(prompt, Turns) else None, None
        if turns and turns.choices:
            letters, tokens = self._letters(turns.begin, turns.choices)
            turns = replace(turns, begin=letters.begin)
            sampling = {**sampling, **choices.sampling(tokens)}
        try:
            request = await self._request(picture, turns or prompt)
            outputs = await self._outputs(request, sampling)
        except (ValueError, VLLMClientError) as error:  # a fault of this request, not of the engine
            raise _rejected(error) from None
        except VLLMServerError as error:
            raise EngineDied(_first_line(error)) from error
        assert outputs and outputs[-1].finished
        pieces = [piece for output in outputs for piece in output.outputs]
        if pieces[-1].finish_reason == "abort":  # a core that is told to end returns what it has
            raise EngineDied("its core process was told to end")
        return Completion(
            text="".join(piece.text for piece in pieces),
            finish_reason=str(pieces[-1].finish_reason),
            prompt_tokens=len(outputs[-1].prompt_token_ids),
            caption_tokens=sum(len(piece.token_ids) for piece in pieces),
            logprobs=choices.logprobs(pieces, tokens) if tokens else None,
        )

    def _letter_tokens(self, begin: str, letters: tuple[str, ...]) -> tuple[Turns, dict[str, int]]:
        return choices.as_tokens(Turns(user="", begin=begin, choices=letters), self._tokenizer)

    async def _request(self, picture: Picture | None, prompt: str | Turns) -> Any:
        """The input of vLLM's engine: a picture with the user's turn, or turns with a picture or without one."""
        turns = prompt if isinstance(prompt, Turns) else Turns(user=prompt, system=self._system)
        if picture is None:
            return await self._text_request(turns)
        chat = self._chat(turns.system, True)
        return await self._renderer.render(picture, chat.prompt(turns.user) + turns.begin, len(chat.prefix))

    async def _text_request(self, turns: Turns) -> Any:
        """The input for turns without a picture. A beginning that prompts share is tokenized once."""
        chat = self._chat(turns.system, False)
        text, cut = chat.prompt(turns.user) + turns.begin, len(chat.prefix) + turns.shared
        if turns.shared and (tokens := self._shared.tokens(text[:cut], text[cut:])):
            return await internals.rendered(self._llm, {"prompt_token_ids": tokens})
        request = await internals.rendered(self._llm, {"prompt": text})
        if turns.shared:
            self._shared.learn(text[:cut], text[cut:], request.get("prompt_token_ids"))
        return request

    def stop(self) -> None:
        """Kill the core and its workers, and release what belongs to them here."""
        self._reaper.kill()  # first: shutdown would wait for a core that hangs
        self._llm.shutdown()
        internals.end_forkserver()

    async def _outputs(self, request: Any, changes: Mapping[str, Any]) -> list[Any]:
        """All outputs of vLLM for a request. The first request shows whether answers are counted; others wait."""
        number = next(self._requests)
        if number:
            await self._tried.wait()
        kind = WHOLE if self._counted else PIECES
        outputs = []
        try:
            async for output in self._llm.generate(request, self._sampling(kind, changes), f"r{number}"):
                outputs.append(output)
                self._tried.set()
                if kind == PIECES:
                    self._steps += 1
                if not self._counted:
                    miss(internals.COUNTED)
        finally:
            self._tried.set()
        return outputs

    def _answered(self) -> None:
        self._counted = True
        self._steps += 1


def _launched(arguments: dict[str, Any], reaper: Reaper, *, chunked: bool) -> Any:
    """An AsyncLLM whose processes belong to the reaper. Raises what vLLM raises. `chunked`: chunks.py."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        with reaper.marking(), core_process.forked(chunked=chunked) as fault, _time_limit(reaper):
            try:
                loggers = [] if arguments["disable_log_stats"] else internals.metrics_loggers()
                return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=loggers or None)
            except Exception as error:
                if core_died(error) and fault.exists():
                    raise RuntimeError(f"{CORE_DIED}: {fault.read_text(encoding='utf-8')}") from error
                raise
    except Exception as error:
        if reaper.killed:
            raise TimeoutError(f"it did not start within {START_TIMEOUT_S:g} s") from error
        raise


@contextmanager
def _time_limit(reaper: Reaper) -> Iterator[None]:
    """Kill the processes of an engine that takes too long to start. vLLM waits for ever for a core that hangs.

    Kill again and again, because vLLM may start its core only later.
    """
    started = threading.Event()

    def watch() -> None:
        seconds = START_TIMEOUT_S
        while not started.wait(seconds):
            reaper.kill()
            seconds = 0.5

    threading.Thread(target=watch, name="start", daemon=True).start()
    try:
        yield
    finally:
        started.set()


def _prepare_environment(spared: int) -> None:
    """Set vLLM's environment variables for a CPU. The user's own values stay, except the number of threads.

    If no cores are reserved for the engine, `spared` are left to the rest of the pipeline: one where images are
    decoded, as vLLM leaves one to its worker process, and none where only texts are answered. Ray has already set the
    variable to the cores that the actor reserves, so its value here means nothing.
    """
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0":
        threads = len(cores.kept()) or len(os.sched_getaffinity(0)) - spared
        os.environ["OMP_NUM_THREADS"] = str(max(1, threads))


def compiled(recipe: Recipe, temporary: str) -> str:
    """The cache of torch's compiled code: for a GPU beside vLLM's own caches, for the next start. For a CPU nothing is
    compiled."""
    root = os.environ.get("VLLM_CACHE_ROOT") or "~/.cache/vllm"
    return os.path.join(os.path.expanduser(root) if recipe.replicas.gpus else temporary, "torchinductor")


def _rejected(error: Exception) -> RowFailure:
    """The failure of a refused request, without vLLM's text, which may quote the prompt."""
    if internals.too_long(error):
        return RowFailure("prompt_too_long")
    return RowFailure("engine_rejected", type(error).__name__)


def _first_line(error: BaseException) -> str:
    if core_died(error):
        said = _lines(str(error).partition(f"{CORE_DIED}: ")[2])
        return f"its core process died{': ' + said[0] if said else ''}; caprl-ray preflight --debug shows its log"
    if isinstance(error, pydantic.ValidationError):  # the first line only counts the errors
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ").partition(". ")[0][:300].rstrip(".")
    lines = _lines(str(error))
    return lines[0] if lines else type(error).__name__


def _lines(text: str) -> list[str]:
    return [line.strip()[:300].rstrip(".") for line in plain(text).splitlines() if line.strip()]
