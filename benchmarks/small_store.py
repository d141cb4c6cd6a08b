"""Measure what waiting for a full batch costs, with large pictures and an object store that holds few blocks.

    python benchmarks/small_store.py [--images 60] [--store-mib 512] [--json FILE]

Pictures of 4000 x 3000, the stub engine, and a small object store of --store-mib. The ways, one after the other:

    caprl_ray   an idle operator that needs more rows for a batch gets its next block at once (cluster/internals.py)
    ray         Ray's own way: the operator waits until ten seconds have passed without a block

Keys of the JSON: `<way>_s` for both ways, the seconds from the first caption to the last.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import noisy_scenes
from alone import run_alone

WAYS = {"caprl_ray": "fed", "ray": "as_ray_feeds"}
SIZE = (4000, 3000)


def main() -> None:
    """Measure both ways and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60, help="number of pictures")
    parser.add_argument("--store-mib", type=int, default=512, help="size of the object store in MiB")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    os.environ["RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES"] = str(args.store_mib * 2**20)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="store-") as temporary:
        folder = Path(temporary)
        noisy_scenes.write(folder / "images", args.images, [SIZE])
        for way, name in WAYS.items():
            _, finished, _ = run_alone("stub_ways.py", name, folder / "images", folder / way)
            figures[f"{way}_s"] = finished[-1] - finished[0]
    print(f"{'':<12}{'seconds':>10}{'x ray':>8}")
    for way in WAYS:
        print(f"{way:<12}{figures[f'{way}_s']:>10.1f}{figures['ray_s'] / figures[f'{way}_s']:>8.2f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
