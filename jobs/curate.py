"""Curate questions, for `ray job submit -- python jobs/curate.py RECIPE.yaml [section.field=value …] [--limit N]`."""

import sys

from caprl_ray.cli import program

if __name__ == "__main__":
    program(["curate", *sys.argv[1:]])
