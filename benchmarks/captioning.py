"""What the ways of several benchmarks have in common, each run alone in a process of its own (alone.py).

Every way writes its captions as parquet with the columns `key`, `caption` and `caption_tokens`. Into its folder it
also writes when rows were captioned (`FINISHED`: lines of wall-clock seconds and rows) and when its steady state began
(`READY`).
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caprl_ray.caption import job
from caprl_ray.caption.job import caption_job
from caprl_ray.engines.vllm_engine import engine_arguments
from caprl_ray.models.resolve import resolve
from caprl_ray.prepare.stage import Prepare
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe

FINISHED, READY = "finished.txt", "ready.txt"
# The first call of an engine: it takes what only happens once, and the second call is the steady state.
FIRST_CALL = 32
FIRST_SIZE = (640, 480)


def note(file: Path, rows: int) -> None:
    """One line: so many more rows are captioned now. Short appends are whole, also from several processes."""
    with open(file, "a", encoding="ascii") as lines:
        lines.write(f"{time.time():.3f} {rows}\n")


def wait_for(file: Path) -> None:
    """Return when the file exists."""
    while not os.path.exists(file):
        time.sleep(0.02)


def write_captions(out: Path, captions: Mapping[str, tuple[str, int]]) -> None:
    """Write caption and tokens of each key as the pipeline would."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, tokens = zip(*captions.values(), strict=True)
    (out / "data").mkdir()
    columns = {"key": list(captions), "caption": texts, "caption_tokens": tokens}
    pq.write_table(pa.table(columns), out / "data" / "captions.parquet")


def messages(recipe: Recipe, image: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipe's prompt in the chat format of OpenAI, with one image before the text."""
    content = [image, {"type": "text", "text": recipe.prompt.user}]
    return [{"role": "system", "content": recipe.prompt.system}, {"role": "user", "content": content}]


def chat_over_files(recipe: Recipe, images: Path, out: Path) -> None:
    """`vllm.LLM.chat` over the files of a folder."""
    asked = {file.name: {"type": "image_url", "image_url": {"url": file.as_uri()}} for file in sorted(images.iterdir())}
    chat(recipe, asked, out, allowed_local_media_path=str(images))


def chat(recipe: Recipe, images: Mapping[str, dict[str, Any]], out: Path, **more: Any) -> None:
    """`vllm.LLM.chat` over images in the chat format: a first call of a few, then one call with all the others.

    The engine gets the arguments that the pipeline makes of the recipe, and `more`.
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


def run_pipeline(recipe: dict[str, Any], out: Path, held: bool, prepare: type[Prepare] = Prepare) -> None:
    """Run the pipeline with a progress counter that also notes when each batch left its replica.

    With `held` all images are held back until an engine is ready, so that none is prepared while it starts; and each
    engine then has had a first call, as that of `chat`, of as many grey pictures. Ray's workers import this module,
    from the folder of the script that is run: it must lie beside this one.
    """
    from caprl_ray import pipeline
    from caprl_ray.caption.stage import Captioner
    from caprl_ray.watch.counter import Counter

    class TimedCounter(Counter):
        def add(self, rows: int, *others: Any) -> None:
            note(out / FINISHED, rows)
            super().add(rows, *others)

    class ReadyCaptioner(Captioner):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            width, height = self._model.size_rule.settled(*FIRST_SIZE)
            grey = memoryview(bytes([128]) * (3 * width * height))
            picture = {"pixels": grey, "pixel_width": width, "pixel_height": height}
            self._run(self._caption_all([picture] * FIRST_CALL))
            note(out / READY, 0)

    class HeldPrepare(prepare):  # type: ignore[misc, valid-type]
        def __call__(self, table: Any) -> Any:
            wait_for(out / READY)
            return super().__call__(table)

    pipeline.Counter = TimedCounter
    if held:
        job.Captioner, job.Prepare = ReadyCaptioner, HeldPrepare
    pipeline.run(caption_job(parse(recipe)))
