"""The ways that throughput.py measures, each run alone in a process of its own.

Every way gets the same files, prompt, pixel limits, sampling and engine arguments (those of the demonstration's
recipe), and writes its captions as parquet with the columns `key`, `caption` and `caption_tokens`. Into its folder it
also writes when rows were captioned (`FINISHED`: lines of wall-clock seconds and rows) and, with `held`, when its
engine was ready (`READY`); `held` keeps the images back until then, so that none is prepared while the engine starts.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from caprl_ray.demo import demo_recipe
from caprl_ray.engines.vllm_engine import engine_arguments
from caprl_ray.model import resolve
from caprl_ray.recipe import Recipe, parse

FINISHED, READY = "finished.txt", "ready.txt"
BUCKET = "throughput"
STOCK_BATCH = 32
# Without the format the image would come after the text: fewer captions would be right.
MULTIMODAL = {"enabled": True, "chat_template_content_format": "openai"}
# The first call of `chat`: it takes what only happens once, and the second call is the steady state.
FIRST_CALL = 32


def note(file: str, rows: int) -> None:
    """One line: so many more rows are captioned now. Short appends are whole, also from several processes."""
    with open(file, "a", encoding="ascii") as lines:
        lines.write(f"{time.time():.3f} {rows}\n")


def wait_for(file: str) -> None:
    """Return when the file exists."""
    while not os.path.exists(file):
        time.sleep(0.02)


def chat(images: Path, out: Path, held: bool) -> None:
    """`vllm.LLM.chat` over the files: a first call of a few images, then one call with all the others."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from vllm import LLM, SamplingParams

    recipe, arguments = _engine(images, out)
    llm = LLM(**arguments, allowed_local_media_path=str(images))
    files = sorted(images.iterdir())
    asked = [_messages(recipe, {"type": "image_url", "image_url": {"url": file.as_uri()}}) for file in files]
    sampling = SamplingParams(**recipe.sampling.model_dump())
    outputs = llm.chat(asked[:FIRST_CALL], sampling, use_tqdm=False)
    note(str(out / FINISHED), FIRST_CALL)
    outputs += llm.chat(asked[FIRST_CALL:], sampling, use_tqdm=False)
    note(str(out / FINISHED), len(asked) - FIRST_CALL)
    columns = {
        "key": [file.name for file in files],
        "caption": [output.outputs[0].text for output in outputs],
        "caption_tokens": [len(output.outputs[0].token_ids) for output in outputs],
    }
    (out / "data").mkdir()
    pq.write_table(pa.table(columns), out / "data" / "captions.parquet")


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

    recipe, arguments = _engine(images, out)
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
    _run(demo_recipe([images], out), out, held)


def caprl_ray_s3(images: Path, out: Path, held: bool) -> None:
    """This pipeline with the same images and its output on the S3 server that AWS_ENDPOINT_URL names."""
    storage = {"endpoint": os.environ["AWS_ENDPOINT_URL"], "region": "us-east-1", "path_style": True}
    recipe = demo_recipe([], out) | {"storage": storage}
    recipe["input"] = {"paths": [f"s3://{BUCKET}/{images.name}/"]}
    recipe["output"] = {"path": f"s3://{BUCKET}/{out.name}"}
    _run(recipe, out, held)


WAYS: dict[str, Callable[[Path, Path, bool], None]] = {
    "chat": chat,
    "stock": stock,
    "stock_tuned": stock_tuned,
    "caprl_ray": caprl_ray,
    "caprl_ray_s3": caprl_ray_s3,
}


def _run(recipe: dict[str, Any], out: Path, held: bool) -> None:
    """Run the pipeline with a progress counter that also writes down when each batch left its replica."""

    from caprl_ray import pipeline
    from caprl_ray.captioner import Captioner
    from caprl_ray.counter import Counter
    from caprl_ray.prepare_stage import Prepare

    class TimedCounter(Counter):
        def add(self, rows: int, *others: Any) -> None:
            note(str(out / FINISHED), rows)
            super().add(rows, *others)

    class ReadyCaptioner(Captioner):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            note(str(out / READY), 0)

    class HeldPrepare(Prepare):
        def __call__(self, table: Any) -> Any:
            wait_for(str(out / READY))
            return super().__call__(table)

    pipeline.Counter = TimedCounter
    if held:
        pipeline.Captioner, pipeline.Prepare = ReadyCaptioner, HeldPrepare
    pipeline.run(parse(recipe))


def _engine(images: Path, out: Path) -> tuple[Recipe, dict[str, Any]]:
    """The demonstration's recipe and the engine arguments that the pipeline makes of it."""
    recipe = parse(demo_recipe([images], out))
    return recipe, engine_arguments(recipe, resolve(recipe))


def _messages(recipe: Recipe, image: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipe's prompt in the chat format of OpenAI, with one image before the text."""
    content = [image, {"type": "text", "text": recipe.prompt.user}]
    return [{"role": "system", "content": recipe.prompt.system}, {"role": "user", "content": content}]


def _asked(recipe: Recipe, row: dict[str, Any]) -> dict[str, Any]:
    """The stock processor's request for one row of `read_images`."""
    from PIL import Image

    image = {"type": "image_pil", "image_pil": Image.fromarray(row["image"])}
    return {"messages": _messages(recipe, image), "sampling_params": recipe.sampling.model_dump(), "image": None}


def _kept(out: Path, row: dict[str, Any]) -> dict[str, Any]:
    """The stock processor's answer for one row."""
    note(str(out / FINISHED), 1)
    key, tokens = os.path.basename(row["path"]), int(row["num_generated_tokens"])
    return {"key": key, "caption": row["generated_text"], "caption_tokens": tokens}


if __name__ == "__main__":
    WAYS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:] == ["held"])
