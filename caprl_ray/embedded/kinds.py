"""The kinds of questions about rendered scenes: the attribute that a question asks for, and its wordings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caprl_ray.embedded import scenes

COLOR, SHAPE, SIZE, PLACE = "color", "shape", "size", "place"
WHOLE, BACKGROUND, COUNT = "whole", "background", "count"
NUMBERS = ("one", "two", "three", "four", "five")
VALUES: Mapping[str, Sequence[str]] = {
    COLOR: tuple(scenes.COLOURS),
    SHAPE: scenes.SHAPES,
    SIZE: (*scenes.SIZES, "medium"),
    PLACE: tuple(place for row in scenes.POSITIONS for place in row),
    BACKGROUND: tuple(scenes.BACKGROUNDS),
    COUNT: NUMBERS,
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of question.

    Attributes:
        asks: the attribute that is asked for, COUNT, BACKGROUND, or WHOLE.
        by: the attributes by which the question names its thing.
        texts: the wordings, with a placeholder for each attribute in `by`.
    """

    asks: str
    by: tuple[str, ...] = ()
    texts: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the kind in results, such as "color by place"."""
        return f"{self.asks} by {' and '.join(self.by)}" if self.by else self.asks


KINDS = (
    Kind(
        asks=BACKGROUND,
        texts=(
            "What is the color of the background?",
            "What color is the background of the image?",
            "Which color fills the background?",
        ),
    ),
    Kind(
        asks=COUNT,
        texts=(
            "How many shapes are in the image?",
            "How many shapes can be seen?",
            "What is the number of shapes in the image?",
        ),
    ),
    Kind(
        asks=COLOR,
        by=(PLACE,),
        texts=(
            "What is the color of the shape at the {place}?",
            "What color does the shape at the {place} have?",
            "Which color is the shape at the {place} of the image?",
        ),
    ),
    Kind(
        asks=SHAPE,
        by=(PLACE,),
        texts=(
            "Which shape is at the {place}?",
            "What kind of shape can be seen at the {place}?",
            "Which shape is located at the {place} of the image?",
        ),
    ),
    Kind(
        asks=SIZE,
        by=(PLACE,),
        texts=(
            "What is the size of the shape at the {place}?",
            "How large is the shape at the {place}?",
            "What size does the shape at the {place} of the image have?",
        ),
    ),
    Kind(
        asks=WHOLE,
        by=(PLACE,),
        texts=(
            "What is at the {place}?",
            "What can be seen at the {place} of the image?",
            "What is located at the {place} of the image?",
        ),
    ),
    Kind(
        asks=COLOR,
        by=(SHAPE,),
        texts=(
            "What is the color of the {shape}?",
            "What color does the {shape} have?",
            "Which color is the {shape} in the image?",
        ),
    ),
    Kind(
        asks=SIZE,
        by=(SHAPE,),
        texts=(
            "What is the size of the {shape}?",
            "How large is the {shape}?",
            "What size does the {shape} in the image have?",
        ),
    ),
    Kind(
        asks=PLACE,
        by=(SHAPE,),
        texts=(
            "Where is the {shape}?",
            "Where in the image is the {shape} located?",
            "What is the position of the {shape}?",
        ),
    ),
    Kind(
        asks=SHAPE,
        by=(COLOR,),
        texts=(
            "Which shape is {color}?",
            "What is the {color} shape?",
            "What kind of shape is {color} in the image?",
        ),
    ),
    Kind(
        asks=PLACE,
        by=(COLOR,),
        texts=(
            "Where is the {color} shape?",
            "Where in the image is the {color} shape located?",
            "What is the position of the {color} shape?",
        ),
    ),
    Kind(
        asks=PLACE,
        by=(COLOR, SHAPE),
        texts=(
            "Where is the {color} {shape}?",
            "Where in the image is the {color} {shape} located?",
            "What is the position of the {color} {shape}?",
        ),
    ),
)
