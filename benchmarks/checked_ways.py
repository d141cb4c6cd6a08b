"""Ways that run the pipeline with all checks on captions or with none. Each runs in its own process (alone.py)."""

import asyncio
import json
import os
import sys
import threading
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from captioning import READY, run_pipeline
from stub_ways import PassThrough, recipe

from caprl_ray.caption.rules import Rules
from caprl_ray.caption.writer import Writer
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.engines import stub
from caprl_ray.models.resolve import ALLOW_STUB, resolve
from caprl_ray.quality.registry import CHECKS
from caprl_ray.recipe.load import parse

os.environ[ALLOW_STUB] = "1"
LABELLED = Path(__file__).parent / "captions" / "captions.jsonl"
SPENT = "spent.txt"  # lines with wall-clock seconds, and CPU seconds of the replica's process so far
EVERY_S = 0.2
SECONDS, PLACES = 1, 64  # of a caption that is replayed; how many are replayed at once
LENGTHS = 1500, 4000  # characters of the captions that are replayed
TOKENS = 96  # of vLLM's captions; a caption of 500 takes minutes on a CPU


def quality(checks: bool) -> dict[str, Any]:
    """The section: all standard checks and the one of the language, or none. Nothing is captioned a second time."""
    off = {name: "off" for name, check in CHECKS.items() if check.standard}
    chosen = {"language": "en"} if checks else {"checks": off, "limits": {}}
    return {"quality": {**chosen, "retries": [], "self_check": 0}}


def replayed(checks: bool, images: Path, out: Path) -> None:
    """Long labelled captions at a fixed rate, from a stub in place of the engine."""
    os.environ[stub.SECONDS] = f"{SECONDS}-{SECONDS}"
    chosen = recipe(images, out, max_num_seqs=PLACES) | quality(checks)
    run_pipeline(chosen, out, held=True, prepare=PassThrough, begin=partial(replay, out))


def generated(checks: bool, images: Path, out: Path) -> None:
    """The embedded model in vLLM, sampled, and not stopped before TOKENS tokens."""
    sampling = {"temperature": 1.0, "max_tokens": TOKENS, "ignore_eos": True, "repetition_detection": None}
    chosen = demo_recipe([images], out) | quality(checks) | {"sampling": sampling}
    run_pipeline(chosen, out, held=True, begin=partial(tell, out))


def written(checks: bool, rows: int) -> float:
    """CPU ms for writing a row in a replica, with these captions, no Ray, and an engine that answers at once."""
    chosen = parse(recipe(Path("-"), Path("-")) | quality(checks))
    answer_with_labelled()
    writer = Writer(chosen, resolve(chosen), stub.StubEngine(), Rules(chosen.quality, chosen.sampling), lambda: None)
    table = [
        {"unit": 0, "index": n, "pixels": memoryview(bytes(12) + n.to_bytes(4)), "pixel_width": 2, "pixel_height": 2}
        for n in range(rows)
    ]
    began = time.process_time()
    asyncio.run(writer.write(table))
    return 1e3 * (time.process_time() - began) / rows


def replay(out: Path) -> None:
    """Let the stub of this process answer with the labelled captions, and record its CPU time."""
    answer_with_labelled()
    tell(out)


def answer_with_labelled() -> None:
    """Let the stub of this process answer with the labelled captions."""
    items = map(json.loads, LABELLED.read_text(encoding="utf-8").splitlines())
    good = [item["text"] for item in items if not item["labels"] and item.get("language") == "en"]
    texts = [text for text in good if LENGTHS[0] <= len(text) <= LENGTHS[1]]
    stub.stub_caption = lambda pixels, *_: texts[zlib.crc32(pixels[:64]) % len(texts)]


def tell(out: Path) -> None:
    """Record the CPU time of this process repeatedly, as soon as the engine is ready."""

    def note() -> None:
        while True:
            time.sleep(EVERY_S)
            if (out / READY).exists():
                with open(out / SPENT, "a", encoding="ascii") as lines:
                    lines.write(f"{time.time():.3f} {time.process_time():.4f}\n")

    threading.Thread(target=note, name="spent", daemon=True).start()


if __name__ == "__main__":
    engine, _, checks = sys.argv[1].partition("_")
    way = {"replayed": replayed, "generated": generated}[engine]
    way(checks == "on", Path(sys.argv[2]), Path(sys.argv[3]))
