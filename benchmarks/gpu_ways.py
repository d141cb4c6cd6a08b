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


def recipe_for(images: Path, out: Path, **engine: Any) -> dict[str, Any]:
    """The recipe of all ways, as plain data, with more engine arguments for the model on a GPU."""
    model = images.with_name(MODEL)
    if not model.exists():
        from caprl_ray.commands.demo import (
            demo_recipe,
        )  # late, because it imports Ray, which the other ways do not need

        return demo_recipe([images], out)
    return {
        "input": {"paths": [str(images)]},
        "model": {"source": str(model), "engine": {"load_format": "dummy", "max_model_len": 8192, **engine}},
        "replicas": {"gpus": 1, "max": 1},
        "sampling": {"max_tokens": CAPTION_TOKENS, "ignore_eos": True},
        "output": {"path": str(out)},
    }


def engine(images: Path, out: Path, held: bool) -> None:
    """Run the pipeline's engine alone on pre-rendered requests."""
    engine_alone.caption(parse(recipe_for(images, out)), images, out, beside=True)


def engine_fp8(images: Path, out: Path, held: bool) -> None:
    """The same, with weights of 8 bits, quantized while they are loaded."""
    engine_alone.caption(parse(recipe_for(images, out, quantization="fp8")), images, out, beside=True)


def chat(images: Path, out: Path, held: bool) -> None:
    """Run `vllm.LLM.chat` on the first files."""
    captioning.chat_over_files(parse(recipe_for(images, out)), images, out, CHAT_IMAGES)


def caprl_ray(images: Path, out: Path, held: bool) -> None:
    """Run this pipeline on the files, as `caprl-ray caption` does."""
    captioning.run_pipeline(recipe_for(images, out), out, held)


WAYS: dict[str, Callable[[Path, Path, bool], None]] = {
    "engine": engine,
    "caprl_ray": caprl_ray,
    "engine_fp8": engine_fp8,
    "chat": chat,
}


if __name__ == "__main__":
    WAYS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:] == ["held"])
