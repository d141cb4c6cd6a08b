"""Measure what repair does with captions that are cut short or loop, with the embedded model and the real engine.

    python benchmarks/repair.py [--images 200] [--json FILE]

The embedded model captions rendered scenes on this machine's CPU, so that each caption can be checked to be right. Its
captions are made faulty by sampling, and the retries take the fault away:

    truncated       at most 16 tokens, which are too few for most scenes; retries have 96
    looping         one token is made all but certain, 512 times; retries leave it alone
    not_stopped     the same, but the engine does not stop loops (sampling.repetition_detection: null)
    sound           ordinary sampling: nothing is to be repaired

Keys of the JSON, for each case: <case>_flagged, <case>_repaired and <case>_right, as shares of the images, and
<case>_kept_tokens and <case>_spent_tokens. saved_tokens: the share of the tokens of `not_stopped` that
`looping` does not decode.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from caprl_ray import pipeline
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.recipe.load import parse

# Not allowed_token_ids: vLLM 0.29 then applies them to other requests of a batch that changes, too.
LOOPING: dict[str, Any] = {"logit_bias": {40: 100.0}, "ignore_eos": True, "max_tokens": 512}
FREE = {"logit_bias": None, "ignore_eos": False, "max_tokens": 96}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sound": ({}, {"max_tokens": 128}),
    "truncated": ({"max_tokens": 16}, {"max_tokens": 96}),
    "looping": (LOOPING, FREE),
    "not_stopped": (LOOPING | {"repetition_detection": None}, FREE),
}
COLUMNS = ("flagged", "repaired", "right", "kept_tokens", "spent_tokens")


def main() -> None:
    """Measure every case and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="number of scenes")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    print("".join(f"{name:>14}" for name in ("", *COLUMNS)))
    with tempfile.TemporaryDirectory(prefix="repair-") as temporary:
        folder = Path(temporary)
        right = render_dataset(folder / "images", args.images, seed=5)
        for case, (sampling, retry) in CASES.items():
            found = measured(folder, case, right, sampling, retry)
            figures |= {f"{case}_{name}": value for name, value in found.items()}
            print(f"{case:>14}" + "".join(f"{found[name]:>14.3g}" for name in COLUMNS))
    figures["saved_tokens"] = 1 - figures["looping_spent_tokens"] / figures["not_stopped_spent_tokens"]
    print(f"tokens saved by stopping loops: {figures['saved_tokens']:.1%}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def measured(
    folder: Path, case: str, right: dict[str, str], sampling: dict[str, Any], retry: dict[str, Any]
) -> dict[str, float]:
    """Caption all scenes and compare the captions with the right ones."""
    recipe = demo_recipe([folder / "images" / "files", folder / "images" / "shards"], folder / case, **sampling)
    quality = {"retries": [retry], "limits": {}}  # every caption is garbage at first, and no replica is sick
    pipeline.run(caption_job(parse(recipe | {"quality": quality})))
    rows = pq.read_table(folder / case / "data").to_pylist()
    return {
        "flagged": sum(bool(row["flags"] or row["repaired"]) for row in rows) / len(rows),
        "repaired": sum(bool(row["repaired"]) and not row["flags"] for row in rows) / len(rows),
        "right": sum(row["caption"] == right[row["key"]] for row in rows) / len(rows),
        "kept_tokens": float(sum(row["caption_tokens"] for row in rows)),
        "spent_tokens": float(sum(row["decoded_tokens"] for row in rows)),
    }


if __name__ == "__main__":
    main()
