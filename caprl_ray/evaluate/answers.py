"""What an evaluation has found, before anything is counted: images, captions, and what a reader answered from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# The references, beside the outputs: what a caption says if it says nothing, or speaks of another image, and what the
# source itself said.
EMPTY, SWAPPED, ALT_TEXT, PREVIOUS = "empty", "swapped", "alt text", "previous caption"
EVERY = "all"  # the kind of images that have no other


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image of the sample, which all outputs have captioned.

    `key` is its name here: the SHA-256 of its bytes. `source` says where it is, for people. `width` and `height` are
    those of the source image.
    """

    key: str
    source: str
    kind: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question about one image, answered from one caption.

    `way` is where the caption comes from: an output, as in `Evaluation.outputs`, or a reference. `given` is what the
    reader chose most often, None if it chose nothing. `correct` is the share of right answers over all orders of the
    options, None if none was judged. `cannot` is the share of "can not answer".
    """

    image: str
    way: str
    question_id: str
    question: str
    choices: tuple[str, ...]
    right: str
    given: str | None
    kind: str
    correct: float | None
    cannot: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Answers about a sample.

    `captions` are by way and image. A reference may lack images: an alt text that is not there has no answers.
    `pictures` gives an image's bytes as they are stored, empty if they could not be read. `cost` has what is known of
    `seconds`, `gpu_hours`, `dollars`, `questions_written`, `questions_kept`, `questions_asked`, `answers`.
    """

    outputs: tuple[str, ...]
    references: tuple[str, ...]
    images: Mapping[str, Image]
    captions: Mapping[tuple[str, str], str]
    answers: tuple[Answer, ...]
    pictures: Callable[[str], bytes]
    cost: Mapping[str, float]
