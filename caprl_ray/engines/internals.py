"""Everything that reaches into internals of vLLM and of Python's forkserver. Each function makes an engine faster; none
is needed.

If this vLLM has no such place, or CAPRL_RAY_PLAIN=1 is set, the engine uses vLLM's public interface
(cluster/optional.py). All imports of vLLM are inside functions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from typing import Any

from caprl_ray.cluster.optional import optional, plain

FORKED = "an engine core that is forked with its imports done"
RENDERED = "images rendered beside vLLM's frontend"
COUNTED = "steps counted where the core's answers arrive"

# vLLM's words for a core process that died while it started.
CORE_DIED = "core initialization failed"


def core_died(error: BaseException) -> bool:
    """Whether the core died while it started. vLLM has no exception of its own for that."""
    return CORE_DIED in str(error)


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


def count_answers(llm: Any, count: Callable[[], None]) -> bool:
    """Call `count` whenever the core of an AsyncLLM sends something: at each step that gave any row a token.

    Returns whether this vLLM has the place. vLLM's public way is a logger of its statistics. It computes them for every
    token and keeps Prometheus metrics: 0.4 ms an image more for the 23 tokens of the embedded model, a fifth of all the
    work in this process.
    """

    def reach() -> bool:
        receive = llm.engine_core.get_output_async

        async def counted() -> Any:
            outputs = await receive()
            count()
            return outputs

        llm.engine_core.get_output_async = counted
        return True

    return bool(optional(COUNTED, reach))


async def rendered(llm: Any, raw: dict[str, Any]) -> Any:
    """A raw prompt as vLLM's frontend renders it for its core; the raw prompt itself if this vLLM has no such place."""
    if plain():
        optional(RENDERED, lambda: None)
        return raw

    def reach() -> Any:
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        return llm.renderer.render_cmpl_async([parse_model_prompt(llm.model_config, raw)])

    rendering = optional(RENDERED, reach)
    if rendering is None:
        return raw
    (result,) = await rendering
    return result


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
