"""Score captions, for `ray job submit -- python jobs/score.py RECIPE.yaml [section.field=value …] [--limit N]`."""

import sys

from caprl_ray.cli import program

if __name__ == "__main__":
    program(["score", *sys.argv[1:]])
