"""The ways that gpu.py measures, each run alone in a process of its own; captioning.py says what they write.

Every way gets the same files and the same recipe: that of the model beside them, for one GPU, or, where there is none,
the demonstration's for this machine's CPU.
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


def recipe_for(images: Path, out: Path) -> dict[str, Any]:
    """The recipe of every way, as the pipeline is given it."""
    model = images.with_name(MODEL)
    if not model.exists():
        from caprl_ray.commands.demo import demo_recipe  # imports Ray, which the other ways do without

        return demo_recipe([images], out)
    return {
        "input": {"paths": [str(images)]},
        "model": {"source": str(model), "engine": {"load_format": "dummy", "max_model_len": 8192}},
        "replicas": {"gpus": 1, "max": 1},
        "sampling": {"max_tokens": CAPTION_TOKENS, "ignore_eos": True},
        "output": {"path": str(out)},
    }


def engine(images: Path, out: Path, held: bool) -> None:
    """The pipeline's engine alone, fed with requests that were rendered beforehand."""
    engine_alone.caption(parse(recipe_for(images, out)), images, out)


def chat(images: Path, out: Path, held: bool) -> None:
    """`vllm.LLM.chat` over the files."""
    captioning.chat_over_files(parse(recipe_for(images, out)), images, out)


def caprl_ray(images: Path, out: Path, held: bool) -> None:
    """This pipeline on the files, as `caprl-ray caption` runs it."""
    captioning.run_pipeline(recipe_for(images, out), out, held)


WAYS: dict[str, Callable[[Path, Path, bool], None]] = {"engine": engine, "chat": chat, "caprl_ray": caprl_ray}


if __name__ == "__main__":
    WAYS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:] == ["held"])
