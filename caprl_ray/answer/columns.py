"""The columns that scoring adds to a row, and its failure codes."""

import pyarrow as pa

from caprl_ray.rows.advice import Advice
from caprl_ray.rows.codes import ENGINE_CODES, NO_KEY, NO_QUESTIONS, READ_CODES
from caprl_ray.rows.schema import ATTEMPTS, column
from caprl_ray.score import ask

ANSWER = pa.struct(
    [
        ("benchmark", pa.string()),
        ("question_id", pa.string()),
        ("question", pa.string()),
        ("options", pa.list_(pa.string())),
        ("condition", pa.string()),
        ("raw", pa.string()),
        ("parsed", pa.string()),
        ("right", pa.string()),
        ("correct", pa.float64()),
        ("can_not_answer", pa.bool_()),
        ("metric", pa.string()),
        ("code", pa.string()),
        ("logprobs", pa.list_(pa.float32())),
    ]
)
SCORE = (
    column(
        "score",
        pa.float64(),
        "The mean over the caption's questions whose answers were judged, 0 to 1; null only in failed rows.",
    ),
    column("answered", pa.int32(), "Answers from the caption that were judged."),
    column("unscored", pa.int32(), "Answers from the caption that were not judged; each has a code."),
    column("can_not_answer", pa.int32(), "Answers that say that the caption lacks the information."),
    column(
        "answers",
        pa.list_(ANSWER),
        "Each question as it was asked: its options as shown, the reader's answer (raw), the part of it that was "
        "compared (parsed), the right answer, and the answer's value (correct). condition: asked with the caption, "
        "blind without it, or once more. logprobs: of the options' letters, before other tokens were forbidden. "
        "code: why the answer was not judged.",
    ),
    column("image_questions", pa.string(), "The value by which caption and questions were joined."),
    ATTEMPTS,
    column("answerer", pa.string(), "The model that answered, with its revision."),
    column("score_prompt", pa.string(), "The name of the reader's prompt."),
)
NO_CAPTION = "no_caption"
CODES = {
    **{code: text for code, text in READ_CODES.items() if code not in ("no_image", "ambiguous_image", "placeholder")},
    NO_QUESTIONS: "There are no questions about this row's image.",
    NO_KEY: "The row has no value in the column that joins captions and questions.",
    NO_CAPTION: "The row has no caption.",
    **{code: ENGINE_CODES[code] for code in ("prompt_too_long", "engine_rejected", "engine_error")},
    **{code: ENGINE_CODES[code] for code in ("engine_timeout", "engine_crash")},
    **ask.CODES,
}
# Advice about its own codes.
ADVICE = {
    NO_QUESTIONS: Advice(
        causes="The questions are about other images, or captions and questions are joined by the wrong column.",
        remedy="Nothing, or add questions about the image and use `--retry-failed=no_questions`.",
    ),
    NO_KEY: Advice(
        causes="The column that joins captions and questions has gaps.",
        remedy="Fill the column, or leave the row failed.",
    ),
    NO_CAPTION: Advice(
        causes="The captioning of this image has failed.",
        remedy="Nothing: there is nothing to score.",
    ),
    ask.UNCLEAR: Advice(
        causes="The reader writes a sentence before its letter, or was not trained on such a prompt.",
        remedy="See `raw` in the column `answers` of other rows; use another reader, or `score.mode=deterministic`.",
    ),
    ask.UNJUDGED: Advice(
        causes="The answer is a formula that takes too long to compare, or a text of many pages.",
        remedy="Leave it failed: such an answer is not right.",
    ),
}
