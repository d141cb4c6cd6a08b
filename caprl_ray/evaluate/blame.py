"""Translate errors of a judge's jobs: name the fields of the judge's recipe."""

from collections.abc import Iterator
from contextlib import contextmanager

from caprl_ray.errors import RecipeError, TooManyFailures
from caprl_ray.output import verdict
from caprl_ray.recipe.score_recipe import READER, in_section
from caprl_ray.storage import Storage
from caprl_ray.watch.breaker import SickReplicas

NO_QUESTIONS = (
    "the questioner wrote no usable question about these images; give the judge another model, or describe the format "
    "in its prompt.user, and run the same command again; a higher failures.max_fraction accepts them."
)
NO_ANSWERS = (
    "the reader did not answer them; give the judge another score.model, or score.mode=deterministic, in which an "
    "answer can only be an option, and run the same command again; a higher failures.max_fraction accepts them."
)


@contextmanager
def of_reader() -> Iterator[None]:
    """Name the fields of the reader's recipe as the judge's has them."""
    try:
        yield
    except RecipeError as error:
        if not str(error).startswith(tuple(f"{name}." for name in READER)):
            raise
        raise in_section(error) from None


@contextmanager
def blamed(storage: Storage, out: str, advice: str) -> Iterator[None]:
    """If too many rows fail, name the responsible model, with examples and `advice`."""
    try:
        yield
    except SickReplicas:
        raise
    except TooManyFailures as error:
        counted = str(error).partition("; ")[0]
        raise TooManyFailures(f"{counted}; {verdict.examples(storage, out)}{advice}") from error
