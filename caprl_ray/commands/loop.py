"""CapRL's whole loop on this machine, on rendered scenes: `python -m caprl_ray.commands.loop --out loop`.

It curates questions about scenes, trains a captioner by GRPO with CapRL's reward, and evaluates captions of other
scenes before and after. The captioner starts out with a third of its samples wrong. The code is the same as on GPUs:
captioner and reader are the tiny models of the package, and questioner and viewer are rules that recognize scenes.
docs/caprl.md describes the same with real models.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from caprl_ray.answer.reader import start_reader, stop_reader
from caprl_ray.caption.job import caption_job
from caprl_ray.cluster import session
from caprl_ray.commands.curate import curate
from caprl_ray.commands.demo import clear
from caprl_ray.commands.evaluate import evaluation
from caprl_ray.embedded import grpo, scenes
from caprl_ray.errors import CaprlError
from caprl_ray.evaluate.told import Request
from caprl_ray.evaluate.words import points, scored
from caprl_ray.job import Job
from caprl_ray.output.ledger import Ledger
from caprl_ray.pipeline import run
from caprl_ray.recipe.curate import CurateRecipe
from caprl_ray.recipe.judge import as_judge
from caprl_ray.recipe.load import parse, parse_as
from caprl_ray.report.evaluation import EVALUATION
from caprl_ray.report.svg import check_matplotlib
from caprl_ray.score.trainers import trl_reward_async

MARKER = ".caprl-ray-loop"
READER = {"source": "embedded-answerer"}
TRAIN, HELD_OUT = "train", "held-out"
BEFORE, AFTER = "before", "after"
SIDE = 240  # pixels of a stored scene
Run = Callable[[Job], Ledger]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The scores of the captions before and after training, and their difference, each with its interval."""

    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    difference: Mapping[str, Any] | None
    told_apart: bool

    @property
    def rises(self) -> bool:
        """Whether the score is significantly higher after training."""
        return self.told_apart and self.difference is not None and self.difference["value"] > 0


def loop(
    folder: Path,
    run: Run,
    *,
    train: int,
    held_out: int,
    steps: int,
    tell: Callable[[str], None],
    debug: bool = False,
) -> Found:
    """Run all steps in an empty folder. `run` runs a job, `tell` prints a line, and `debug` shows all logs of the
    evaluation."""
    began = time.monotonic()

    def begin(step: str) -> None:
        tell(f"[{time.monotonic() - began:4.0f} s] {step}")

    begin(f"1/5 drawing {train} scenes to train on, and {held_out} others")
    inputs = [draw(folder, TRAIN, train, seed=1), draw(folder, HELD_OUT, held_out, seed=2)]
    begin("2/5 curating questions: both models read scenes by rules, the viewer also without the image")
    for line in curate(parse_as(CurateRecipe, _kept(folder, "curate", curation(folder, inputs))), run):
        tell(f"    {line}")
    begin(f"3/5 training a captioner that is unsure of itself: {steps} steps of GRPO, rewarded by a reader's answers")
    for line in trained(folder, steps):
        tell(f"    {line}")
    begin("4/5 captioning the scenes that were not trained on, before and after")
    for name in (BEFORE, AFTER):
        run(caption_job(parse(_kept(folder, f"caption-{name}", captioning(folder, name, inputs[1])))))
        tell(f"    {name}: {_first_caption(folder / name)}")
    begin("5/5 evaluating both by the curated questions")
    judge = as_judge(_kept(folder, "judge", {"score": {"model": READER}}))
    asked = Request(outputs=outputs(folder), judge=judge, images=held_out, questions=str(folder / "questions"))
    for line in evaluation(asked, debug=debug):
        tell(f"    {line}")
    begin("done")
    return found(folder)


def draw(folder: Path, name: str, count: int, seed: int) -> Path:
    """Write scenes as PNG files into a folder, and beside it a list of their contents for the user; no step reads it.
    Returns the folder.
    """
    rng, lines = random.Random(seed), []
    (folder / name).mkdir()
    for number in range(count):
        scene, image = scenes.sample_scene(rng), f"{name}-{number:04d}.png"
        scenes.render(scene, SIDE, SIDE, rng=rng).save(folder / name / image)
        lines.append(json.dumps({"image": image, "scene": scenes.caption(scene)}))
    (folder / f"{name}.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return folder / name


def curation(folder: Path, inputs: list[Path]) -> dict[str, Any]:
    """The recipe of the questions, as plain data."""
    return {
        "input": {"paths": [str(path) for path in inputs]},
        "model": {"source": "embedded-questioner"},
        "curate": {"model": {"source": "embedded-viewer"}},
        "output": {"path": str(folder / "questions")},
    }


def captioning(folder: Path, name: str, images: Path) -> dict[str, Any]:
    """The recipe of the captions before or after, as plain data. Sampling is that of training. Repair and the self
    check are off: repair would hide the effect of training, and a weak captioner would count as a sick replica."""
    return {
        "input": {"paths": [str(images)]},
        "model": {"source": str(folder / f"captioner-{name}")},
        "replicas": {"gpus": 0},
        "sampling": {"temperature": 1.0, "max_tokens": 64},
        "quality": {"retries": [], "limits": {}},
        "output": {"path": str(folder / name)},
    }


def outputs(folder: Path) -> list[str]:
    """The outputs of the captions before and after."""
    return [str(folder / name) for name in (BEFORE, AFTER)]


def trained(folder: Path, steps: int) -> Iterator[str]:
    """Write the captioner, train it with TRL, write it again, and yield the reward every few steps."""
    model, data = grpo.unsure(), grpo.curated(folder / "questions", TRAIN)
    grpo.save(model, folder / f"captioner-{BEFORE}")
    yield f"{len(data)} scenes have questions"
    reader = start_reader(READER)
    try:
        settings = grpo.settings(folder / "trainer", max_steps=steps, seed=1)
        trainer = grpo.trainer(model, trl_reward_async(reader), data, settings)
        trainer.train()
    finally:
        stop_reader(reader)
    rewards = [step["reward"] for step in trainer.state.log_history if "reward" in step]
    (folder / "rewards.json").write_text(json.dumps(rewards), encoding="utf-8")
    yield "reward of the steps: " + " ".join(f"{reward:.2f}" for reward in rewards)
    grpo.save(trainer.model, folder / f"captioner-{AFTER}")


def found(folder: Path) -> Found:
    """The scores in the evaluation of before and after."""
    figures = json.loads((folder / BEFORE / EVALUATION).read_text(encoding="utf-8"))
    before, after = (figures["ways"][way]["score"] for way in figures["outputs"])
    (difference,) = figures["differences"]
    return Found(before=before, after=after, difference=difference["difference"], told_apart=difference["told_apart"])


def table(result: Found) -> Iterator[str]:
    """The result as lines of text."""
    yield f"{'':<12}questions answered right [95 % interval]"
    yield f"{BEFORE:<12}{scored(result.before)}"
    yield f"{AFTER:<12}{scored(result.after)}"
    yield f"{'difference':<12}{points(result.difference)} points"
    yield "the score rises" if result.rises else "the score does not rise by more than chance explains"


def _kept(folder: Path, name: str, document: dict[str, Any]) -> dict[str, Any]:
    """Write the recipe to a file in the folder, and parse it."""
    said = "# What `python -m caprl_ray.commands.loop` has done.\n"
    (folder / f"{name}.yaml").write_text(said + yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return document


def _first_caption(output: Path) -> str:
    import pyarrow.parquet as pq

    return str(min(pq.read_table(output / "data", columns=["key", "caption"]).to_pylist(), key=str)["caption"])


def main() -> int:
    """Run the loop, print its result and return the exit code: 0 if the score rises."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("loop"), help="folder for all that is made (default: loop)")
    parser.add_argument("--train", type=int, default=32, metavar="N", help="scenes to train on")
    parser.add_argument("--held-out", type=int, default=120, metavar="N", help="scenes to score")
    parser.add_argument("--steps", type=int, default=16, metavar="N", help="steps of training, of 32 captions each")
    parser.add_argument("--debug", action="store_true", help="show all logs")
    args = parser.parse_args()
    try:
        check_matplotlib()  # the evaluation needs it at the end
        clear(args.out, MARKER, "loop")
        with session.lasting(args.debug, engine_on_cpu=True), session.connected(args.debug):
            result = loop(
                args.out.absolute(),
                partial(run, debug=args.debug),
                train=args.train,
                held_out=args.held_out,
                steps=args.steps,
                tell=partial(print, flush=True),
                debug=args.debug,
            )
    except CaprlError as error:
        print(f"loop: {error}", file=sys.stderr)
        return error.exit_code
    for line in table(result):
        print(line)
    print(f"look at {args.out}: the questions, both captioners, their captions, the evaluation, and the recipes of all")
    return 0 if result.rises else 1


if __name__ == "__main__":
    sys.exit(main())
