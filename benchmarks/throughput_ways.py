"""The ways that throughput.py measures, each run alone in a process of its own.

Every way gets the same files, prompt, pixel limits, sampling and engine arguments (those of the demonstration's
recipe); captioning.py says what it writes. With `held` the images are held back until its engine is ready.
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
# Without the format the image would come after the text: fewer captions would be right.
MULTIMODAL = {"enabled": True, "chat_template_content_format": "openai"}


def chat(images: Path, out: Path, held: bool) -> None:
    """`vllm.LLM.chat` over the files: a first call of a few images, then one call with all the others."""
    captioning.chat_over_files(parse(demo_recipe([images], out)), images, out)


def stock(images: Path, out: Path, held: bool) -> None:
    """The stock processor of `ray.data.llm` on `read_images`, with its stages as they come.

    Each of them reserves a core, and together they wait for ever on two: Ray is told of more.
    """
    _stock(images, out, {"prepare_multimodal_stage": MULTIMODAL}, num_cpus=8)


def stock_tuned(images: Path, out: Path, held: bool) -> None:
    """The same made as fast as its options allow.

    vLLM tokenizes and detokenizes by itself, which saves two processes; stages that mostly wait reserve no core, so
    that reading gets them.
    """
    stages = {
        "prepare_multimodal_stage": MULTIMODAL | {"num_cpus": 0},
        "chat_template_stage": {"enabled": True, "num_cpus": 0},
        "tokenize_stage": False,
        "detokenize_stage": False,
    }
    _stock(images, out, stages, num_cpus=None)


def _stock(images: Path, out: Path, stages: dict[str, Any], num_cpus: int | None) -> None:
    """Run the stock processor; the source's pixels are not carried beside the image made of them ."""
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
    """This pipeline on the files, as `caprl-ray caption` runs it."""
    captioning.run_pipeline(demo_recipe([images], out), out, held)


def caprl_ray_s3(images: Path, out: Path, held: bool) -> None:
    """This pipeline with the same images and its output on the S3 server that AWS_ENDPOINT_URL names."""
    storage = {"endpoint": os.environ["AWS_ENDPOINT_URL"], "region": "us-east-1", "path_style": True}
    recipe = demo_recipe([], out) | {"storage": storage}
    recipe["input"] = {"paths": [f"s3://{BUCKET}/{images.name}/"]}
    recipe["output"] = {"path": f"s3://{BUCKET}/{out.name}"}
    captioning.run_pipeline(recipe, out, held)


def engine(images: Path, out: Path, held: bool) -> None:
    """The pipeline's engine on requests that were rendered beforehand."""
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
    """The stock processor's answer for one row."""
    note(out / FINISHED, 1)
    key, tokens = os.path.basename(row["path"]), int(row["num_generated_tokens"])
    return {"key": key, "caption": row["generated_text"], "caption_tokens": tokens}


if __name__ == "__main__":
    WAYS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:] == ["held"])
