"""The way that curate.py measures: curation of scenes by stubs that need time, in a process of its own (alone.py).

The stub answers each prompt after the time that CAPRL_RAY_STUB_CAPTION_S says, in as many places as PLACES has for the
questioner and for the answering model. A pool with WIDE places never bounds the rate.
"""

import os
import sys
from pathlib import Path
from typing import Any

from captioning import FINISHED, READY, note, substitute
from score_ways import measure_cpu

from caprl_ray import pipeline
from caprl_ray.curate import job
from caprl_ray.curate.job import curate_job
from caprl_ray.curate.stage import Answering
from caprl_ray.recipe.curate import CurateRecipe
from caprl_ray.recipe.load import parse_as
from caprl_ray.watch import around
from caprl_ray.watch.batch import Batch
from caprl_ray.watch.counter import Counter

PLACES = "PLACES"  # environment variable: places of the questioner and of the answering model, as in "8,160"
WIDE = 4096


def recipe(images: Path, out: Path, questioner: int, answerer: int) -> dict[str, Any]:
    """A recipe for two stubs with these numbers of places. Small batches let the second pool begin early."""
    return {
        "input": {"paths": [str(images)]},
        "model": {"source": "stub", "engine": {"max_num_seqs": questioner}},
        "replicas": {"gpus": 0},
        "curate": {"model": {"source": "stub", "engine": {"max_num_seqs": answerer}}, "replicas": {"gpus": 0}},
        "output": {"path": str(out)},
    }


def curate(images: Path, out: Path) -> None:
    """Run `caprl-ray curate`. Its counter notes when each batch has its answers."""
    questioner, answerer = map(int, os.environ[PLACES].split(","))

    class TimedCounter(Counter):
        def add(self, batch: Batch) -> None:
            note(out / FINISHED, batch.rows)
            super().add(batch)

    class ReadyAnswering(Answering):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            note(out / READY, 0)

    substitute(around, "Counter", TimedCounter)
    substitute(job, "Answering", ReadyAnswering)
    measuring = measure_cpu(out, len(list(images.iterdir())))
    pipeline.run(curate_job(parse_as(CurateRecipe, recipe(images, out / "questions", questioner, answerer))))
    measuring.join()


if __name__ == "__main__":
    os.environ["CAPRL_RAY_ALLOW_STUB"] = "1"
    curate(Path(sys.argv[2]), Path(sys.argv[3]))
