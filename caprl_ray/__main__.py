"""`python -m caprl_ray` is `caprl-ray`."""

from caprl_ray.cli import program

program()
