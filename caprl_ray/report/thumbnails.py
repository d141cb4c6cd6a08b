"""Thumbnails of images whose bytes are at hand. They are untrusted, so a child process decodes them, with limits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from caprl_ray.prepare.decode import Limits, prepare
from caprl_ray.prepare.sandbox import Sandbox
from caprl_ray.prepare.sizes import SizeRule
from caprl_ray.recipe.prepare import Prepare
from caprl_ray.report.pictures import SIDE, TIMEOUT_S, Picture, shown


@contextmanager
def thumbnails() -> Iterator[Callable[[bytes], Picture]]:
    """A function that makes a thumbnail of the bytes of an image; without bytes, the reason."""
    defaults = Prepare()
    limits = Limits(max_bytes=defaults.max_bytes, max_source_pixels=defaults.max_source_pixels)
    rule = SizeRule(factor=None, min_pixels=0, max_pixels=SIDE * SIDE, max_aspect=float("inf"))
    with Sandbox(partial(prepare, rule=rule, limits=limits), TIMEOUT_S) as decoded:
        yield lambda encoded: shown(decoded(encoded)) if encoded else Picture(missing="The image could not be read.")
