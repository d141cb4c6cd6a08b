"""Measure the pipeline with all checks on captions beside the pipeline with none.

    python benchmarks/checked.py [--rows 2000] [--scenes 300] [--repeat 3] [--json FILE]

Two engines, each with the checks on and off in turns, each run in a process of its own (checked_ways.py):

    replayed     a stub that answers with good labelled captions of 1,500 to 4,000 characters, 64 a second
    generated    the embedded model in vLLM, 96 tokens a caption

Before them, `written`: the replica's part alone in this process, with the same captions as `replayed`, no Ray, and an
engine that answers at once. It has CPU only, and little noise.

With the checks on, the standard ones and `language` run; nothing is decoded again. CPU is that of the replica's own
process, without the engine's core, from a ready engine to the last caption. On a shared machine, the rate varies more
between two runs than by the checks; CPU is steadier.

Keys of the JSON, where <engine> is one of these (for `written`, those in ms) and <checks> is on or off; all are medians
of the rounds:

    <engine>_<checks>              captions/s from the moment that the engine is ready
    <engine>_<checks>_ms           CPU ms of the replica's process, a caption
    <engine>_added_ms              CPU ms that the checks add to a caption, in a round
    <engine>_slower                1 - on / off of the rates, in a round
"""

import argparse
import json
import tempfile
from pathlib import Path

import noisy_scenes
from alone import medians, moments, run_alone, steady
from checked_ways import SPENT, written
from stub_ways import write_shards

Figures = dict[str, float]
SCENE = (240, 240)
ROWS, SCENES, WRITTEN = 2000, 300, 1000
ENGINES = ("replayed", "generated")


def measure(way: str, images: Path, out: Path) -> Figures:
    """Run one way once."""
    _, finished, _ = run_alone("checked_ways.py", way, images, out)
    spent = [tuple(map(float, line.split())) for line in (out / SPENT).read_text().splitlines()]
    until = [cpu for when, cpu in spent if when <= finished[-1] + 1]
    ready, _ = moments(out / "ready.txt")[0]
    rows = sum(when > ready for when in finished)
    return {way: steady(out, finished), f"{way}_ms": 1e3 * (until[-1] - spent[0][1]) / rows}


def with_differences(figures: Figures) -> Figures:
    """The figures of one round, and the cost of the checks in it."""
    for engine in ENGINES:
        figures[f"{engine}_added_ms"] = figures[f"{engine}_on_ms"] - figures[f"{engine}_off_ms"]
        figures[f"{engine}_slower"] = 1 - figures[f"{engine}_on"] / figures[f"{engine}_off"]
    return figures


def alone(repeat: int) -> Figures:
    """The replica's part alone, with the checks on and off in turns."""
    rounds = [{f"written_{name}_ms": written(name == "on", WRITTEN) for name in ("on", "off")} for _ in range(repeat)]
    for figures in rounds:
        figures["written_added_ms"] = figures["written_on_ms"] - figures["written_off_ms"]
    return medians(rounds)


def table(figures: Figures) -> None:
    """Print rates and CPU of both engines."""
    columns = {"off": "8.1f", "on": "8.1f", "slower": "8.1%", "off_ms": "9.3f", "on_ms": "9.3f", "added_ms": "10.3f"}
    print(f"{'':<12}{'off/s':>8}{'on/s':>8}{'slower':>8}{'off ms':>9}{'on ms':>9}{'added ms':>10}")
    for engine in ENGINES:
        print(f"{engine:<12}" + "".join(f"{figures[f'{engine}_{key}']:>{form}}" for key, form in columns.items()))


def measured(rows: int, scenes: int, repeat: int) -> Figures:
    """Measure all ways in turns, print a table of each round and of the medians, and return these."""
    lonely, rounds = alone(5 * repeat), list[Figures]()
    print("written: " + ", ".join(f"{key.removeprefix('written_')} {value:.3f}" for key, value in lonely.items()))
    with tempfile.TemporaryDirectory(prefix="checked-") as temporary:
        folder = Path(temporary)
        write_shards(folder / "replayed", rows)
        noisy_scenes.write(folder / "generated", scenes, [SCENE])
        for number in range(repeat):
            figures: Figures = {}
            for engine in ENGINES:
                for checks in ("off", "on") if number % 2 else ("on", "off"):
                    way = f"{engine}_{checks}"
                    figures |= measure(way, folder / engine, folder / f"{way}-{number}")
            rounds.append(with_differences(figures))
            table(rounds[-1])
    table(medians(rounds))
    return lonely | medians(rounds)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help="captions that are replayed")
    parser.add_argument("--scenes", type=int, default=SCENES, help="captions that are generated")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="rounds; the figures are medians over them")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    figures = measured(args.rows, args.scenes, args.repeat)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
