"""Ways that caption with three prompts, in one run or in one run each. Each runs in its own process (alone.py)."""

import sys
from pathlib import Path

from captioning import run_pipeline
from several import PROMPTS

from caprl_ray.commands.demo import demo_recipe


def main(way: str, images: Path, out: Path) -> None:
    """Run the pipeline with all prompts, or with the one that `way` names."""
    recipe = demo_recipe([images], out)
    prompts = {"prompts": PROMPTS} if way == "together" else {"prompt": {"user": PROMPTS[way]}}
    run_pipeline(recipe | prompts | {"quality": {"retries": [], "self_check": 0}}, out, held=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
