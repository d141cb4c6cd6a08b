"""All uses of internals of vLLM and of Python's forkserver. Each function makes an engine faster; none is required.

If this vLLM has no such place, or CAPRL_RAY_PLAIN=1 is set, the engine uses vLLM's public interface
(cluster/optional.py). All imports of vLLM are inside functions.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from typing import Any

from caprl_ray.cluster.optional import ABSENT, miss, optional, plain

FORKED = "an engine core that is forked with its imports done"
RENDERED = "images rendered beside vLLM's frontend"
COUNTED = "steps counted where the core's answers arrive"
CHUNKED = "tokens sent by the engine core in chunks"
SELDOM = "loops looked for at every 32nd token only"
STOPPED = "loops stopped while they are generated"
METRICS = "the engine's own metrics"

# At every token of every sequence, vLLM compares 32 patterns: 10 to 60 microseconds in the single thread of the
# engine's core. A loop continues, so it can be found a few tokens later.
LOOK_EVERY = 32

# vLLM's words for a core process that died while it started.
CORE_DIED = "core initialization failed"
# And for a request with more tokens than the context.
TOO_LONG = ("max_model_len", "longer than")


def core_died(error: BaseException) -> bool:
    """Whether the core died while it started. vLLM has no exception of its own for that."""
    return CORE_DIED in str(error)


def too_long(error: BaseException) -> bool:
    """Whether a request was refused because its prompt and image have more tokens than the context.

    vLLM's validation error names the parameter, but only where the frontend finds it. The core's input check has only a
    text.
    """
    named = getattr(error, "parameter", None)
    return named in ("input_text", "input_tokens") or any(words in str(error) for words in TOO_LONG)


@contextmanager
def core_context(context: Callable[[], Any]) -> Iterator[None]:
    """Let vLLM start its core through our multiprocessing context, while the block runs (core_process.py)."""

    def reach() -> Any:
        from vllm.v1.engine import utils

        utils.get_mp_context  # noqa: B018 (raises AttributeError where vLLM has no such name)
        return utils

    utils = optional(FORKED, reach)
    if utils is None:
        yield
        return
    spawning = utils.get_mp_context
    utils.get_mp_context = context
    try:
        yield
    finally:
        utils.get_mp_context = spawning


def end_forkserver() -> None:
    """End this process's forkserver and reap it. Python ends it only with its parent."""
    with suppress(OSError, AttributeError):  # its socket lies in a temporary folder, which may have been cleaned
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


def can_chunk() -> bool:
    """Whether this vLLM's core computes its steps where `send_in_chunks` expects them."""
    return optional(CHUNKED, _steps) is not None


def send_in_chunks(pass_on: Callable[[dict[int, Any]], dict[int, Any]]) -> None:
    """Let `pass_on` decide what the core of this process sends after each step (chunks.py). Call it in the core."""
    core, names = _steps()
    for name in names:
        setattr(core, name, _chunked(getattr(core, name), pass_on))


def _steps() -> tuple[Any, list[str]]:
    """vLLM's class of cores, and the names of its methods that compute a step."""
    from vllm.v1.engine.core import EngineCore

    EngineCore.step  # noqa: B018 (raises AttributeError where vLLM has no such name)
    return EngineCore, [name for name in ("step", "step_with_batch_queue") if hasattr(EngineCore, name)]


def _chunked(step: Callable[[Any], Any], pass_on: Callable[[dict[int, Any]], dict[int, Any]]) -> Callable[[Any], Any]:
    def chunked(core: Any) -> Any:
        match step(core):
            case (dict() as outputs, executed):
                return pass_on(outputs), executed
            case other:  # nothing was computed, or this vLLM answers in another way
                return other

    return chunked


def sampling_classes(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of vLLM's SamplingParams, with vLLM's own classes in place of plain data.

    Without the detection of loops if this vLLM has none.
    """
    from vllm import sampling_params

    structured, detection = fields.get("structured_outputs"), fields.pop("repetition_detection")
    if structured:
        fields |= {"structured_outputs": sampling_params.StructuredOutputsParams(**structured)}
    if detection:
        kind = getattr(sampling_params, "RepetitionDetectionParams", None)
        if kind is None:
            miss(STOPPED)
        else:
            fields |= {"repetition_detection": kind(**detection)}
    return fields


def look_seldom_for_loops() -> None:
    """Let the core of this process look for loops at every LOOK_EVERYth token. Call it in the core, which has vLLM."""

    def reach() -> None:
        utils: Any = sys.modules["vllm.v1.core.sched.utils"]
        every = utils.check_sequence_repetition

        def seldom(token_ids: Any, params: Any) -> bool:
            return len(token_ids) % LOOK_EVERY == 0 and bool(every(token_ids, params))

        utils.check_sequence_repetition = seldom

    optional(SELDOM, reach)


def count_answers(llm: Any, count: Callable[[], None]) -> None:
    """Call `count` whenever the core of an AsyncLLM sends output, that is, in each step with a token for any row.

    It is never called if this vLLM has no such place, or receives in another way. The public way is a statistics
    logger, which computes statistics for every token and keeps Prometheus metrics: 0.4 ms more per image for the 23
    tokens of the embedded model, a fifth of all work in this process.
    """

    def reach() -> None:
        receive = llm.engine_core.get_output_async

        async def counted() -> Any:
            outputs = await receive()
            count()
            return outputs

        llm.engine_core.get_output_async = counted

    optional(COUNTED, reach)


def metrics_loggers() -> list[Any]:
    """vLLM's loggers of its statistics that make them metrics of Ray. They cost time for every token."""

    def reach() -> list[Any]:
        from ray.util import metrics
        from vllm.v1.metrics import ray_wrappers

        # vLLM disables Ray's metrics if Ray Serve cannot be imported, although it needs nothing of it here.
        ray_wrappers.ray_metrics = ray_wrappers.ray_metrics or metrics
        return [ray_wrappers.RayPrometheusStatLogger]

    return optional(METRICS, reach) or []


async def rendered(llm: Any, raw: dict[str, Any]) -> Any:
    """A raw prompt as vLLM's frontend renders it for its core; the raw prompt itself if this vLLM has no such place."""
    try:
        if not plain():
            from vllm.renderers.inputs.preprocess import parse_model_prompt

            (result,) = await llm.renderer.render_cmpl_async([parse_model_prompt(llm.model_config, raw)])
            return result
    except ABSENT:
        pass
    miss(RENDERED)
    return raw


def engine_input(token_ids: list[int], placeholders: Any, image: dict[str, Any], name: str) -> Any:
    """A rendered request of one image with other pixels, as vLLM's renderer returns it.

    Args:
        token_ids: the prompt's tokens.
        placeholders: the place of the image among them.
        image: `pixel_values` as a tensor and the field by which vLLM batches it; the rest as vLLM rendered it.
        name: the image's name in the engine's caches; it must be unique.
    """
    from vllm.multimodal.inputs import MultiModalFieldElem, MultiModalKwargsItem, MultiModalKwargsItems

    patches, field = image["pixel_values"]
    item = MultiModalKwargsItem({**image, "pixel_values": MultiModalFieldElem(data=patches, field=field)})
    return {
        "type": "multimodal",
        "prompt_token_ids": list(token_ids),
        "mm_kwargs": MultiModalKwargsItems({"image": [item]}),
        "mm_hashes": {"image": [name]},
        "mm_placeholders": placeholders,
    }


def gpu_memory() -> int | None:
    """The bytes of this process's first GPU; None if they cannot be told.

    vLLM's platform asks the driver's management library. So this process gets no CUDA context of its own, with which
    the engine's processes could not be forked.
    """

    def reach() -> int | None:
        from vllm.platforms import current_platform

        if not current_platform.is_cuda_alike():
            return None
        return int(current_platform.get_device_total_memory())

    return optional("defaults that fit the GPU's memory", reach)


def gpu_load() -> tuple[float, int] | None:
    """The utilization of this process's first GPU, 0 to 1, and the bytes in use on it; None if the driver does not
    report them.

    vLLM brings its own binding of the driver's management library, so that no other one is needed.
    """

    def reach() -> tuple[float, int] | None:
        from vllm.platforms import current_platform
        from vllm.third_party import pynvml

        if not current_platform.is_cuda():
            return None
        with suppress(pynvml.NVMLError, ValueError, IndexError):
            pynvml.nvmlInit()
            gpu = pynvml.nvmlDeviceGetHandleByIndex(current_platform.device_id_to_physical_device_id(0))
            busy = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100
            return float(busy), int(pynvml.nvmlDeviceGetMemoryInfo(gpu).used)
        return None

    return optional("how busy the GPU is", reach)
