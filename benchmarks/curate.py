"""Measure curation with all its pools, compared with each part alone, and whether its questions distinguish captioners.

    python benchmarks/curate.py [--images 600] [--scenes 1000] [--only pools|captioners] [--json FILE]

Pools: stubs take the place of both models, and each prompt takes its own time in one of their places (curate_ways.py).
A part alone is the same run in which the other parts have enough places to never be the limit. Both models get places
for the same rate, so that each of them is nearly the limit.

    prepare    both models have many places
    questions  the questioner has 8, which write about an image each
    answers    the answering model has 256, for 32 answers about an image
    curate     all three parts at the same time

Captioners: `embedded-questioner` writes questions about rendered scenes, and `embedded-viewer` tries them; both are
rules that recognize scenes. Six captioners describe the scenes, each with another share of wrong facts, and
`embedded-answerer` on vLLM answers the questions from their captions. So the scores of `caprl-ray score` can be
compared with the share of right facts.

Keys of the JSON: prepare, questions, answers, curate (images/s), one_after_another (images/s, if each part waits for
the one before), of_slowest (curate over the slowest part), and <part>_cpu_ms (CPU of an image); curate_s, score_s (wall
clock of the two jobs with their engines' starts), kept (questions an image), spearman, and for each captioner
right_<n> and score_<n>.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from alone import run_alone, steady
from curate_ways import PLACES, WIDE
from PIL import Image
from score_ways import CPU

from caprl_ray import pipeline
from caprl_ray.answer.results import SCORES
from caprl_ray.cluster import session
from caprl_ray.commands.curate import curate
from caprl_ray.commands.loop import curation, draw
from caprl_ray.commands.score import score
from caprl_ray.embedded import kinds, rules
from caprl_ray.embedded.questions import Facts
from caprl_ray.engines.stub import SECONDS
from caprl_ray.recipe.curate import CurateRecipe
from caprl_ray.recipe.load import parse_as
from caprl_ray.recipe.score_recipe import ScoreRecipe

QUESTIONER, ANSWERER = 8, 256  # places; the stub's four usable questions are answered eight times each
PARTS = {
    "prepare": (WIDE, WIDE),
    "questions": (QUESTIONER, WIDE),
    "answers": (WIDE, ANSWERER),
    "curate": (QUESTIONER, ANSWERER),
}
WRONG = (0.0, 0.1, 0.2, 0.35, 0.5, 0.8)  # the share of wrong facts of each captioner
Figures = dict[str, float]


def pools(folder: Path, images: int, seconds: str) -> Figures:
    """Images/s of each part alone and of all together, after the replicas are ready."""
    (folder / "images").mkdir()
    rng = random.Random(1)
    for number in range(images):
        pixels = Image.frombytes("RGB", (6, 6), rng.randbytes(108))
        pixels.resize((168, 168), Image.Resampling.NEAREST).save(folder / "images" / f"{number:05d}.png")
    found = Figures()
    os.environ[SECONDS] = seconds
    for part, places in PARTS.items():
        os.environ[PLACES] = ",".join(map(str, places))
        _, finished, _ = run_alone("curate_ways.py", "curate", folder / "images", folder / part)
        found[part] = steady(folder / part, finished)
        found[f"{part}_cpu_ms"] = 1000 * float((folder / part / CPU).read_text()) / images
        print(f"{part:<12}{found[part]:>10.2f} images/s{found[f'{part}_cpu_ms']:>10.1f} ms of CPU an image", flush=True)
    alone = [found[part] for part in PARTS if part != "curate"]
    found["one_after_another"] = 1 / sum(1 / rate for rate in alone)
    found["of_slowest"] = found["curate"] / min(alone)
    return found


def captioners(folder: Path, count: int) -> Figures:
    """Curate questions about scenes, score six captioners with them, and compare with the share of right facts."""
    images, run, found = draw(folder, "scene", count, seed=1), partial(pipeline.run), Figures()
    truths = [json.loads(line) for line in (folder / "scene.jsonl").read_text().splitlines()]
    with session.lasting(False, engine_on_cpu=True), session.connected():
        found["curate_s"] = _timed(curate(parse_as(CurateRecipe, curation(folder, [images])), run))
        rows = pa.concat_tables(map(pq.read_table, sorted((folder / "questions" / "data").iterdir()))).to_pylist()
        asked = {row["key"]: row["reward_model"]["ground_truth"] for row in rows}
        found["kept"] = sum(map(len, asked.values())) / len(asked)
        rights = _write(folder, truths, asked)
        found["score_s"] = _timed(score(parse_as(ScoreRecipe, scoring(folder)), run, None))
    benchmarks = json.loads((folder / "scores" / SCORES).read_text())["benchmarks"]
    scores = [benchmarks[_name(number)]["accuracy"]["value"] for number in range(len(WRONG))]
    for number, (right, value) in enumerate(zip(rights, scores, strict=True)):
        found |= {f"right_{number}": right, f"score_{number}": value}
    return found | {"spearman": spearman(rights, scores)}


def spearman(these: Sequence[float], others: Sequence[float]) -> float:
    """The correlation of ranks, of values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (these, others)]
    return float(np.corrcoef(*ranks)[0, 1])


def scoring(folder: Path) -> dict[str, Any]:
    """The recipe that scores the captions of all captioners in one run."""
    return {
        "input": {"paths": [str(folder / "captions.parquet")]},
        "model": {"source": "embedded-answerer"},
        "score": {"questions": [str(folder / "asked.parquet")], "join": "key", "rotations": 1, "blind": 0, "twice": 0},
        "output": {"path": str(folder / "scores")},
    }


def _write(folder: Path, truths: list[dict[str, str]], asked: Mapping[str, list[dict[str, Any]]]) -> list[float]:
    """Write captions and questions of all captioners. Returns the share of right facts of each one."""
    rng, captions, questions, rights = random.Random(2), [], [], []
    for number, wrong in enumerate(WRONG):
        right = total = 0
        for truth in truths:
            facts = rules.stated(truth["scene"])
            said = _with_faults(facts, wrong, rng)
            right, total = right + _same(facts, said), total + 1 + 4 * len(facts.things)
            key = f"{_name(number)}/{truth['image']}"
            captions.append({"key": key, "caption": _caption(said)})
            questions += [{"key": key, "benchmark": _name(number), **one} for one in asked.get(truth["image"], ())]
        rights.append(right / total)
    pq.write_table(pa.Table.from_pylist(captions), folder / "captions.parquet")
    pq.write_table(pa.Table.from_pylist(questions), folder / "asked.parquet")
    return rights


def _name(number: int) -> str:
    return f"captioner {number}"


def _with_faults(facts: Facts, share: float, rng: random.Random) -> Facts:
    """The facts, each replaced by a wrong one with this probability."""

    def maybe(name: str, value: str) -> str:
        others = [other for other in kinds.VALUES[name] if other not in (value, "medium")]
        return rng.choice(others) if rng.random() < share else value

    things = tuple({name: maybe(name, value) for name, value in thing.items()} for thing in facts.things)
    return Facts(background=maybe(kinds.BACKGROUND, facts.background or ""), things=things)


def _same(facts: Facts, said: Facts) -> int:
    """The number of equal facts."""
    pairs = zip(facts.things, said.things, strict=True)
    return (facts.background == said.background) + sum(one[name] == other[name] for one, other in pairs for name in one)


def _caption(facts: Facts) -> str:
    """A caption in the words of `scenes.caption`."""
    names = (kinds.SIZE, kinds.COLOR, kinds.SHAPE)
    phrases = [f"at the {one[kinds.PLACE]} a {' '.join(one[name] for name in names)}" for one in facts.things]
    listed = f"{', '.join(phrases[:-1])} and {phrases[-1]}" if len(phrases) > 1 else phrases[0]
    return f"On a {facts.background} background, {listed}."


def _timed(lines: Iterator[str]) -> float:
    began = time.monotonic()
    for line in lines:
        print(f"    {line}", flush=True)
    return time.monotonic() - began


def main() -> None:
    """Measure, and print one table of each half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600, help="images for the pools")
    parser.add_argument("--scenes", type=int, default=1000, help="scenes for the captioners")
    parser.add_argument("--seconds", default="0.2-2", help="time of the shortest and of the longest answer")
    parser.add_argument("--only", choices=("pools", "captioners"), help="one half")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="curate-") as temporary:
        if args.only != "captioners":
            (folder := Path(temporary) / "pools").mkdir()
            figures |= pools(folder, args.images, args.seconds)
        if args.only != "pools":
            (folder := Path(temporary) / "captioners").mkdir()
            figures |= captioners(folder, args.scenes)
    if "curate" in figures:
        print(f"one after another {figures['one_after_another']:.2f} images/s; ", end="")
        print(f"together {figures['curate']:.2f}, {figures['of_slowest']:.2f} of the slowest part alone")
    if "spearman" in figures:
        print(f"{'captioner':<12}{'right facts':>12}{'score':>10}")
        for number in range(len(WRONG)):
            print(f"{number:<12}{figures[f'right_{number}']:>12.1%}{figures[f'score_{number}']:>10.1%}")
        print(f"Spearman {figures['spearman']:.3f}; {figures['kept']:.2f} questions kept an image; ", end="")
        print(f"curation {figures['curate_s']:.0f} s, scoring {figures['score_s']:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
