"""The columns that captioning adds to a row, and its failure codes."""

from collections.abc import Collection

import pyarrow as pa

from caprl_ray.errors import RecipeError
from caprl_ray.recipe.prompts import PromptTemplate
from caprl_ray.recipe.sections import Recipe
from caprl_ray.rows.codes import FAILURE_CODES
from caprl_ray.rows.schema import ATTEMPTS, column

CAPTION = (
    column("caption", pa.string(), "The caption."),
    column("finish_reason", pa.string(), "Why decoding ended: stop, or length when it met max_tokens."),
    column(
        "flags",
        pa.list_(pa.string()),
        "What the caption checks found, and what of the row could not be read; empty if nothing.",
    ),
    ATTEMPTS,
    column("prompt_tokens", pa.int32(), "Tokens of the prompt, the image's included."),
    column("caption_tokens", pa.int32(), "Tokens of the caption."),
    column("model", pa.string(), "The model that wrote the caption, with its revision."),
)
CODES = FAILURE_CODES | {"caption_empty": "The model wrote nothing."}


def check_prompt(recipe: Recipe, names: Collection[str]) -> None:
    """Raise RecipeError if the prompt needs a column that no row has; `names` are the columns of all rows."""
    missing = PromptTemplate(recipe.prompt.user).missing(names)
    if missing:
        raise RecipeError(
            f"prompt.user: {{{missing[0]}}} names a column that the input does not have; it has "
            f"{', '.join(names) or 'no columns besides its images'}."
        )
