"""The columns that captioning adds to a row, and its failure codes."""

import pyarrow as pa

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
