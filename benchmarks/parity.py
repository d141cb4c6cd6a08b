"""Compare the greedy captions of this pipeline with those of `vllm.LLM.chat` on the same pixels.

    python benchmarks/parity.py [--scenes 500] [--json FILE]

The embedded model captions rendered scenes greedily on this machine's CPU. The scenes are JPEG and PNG files of several
shapes and sizes. `vllm.LLM.chat` gets the pixels of the pipeline's `prepare`, as PIL images. So only the later steps
differ: rendering, batching, and how the engine is driven. Each difference is printed, and whether each caption is
correct. A few differences are possible: other rows in a batch change the order in which numbers are added. Exits with 1
if less than 99 % are equal.

Keys of the JSON, where <case> is a size such as `448x448`, `jpeg`, `png` or `all`:

    <case>_scenes, <case>_equal              number of scenes, and the share whose two captions are identical
    <case>_caprl_ray_right, <case>_chat_right    the share of captions that are correct to the letter
    differences                              number of scenes whose two captions differ
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from alone import Captions, captions_in, run_alone
from parity_ways import WAYS

from caprl_ray.embedded import scenes

SCRIPT = "parity_ways.py"
MIN_EQUAL = 0.99
# The model sees 84 x 84, 112 x 84 or 84 x 112 pixels. The files have exactly these sizes, and larger ones. A JPEG of
# four times the size or more is decoded at a reduced size.
SIZES = (
    (84, 84), (112, 84), (84, 112), (240, 240), (320, 240), (240, 320), (448, 448), (1024, 768), (1200, 1600)
)  # fmt: skip
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {"jpeg": ("jpg", {"quality": 92}), "png": ("png", {})}


def render(folder: Path, count: int) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Write scenes in all sizes and formats in turn. Returns the correct caption and the cases of each key."""
    folder.mkdir()
    draw = random.Random(1)
    right: dict[str, str] = {}
    cases: dict[str, tuple[str, ...]] = {}
    kinds = [(size, kind) for size in SIZES for kind in FORMATS]
    for number in range(count):
        (width, height), kind = kinds[number % len(kinds)]
        extension, options = FORMATS[kind]
        scene, key = scenes.sample_scene(draw), f"scene-{number:05d}.{extension}"
        scenes.render(scene, width, height, rng=draw).save(folder / key, kind.upper(), **options)
        right[key], cases[key] = scenes.caption(scene), (f"{width}x{height}", kind, "all")
    return right, cases


def compare(
    ours: Captions, theirs: Captions, right: dict[str, str], cases: dict[str, tuple[str, ...]]
) -> dict[str, float]:
    """All figures of all cases."""
    figures: dict[str, float] = {}
    for case in dict.fromkeys(name for names in cases.values() for name in names):
        keys = [key for key, names in cases.items() if case in names]
        figures[f"{case}_scenes"] = len(keys)
        figures[f"{case}_equal"] = mean(ours[key][0] == theirs[key][0] for key in keys)
        for way, captions in (("caprl_ray", ours), ("chat", theirs)):
            figures[f"{case}_{way}_right"] = mean(captions[key][0] == right[key] for key in keys)
    return figures | {"differences": sum(ours[key][0] != theirs[key][0] for key in right)}


def table(figures: dict[str, float]) -> None:
    """Print the figures, one line per case."""
    cases = [f"{width}x{height}" for width, height in SIZES] + [*FORMATS, "all"]
    columns = ("scenes", "equal", "caprl_ray right", "chat right")
    print(f"{'':<12}" + "".join(f"{name:>18}" for name in columns))
    for case in filter(lambda case: f"{case}_scenes" in figures, cases):
        shares = [f"{100 * figures[f'{case}_{name}']:.1f} %" for name in ("equal", "caprl_ray_right", "chat_right")]
        print(f"{case:<12}" + "".join(f"{cell:>18}" for cell in (f"{figures[f'{case}_scenes']:.0f}", *shares)))


def differences(ours: Captions, theirs: Captions, right: dict[str, str]) -> None:
    """Print each pair of captions that differ."""
    for key, caption in right.items():
        if ours[key][0] != theirs[key][0]:
            print(key)
            for way, written in (("caprl_ray", ours[key][0]), ("chat", theirs[key][0])):
                print(f"  {way:<10} {'right' if written == caption else 'wrong'}  {written}")


def main() -> None:
    """Caption all scenes in both ways; print one table and the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=500, help="number of scenes, at least 50")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    if args.scenes < 50:
        parser.error("--scenes is at least 50")
    with tempfile.TemporaryDirectory(prefix="parity-") as temporary:
        images = Path(temporary) / "images"
        right, cases = render(images, args.scenes)
        captions = {way: _captions(way, images, Path(temporary) / way) for way in WAYS}
    for way, written in captions.items():
        if written.keys() != right.keys():
            sys.exit(f"{way} captioned {len(written)} scenes of {len(right)}.")
    ours, theirs = captions["caprl_ray"], captions["chat"]
    figures = compare(ours, theirs, right, cases)
    table(figures)
    differences(ours, theirs, right)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    if figures["all_equal"] < MIN_EQUAL:
        sys.exit(f"only {100 * figures['all_equal']:.1f} % of the captions are equal.")


def _captions(way: str, images: Path, out: Path) -> Captions:
    run_alone(SCRIPT, way, images, out)
    return captions_in((out / "data").glob("*.parquet"))


if __name__ == "__main__":
    main()
