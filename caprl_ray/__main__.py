"""`python -m caprl_ray` is `caprl-ray`."""

import sys

from caprl_ray.cli import main

sys.exit(main())
