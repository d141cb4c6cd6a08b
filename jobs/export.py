"""Export captions, for `ray job submit -- python jobs/export.py OUT --to FORM --out PATH [--where SQL …]`."""

import sys

from caprl_ray.cli import program

if __name__ == "__main__":
    program(["export", *sys.argv[1:]])
