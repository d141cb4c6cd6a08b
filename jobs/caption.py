"""Caption a dataset, for `ray job submit -- python jobs/caption.py RECIPE.yaml [section.field=value …] [--limit N]`."""

import sys

from caprl_ray.cli import program

if __name__ == "__main__":
    program(["caption", *sys.argv[1:]])
