"""The ways that gpu.py measures. Each runs in its own process; captioning.py describes what they write.

All ways get the same files and the same recipe. If there is a model folder beside the images, it is the recipe for that
model on one GPU. Otherwise it is the demo's recipe for this machine's CPU.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captioning
import engine_alone

from caprl_ray.recipe.load import parse

MODEL = "model"
CAPTION_TOKENS = 500
CHAT_IMAGES = 600  # `vllm.LLM.chat` returns only when it has captioned all


def recipe_for(images: Path, out: Path, replicas: int = 1, **engine: Any) -> dict[str, Any]:
    """The recipe of all ways, as plain data, with this number of replicas on one GPU and further engine arguments."""
    model = images.with_name(MODEL)
    if not model.exists():
        from caprl_ray.commands.demo import (
            demo_recipe,
        )  # late, because it imports Ray, which the other ways do not need

        own = {"model": {"source": "embedded", "engine": engine}}
        return demo_recipe([images], out) | own | {"replicas": {"gpus": 0, "min": replicas, "max": replicas}}
    return {
        "input": {"paths": [str(images)]},
        "model": {"source": str(model), "engine": {"load_format": "dummy", "max_model_len": 8192, **engine}},
        "replicas": {"gpus": 1 / replicas, "min": replicas, "max": replicas},
        "sampling": {"max_tokens": CAPTION_TOKENS, "ignore_eos": True},
        "output": {"path": str(out)},
    }


def engine(images: Path, out: Path, held: bool) -> None:
    """Run the pipeline's engine alone on pre-rendered requests."""
    engine_alone.caption(parse(recipe_for(images, out)), images, out, beside=True)


def chat(images: Path, out: Path, held: bool) -> None:
    """Run `vllm.LLM.chat` on the first files."""
    captioning.chat_over_files(parse(recipe_for(images, out)), images, out, CHAT_IMAGES)


def caprl_ray(images: Path, out: Path, held: bool) -> None:
    """Run this pipeline on the files, as `caprl-ray caption` does."""
    captioning.run_pipeline(recipe_for(images, out), out, held)


def two_replicas(images: Path, out: Path, held: bool) -> None:
    """The same with two replicas on the GPU: two engine cores share the work of the thread that limits one."""
    captioning.run_pipeline(recipe_for(images, out, replicas=2), out, held)


def large_steps(images: Path, out: Path, held: bool) -> None:
    """The same with twice as many tokens in a step: fewer and larger steps of prefill."""
    tokens = 16_384 if images.with_name(MODEL).exists() else 4096
    captioning.run_pipeline(recipe_for(images, out, max_num_batched_tokens=tokens), out, held)


def fp8(images: Path, out: Path, held: bool) -> None:
    """The same with weights of 8 bits, quantized while they are loaded."""
    captioning.run_pipeline(recipe_for(images, out, quantization="fp8"), out, held)


# The most informative first: the time on a GPU may end before the last.
WAYS: dict[str, Callable[[Path, Path, bool], None]] = {
    "two_replicas": two_replicas,
    "caprl_ray": caprl_ray,
    "large_steps": large_steps,
    "fp8": fp8,
    "engine": engine,
    "chat": chat,
}
HELD = {"caprl_ray": 1, "two_replicas": 2, "large_steps": 1, "fp8": 1}  # replicas that are waited for


if __name__ == "__main__":
    WAYS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:] == ["held"])
