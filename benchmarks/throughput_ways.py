"""The ways that throughput.py measures. Each runs in its own process; captioning.py describes what it writes.

All ways get the same files, prompt, pixel limits, sampling and engine arguments, which are those of the demo's recipe.
With `held`, the images are held back until the engine is ready.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import captioning
import engine_alone
from captioning import FINISHED, messages, note

from caprl_ray.commands.demo import demo_recipe
from caprl_ray.engines.vllm_engine import engine_arguments
from caprl_ray.models.resolve import resolve
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe

BUCKET = "throughput"
STOCK_BATCH = 32
# Without this format the image comes after the text, and fewer captions are correct.
MULTIMODAL = {"enabled": True, "chat_template_content_format": "openai"}


def chat(images: Path, out: Path, held: bool) -> None:
    """Run `vllm.LLM.chat` on the files: a first call with a few images, then one call with all others."""
    captioning.chat_over_files(parse(demo_recipe([images], out)), images, out)


def stock(images: Path, out: Path, held: bool) -> None:
    """Run the stock processor of `ray.data.llm` on `read_images`, with its default stages.

    Each stage reserves a core, and with two cores they would wait for ever. So Ray is told that there are more.
    """
    _stock(images, out, {"prepare_multimodal_stage": MULTIMODAL}, num_cpus=8)


def stock_tuned(images: Path, out: Path, held: bool) -> None:
    """Run the stock processor, made as fast as its options allow.

    vLLM tokenizes and detokenizes by itself, which saves two processes. Stages that mostly wait reserve no core, so
    that reading gets the cores.
    """
    stages = {
        "prepare_multimodal_stage": MULTIMODAL | {"num_cpus": 0},
        "chat_template_stage": {"enabled": True, "num_cpus": 0},
        "tokenize_stage": False,
        "detokenize_stage": False,
    }
    _stock(images, out, stages, num_cpus=None)


def _stock(images: Path, out: Path, stages: dict[str, Any], num_cpus: int | None) -> None:
    """Run the stock processor. The row's own pixels are dropped once the request holds the image."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    recipe = parse(demo_recipe([images], out))
    arguments = engine_arguments(recipe, resolve(recipe))
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = vLLMEngineProcessorConfig(
        model_source=arguments.pop("model"),
        engine_kwargs=arguments,
        batch_size=STOCK_BATCH,
        concurrency=1,
        **stages,
        placement_group_config={"bundles": [{"CPU": 0.01}]},
        log_engine_metrics=False,
    )
    processor = build_processor(config, preprocess=partial(_asked, recipe), postprocess=partial(_kept, out))
    rows = ray.data.read_images(str(images), mode="RGB", include_paths=True, num_cpus=0.5)
    processor(rows).write_parquet(str(out / "data"))


def caprl_ray(images: Path, out: Path, held: bool) -> None:
    """Run this pipeline on the files, as `caprl-ray caption` does."""
    captioning.run_pipeline(demo_recipe([images], out), out, held)


def caprl_ray_s3(images: Path, out: Path, held: bool) -> None:
    """Run this pipeline with images and output on the S3 server at AWS_ENDPOINT_URL."""
    storage = {"endpoint": os.environ["AWS_ENDPOINT_URL"], "region": "us-east-1", "path_style": True}
    recipe = demo_recipe([], out) | {"storage": storage}
    recipe["input"] = {"paths": [f"s3://{BUCKET}/{images.name}/"]}
    recipe["output"] = {"path": f"s3://{BUCKET}/{out.name}"}
    captioning.run_pipeline(recipe, out, held)


def engine(images: Path, out: Path, held: bool) -> None:
    """Run the pipeline's engine alone on pre-rendered requests."""
    engine_alone.caption(parse(demo_recipe([images], out)), images, out)


WAYS: dict[str, Callable[[Path, Path, bool], None]] = {
    "engine": engine,
    "chat": chat,
    "stock": stock,
    "stock_tuned": stock_tuned,
    "caprl_ray": caprl_ray,
    "caprl_ray_s3": caprl_ray_s3,
}


def _asked(recipe: Recipe, row: dict[str, Any]) -> dict[str, Any]:
    """The stock processor's request for one row of `read_images`."""
    from PIL import Image

    image = {"type": "image_pil", "image_pil": Image.fromarray(row["image"])}
    return {"messages": messages(recipe, image), "sampling_params": recipe.sampling.model_dump(), "image": None}


def _kept(out: Path, row: dict[str, Any]) -> dict[str, Any]:
    """The output row for the stock processor's answer to one row."""
    note(out / FINISHED, 1)
    key, tokens = os.path.basename(row["path"]), int(row["num_generated_tokens"])
    return {"key": key, "caption": row["generated_text"], "caption_tokens": tokens}


if __name__ == "__main__":
    WAYS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:] == ["held"])
