"""Code that several benchmarks' ways share. A way is one of the variants that a benchmark compares.

Each way runs in its own process (alone.py). It writes its captions as parquet with the columns `key`, `caption` and
`caption_tokens`. In its folder it notes when rows were captioned (`FINISHED`: lines with wall-clock seconds and a
number of rows), and when its steady state began (`READY`, in the same format).
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from caprl_ray.caption import job
from caprl_ray.caption.job import caption_job
from caprl_ray.engines.vllm_engine import engine_arguments
from caprl_ray.models.resolve import ModelRef, resolve
from caprl_ray.prepare.stage import Prepare
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.watch.batch import Batch

FINISHED, READY = "finished.txt", "ready.txt"
# Images of an engine's first call, which bears the one-time costs. The steady state begins with the second call.
FIRST_CALL = 32
FIRST_SIZE = (640, 480)


def note(file: Path, rows: int) -> None:
    """Append a line: `rows` more rows are captioned now. Short appends are atomic, also from several processes."""
    with open(file, "a", encoding="ascii") as lines:
        lines.write(f"{time.time():.3f} {rows}\n")


def wait_for(file: Path, lines: int = 1) -> None:
    """Wait until the file has this many lines."""
    while not os.path.exists(file) or len(file.read_text(encoding="ascii").splitlines()) < lines:
        time.sleep(0.02)


def write_captions(out: Path, captions: Mapping[str, tuple[str, int]]) -> None:
    """Write caption and tokens of each key to the same columns as the pipeline."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, tokens = zip(*captions.values(), strict=True)
    (out / "data").mkdir()
    columns = {"key": list(captions), "caption": texts, "caption_tokens": tokens}
    pq.write_table(pa.table(columns), out / "data" / "captions.parquet")


def messages(recipe: Recipe, image: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipe's prompt in OpenAI's chat format, with one image before the text."""
    content = [image, {"type": "text", "text": recipe.prompt.user}]
    return [{"role": "system", "content": recipe.prompt.system}, {"role": "user", "content": content}]


def chat_over_files(recipe: Recipe, images: Path, out: Path, most: int | None = None) -> None:
    """Run `vllm.LLM.chat` on the files of a folder; on its first `most` files, if given."""
    files = sorted(images.iterdir())[:most]
    asked = {file.name: {"type": "image_url", "image_url": {"url": file.as_uri()}} for file in files}
    chat(recipe, asked, out, allowed_local_media_path=str(images))


def chat(recipe: Recipe, images: Mapping[str, dict[str, Any]], out: Path, **more: Any) -> None:
    """Run `vllm.LLM.chat` on images in the chat format: a first call with a few, then one call with all others.

    The engine gets the pipeline's arguments for this recipe, and `more`.
    """
    from vllm import LLM, SamplingParams

    llm = LLM(**engine_arguments(recipe, resolve(recipe)), **more)
    asked = [messages(recipe, image) for image in images.values()]
    sampling = SamplingParams(**recipe.sampling.model_dump())
    outputs = llm.chat(asked[:FIRST_CALL], sampling, use_tqdm=False)
    note(out / FINISHED, FIRST_CALL)
    note(out / READY, 0)
    outputs += llm.chat(asked[FIRST_CALL:], sampling, use_tqdm=False)
    note(out / FINISHED, len(asked) - FIRST_CALL)
    choices = [output.outputs[0] for output in outputs]
    write_captions(out, {key: (c.text, len(c.token_ids)) for key, c in zip(images, choices, strict=True)})


def nothing() -> None:
    """Do nothing."""


def substitute(module: Any, name: str, value: Any) -> None:
    """Replace an attribute of a module. Raises AttributeError if the module has no such name, because the benchmark
    would then measure something else."""
    patch.object(module, name, value).start()


def run_pipeline(
    recipe: dict[str, Any],
    out: Path,
    held: bool,
    prepare: type[Prepare] = Prepare,
    begin: Callable[[], None] = nothing,
    captioner: type[Any] | None = None,
) -> None:
    """Run the pipeline. Its progress counter also notes when each batch left its replica.

    With `held`, all images are held back until `replicas.min` engines are ready, so that none is prepared while they
    start. Each engine then first captions FIRST_CALL grey pictures, like the first call of `chat`. Ray's workers import
    this module from the folder of the script that is run, so that script must be in this folder. Each replica that
    holds images back begins with `begin`. `captioner` takes the place of the package's own.
    """
    from caprl_ray import pipeline
    from caprl_ray.caption.stage import Captioner
    from caprl_ray.watch import around
    from caprl_ray.watch.counter import Counter

    class TimedCounter(Counter):
        def add(self, batch: Batch) -> None:
            note(out / FINISHED, batch.rows)
            super().add(batch)

    class ReadyCaptioner(captioner or Captioner):  # type: ignore[misc]
        def __init__(self, *, model: ModelRef, **named: Any) -> None:
            begin()
            super().__init__(model=model, **named)
            width, height = model.size_rule.settled(*FIRST_SIZE)
            grey = memoryview(bytes([128]) * (3 * width * height))
            picture = {"pixels": grey, "pixel_width": width, "pixel_height": height}
            self._run(self._writer.write([picture] * FIRST_CALL))
            note(out / READY, 0)

    class HeldPrepare(prepare):  # type: ignore[misc, valid-type]
        def __call__(self, table: Any) -> Any:
            wait_for(out / READY, recipe.get("replicas", {}).get("min", 1))
            return super().__call__(table)

    substitute(around, "Counter", TimedCounter)
    if held:
        substitute(job, "Captioner", ReadyCaptioner)
        substitute(job, "Prepare", HeldPrepare)
    pipeline.run(caption_job(parse(recipe)))
