"""The raw results of an evaluation: images, captions, and the reader's answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# The references that outputs are compared with: no caption, the caption of another image, and the source's own text.
EMPTY, SWAPPED, ALT_TEXT, PREVIOUS = "empty", "swapped", "alt text", "previous caption"
EVERY = "all"  # the kind of an image without a kind


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image of the sample, which all outputs have captioned.

    `key` is the SHA-256 of its bytes. `source` is its path, for messages. `width` and `height` are those of the source
    image.
    """

    key: str
    source: str
    kind: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question about one image, answered from one caption.

    `way` is the origin of the caption: an output, as in `Evaluation.outputs`, or a reference. `given` is the option
    that the reader chose most often, None if it chose none. `correct` is the share of right answers over all orders of
    the options, None if none was judged. `cannot` is the share of "can not answer".
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

    `captions` are by way and image. A reference may lack images: a missing alt text has no answers. `pictures` returns
    an image's stored bytes, empty if they could not be read. `cost` has the known ones of `seconds`, `gpu_hours`,
    `dollars`, `questions_written`, `questions_kept`, `questions_asked`, `answers`.
    """

    outputs: tuple[str, ...]
    references: tuple[str, ...]
    images: Mapping[str, Image]
    captions: Mapping[tuple[str, str], str]
    answers: tuple[Answer, ...]
    pictures: Callable[[str], bytes]
    cost: Mapping[str, float]
