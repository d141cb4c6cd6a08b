"""Measure three prompts an image in one run beside three runs of one prompt each.

    python benchmarks/several.py [--images 600] [--size 1600] [--json FILE]

The embedded model captions rendered scenes on this machine's CPU. The scenes are JPEGs of --size x --size pixels, so
that reading and preparing an image costs something, as it does for photographs. The ways, one after the other, each in
a process of its own:

    together    `prompts` with three names: an image is read, prepared and rendered once, and encoded once where the
                engine's caches still hold it
    apart       three runs, one prompt each

Seconds count from the moment that an engine is ready, until when all images are held back, to the last caption.

Keys of the JSON: together_s, apart_s, and gain, which is apart_s / together_s.
"""

import argparse
import json
import tempfile
from pathlib import Path

import noisy_scenes
from alone import moments, run_alone
from captioning import READY

PROMPTS = {
    "dense": "Please describe this image in detail.",
    "short": "Describe this image in one sentence.",
    "things": "List what is in this image.",
}


def main() -> None:
    """Measure both ways and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600, help="number of scenes")
    parser.add_argument("--size", type=int, default=1600, help="pixels of a side")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="several-") as temporary:
        folder = Path(temporary)
        noisy_scenes.write(folder / "images", args.images, [(args.size, args.size)])
        figures = {
            "together_s": seconds(folder, "together"),
            "apart_s": sum(seconds(folder, name) for name in PROMPTS),
        }
    figures["gain"] = figures["apart_s"] / figures["together_s"]
    print(f"{'':<12}{'seconds':>10}{'images/s':>10}")
    for way in ("together", "apart"):
        print(f"{way:<12}{figures[f'{way}_s']:>10.1f}{args.images / figures[f'{way}_s']:>10.1f}")
    print(f"gain: {figures['gain']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def seconds(folder: Path, way: str) -> float:
    """Seconds from the engine of a run that is ready to the last caption."""
    _, finished, _ = run_alone("several_ways.py", way, folder / "images", folder / way)
    (ready, _), *_ = moments(folder / way / READY)
    return float(finished[-1] - ready)


if __name__ == "__main__":
    main()
