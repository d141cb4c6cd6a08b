"""The columns that curation adds to a row, and its failure codes."""

import pyarrow as pa

from caprl_ray.curate.drafts import UNUSABLE
from caprl_ray.curate.keep import DROPPED
from caprl_ray.rows.advice import Advice
from caprl_ray.rows.codes import FAILURE_CODES
from caprl_ray.rows.schema import ATTEMPTS, column

# The form of CapRL-QA-75K (huggingface.co/datasets/internlm/CapRL-QA-75K), which verl reads.
DATA_SOURCE = "image_caption_rl"
CAPTION_PROMPT = "<image>Please describe this image in detail."
_ASKED = pa.struct([("question", pa.string()), ("choices", pa.list_(pa.string())), ("answer", pa.string())])
QA_75K = (
    column(
        "image",
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        "The image's path, as in the column key. The image's bytes are not copied.",
    ),
    column(
        "prompt",
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
        "The prompt that a captioner gets in training.",
    ),
    column("data_source", pa.string(), "The name by which verl chooses a reward."),
    column(
        "reward_model",
        pa.struct([("ground_truth", pa.list_(_ASKED))]),
        "The questions that were kept, with labelled choices and the letter of the right one.",
    ),
)
TRIED = pa.struct(
    [
        ("question", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("with_image", pa.list_(pa.string())),
        ("without_image", pa.list_(pa.string())),
        ("accuracy_with_image", pa.float64()),
        ("accuracy_without_image", pa.float64()),
        ("dropped", pa.string()),
        ("code", pa.string()),
    ]
)
CURATED = (
    *QA_75K,
    column("kept", pa.int32(), "The number of questions that were kept."),
    column(
        "tried",
        pa.list_(TRIED),
        "Every usable question, with the letters that were answered with the image and without it. The letters refer "
        "to the order of `choices`; `none` is an answer that chooses none of them. dropped: why the question was not "
        "kept. code: why an answer is missing, such as `answer_unclear` if it was none of the letters.",
    ),
    column("unusable", pa.list_(pa.string()), "Why other questions could not be used: one reason per question."),
    ATTEMPTS,
    column("questioner", pa.string(), "The model that wrote the questions, with its revision."),
    column("answerer", pa.string(), "The model that answered the questions, with its revision."),
    column("question_prompt", pa.string(), "The name of the questioner's prompt; `own prompt` for one of the recipe."),
)
NO_QUESTION = "no_question"
CODES = FAILURE_CODES | {
    NO_QUESTION: "The questioner wrote no usable question; the detail says why.",
}
# Advice about its own code.
ADVICE = {
    NO_QUESTION: Advice(
        causes="The questioner refuses, describes the image, or writes another form than the prompt asks for.",
        remedy="See the detail. Give another `model`, or describe the form in `prompt.user`, as the default prompt "
        "does; then use `--retry-failed=no_question` with `--adopt`.",
    ),
}
# The reasons why a question is not kept.
REASONS = UNUSABLE | DROPPED
