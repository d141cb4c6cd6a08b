"""The columns that captioning adds to a row, and its failure codes."""

from collections.abc import Collection

import pyarrow as pa

from caprl_ray.answer.columns import SCORE
from caprl_ray.caption.several import PREVIOUS
from caprl_ray.errors import RecipeError
from caprl_ray.recipe.prompts import FALLBACK_COLUMN, PromptTemplate
from caprl_ray.recipe.sections import Recipe
from caprl_ray.rows.advice import CODE_ADVICE, Advice
from caprl_ray.rows.codes import FAILURE_CODES
from caprl_ray.rows.schema import ATTEMPTS, column

CAPTION = (
    column("caption", pa.string(), "The caption."),
    column(
        "finish_reason",
        pa.string(),
        "Why decoding ended: stop, length (max_tokens was reached), or repetition (the engine stopped a loop).",
    ),
    column(
        "flags",
        pa.list_(pa.string()),
        "The checks that the caption fails, and flags of the input, such as blank and metadata_too_large:txt.",
    ),
    column("repaired", pa.list_(pa.string()), "The checks that the first decoding failed and the kept caption passes."),
    column(
        "decodes",
        pa.int32(),
        "How often the model decoded a caption of the image: once for each caption, and again after a failed check.",
    ),
    column("decoded_tokens", pa.int32(), "Tokens of all these decodings."),
    column(
        "saved_tokens",
        pa.int32(),
        "The most tokens that were saved by stopping loops early: sampling.max_tokens minus the decoded tokens.",
    ),
    ATTEMPTS,
    column("prompt_tokens", pa.int32(), "Tokens of the prompt, including the image's."),
    column("caption_tokens", pa.int32(), "Tokens of the caption."),
    column("model", pa.string(), "The model that wrote the caption, with its revision."),
)
ONE = [
    ("prompt", pa.string()),
    ("text", pa.string()),
    ("finish_reason", pa.string()),
    ("flags", pa.list_(pa.string())),
    ("decodes", pa.int32()),
    ("tokens", pa.int32()),
]
# An additional column if rows have several captions.
CAPTIONS = column(
    "captions",
    pa.list_(pa.struct(ONE)),
    "All captions of the image, in the order of the prompts. A failed caption has no text, and its code as a flag.",
)
# The same if captions are scored: each caption has the columns that its row gets if it is kept.
SCORED_CAPTIONS = column(
    "captions",
    pa.list_(
        pa.struct(
            [
                *ONE,
                ("repaired", pa.list_(pa.string())),
                ("prompt_tokens", pa.int32()),
                ("score", pa.float64()),
                ("score_code", pa.string()),
            ]
        )
    ),
    "All captions of the image, in the order of the prompts, each with its score, or with the code that says why it "
    "has none. A failed caption has no text, and its code as a flag.",
)
# Additional columns if captions are scored while they are written.
SCORES = (
    column(
        "score",
        pa.float64(),
        "The mean over the caption's questions whose answers were judged, 0 to 1; null if none was judged.",
    ),
    column("score_code", pa.string(), "Why the caption has no score: one of the failure codes of scoring."),
    *(field for field in SCORE if field.name not in ("score", ATTEMPTS.name)),
)
FIRST_SCORE = column(
    "first_score",
    pa.float64(),
    "The score of the caption that would be kept if none had a score: the first of those with the least severe flags.",
)


def caption_columns(recipe: Recipe) -> tuple[pa.Field, ...]:
    """The columns that captioning by a recipe fills."""
    if not recipe.score:
        return (*CAPTION, CAPTIONS) if recipe.several else CAPTION
    return (*CAPTION, SCORED_CAPTIONS, *SCORES, FIRST_SCORE) if recipe.several else (*CAPTION, *SCORES)


# Of a row that is captioned again (output/again.py).
AGAIN = column("previous", pa.string(), "The caption that --again replaced by this one; null otherwise.")


def output_columns(recipe: Recipe) -> tuple[pa.Field, ...]:
    """The columns that the job adds to a row of its output."""
    return (*caption_columns(recipe), AGAIN)


CODES = FAILURE_CODES | {
    "caption_empty": "The model wrote nothing in any attempt.",
    "quality": "The caption fails a check, and the recipe does not keep such captions; the detail names the check.",
    "check_error": "One of the user's own checks raised an exception, or did not return True or False; the detail "
    "names the check.",
}
ADVICE = CODE_ADVICE | {
    "caption_empty": Advice(
        causes="A picture that shows nothing, or a chat template that does not fit the model.",
        remedy="Use `--retry-failed` with other sampling and `--adopt`.",
    ),
    "quality": Advice(
        causes="The recipe marks a check `fail`, or `retry` with `quality.at_end: fail`, and no retry passed it.",
        remedy="See the detail; use `--retry-failed` with another `quality` section and `--adopt`.",
    ),
    "check_error": Advice(
        causes="A bug in the function, such as a text that it does not expect.",
        remedy="Correct the check, and use `--retry-failed=check_error` with `--adopt`.",
    ),
}


def check_prompt(recipe: Recipe, names: Collection[str]) -> None:
    """Raise RecipeError if a prompt or a check needs a column that no row has, or if a prompt has the name of a column.

    `names` are the columns of all rows.
    """
    there = ", ".join(names) or "no columns besides its images"
    earlier: list[str] = []
    for name, text in recipe.named_prompts.items():
        field = f"prompts.{name}" if recipe.prompts else "prompt.user"
        if recipe.prompts and name in {*names, PREVIOUS, FALLBACK_COLUMN}:
            raise RecipeError(f"{field}: {name} is also the name of a column, which this prompt would hide; rename it.")
        later = recipe.prompts.keys() & set(PromptTemplate(text).columns).difference(earlier)
        if name in later:
            raise RecipeError(f"{field}: {{{name}}} is this prompt's own caption; name an earlier prompt or a column.")
        if later:
            raise RecipeError(f"{field}: {{{min(later)}}} is no earlier prompt; put prompts.{min(later)} before it.")
        missing = PromptTemplate(text).missing([*names, *earlier])
        if missing:
            raise RecipeError(f"{field}: {{{missing[0]}}} names a column that the input does not have; it has {there}.")
        earlier += [PREVIOUS, name]
    alt = recipe.quality.alt_column
    if alt and alt not in names:
        raise RecipeError(f"quality.alt_column: the input has no column {alt}; it has {there}.")
