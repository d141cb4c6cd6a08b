"""Evaluate outputs, for `ray job submit -- python jobs/evaluate.py OUT [OUT …] [--judge RECIPE.yaml]`."""

import sys

from caprl_ray.cli import program

if __name__ == "__main__":
    program(["evaluate", *sys.argv[1:]])
