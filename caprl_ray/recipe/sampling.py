"""The section `sampling`: how captions are sampled."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from caprl_ray.recipe import sampling_fields
from caprl_ray.recipe.fields import Positive, Section


class RepetitionDetection(Section):
    """When the engine stops a caption that repeats itself token by token.

    A caption ends with the finish reason `repetition` if its last tokens are `min_count` copies of one pattern. The
    pattern has `min_pattern_size` to `max_pattern_size` tokens. A shorter loop is found too, because a multiple of its
    length lies in this range: the upper limit is about twice the lower one.
    """

    min_pattern_size: Annotated[int, Field(ge=1, le=512)] = 33
    """The shortest pattern, in tokens."""
    max_pattern_size: Annotated[int, Field(ge=1, le=512)] = 64
    """The longest pattern, in tokens. A wide range costs time, because each length in it is compared."""
    min_count: Annotated[int, Field(ge=2, le=64)] = 8
    """The number of copies of the pattern in a row. Equal rows of a table are a pattern too, so a lower number saves
    tokens but cuts off more tables."""

    @model_validator(mode="after")
    def _check(self) -> "RepetitionDetection":
        if self.min_pattern_size > self.max_pattern_size:
            raise ValueError(
                f"min_pattern_size is {self.min_pattern_size}; it must be at most max_pattern_size, which is "
                f"{self.max_pattern_size}"
            )
        return self


class Sampling(BaseModel):
    """How captions are sampled.

    A recipe may have most other fields of vLLM's SamplingParams too, under the same names.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, use_attribute_docstrings=True)

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """The sampling temperature. 0 is greedy decoding: the same image then nearly always gives the same caption."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: only the most likely tokens, whose probabilities sum to this value, are sampled. 1 keeps
    all."""
    max_tokens: Positive = 2048
    """The longest caption, in tokens. A caption that reaches it is `truncated` (see quality). Raise it if many are."""
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Values above 1 make tokens that were already used less likely. Raise it slightly if captions repeat
    themselves."""
    n: Annotated[int, Field(ge=1, le=16)] = 1
    """The number of captions per image and prompt. Above 1, the column `captions` has all of them, and `caption` has
    the best one: with the section `score`, the one with the highest score. It needs a temperature above 0."""
    repetition_detection: RepetitionDetection | None = RepetitionDetection()
    """When the engine stops a caption that only repeats itself. null lets it go on to max_tokens."""

    @model_validator(mode="after")
    def _check(self) -> "Sampling":
        sampling_fields.check(self.model_extra or {}, type(self).model_fields)
        if self.n > 1 and not self.temperature:
            raise ValueError(f"n is {self.n}, but temperature is 0, so all captions would be equal; raise it")
        return self

    def changed(self, fields: Mapping[str, Any]) -> "Sampling":
        """This section with other values in some fields. Raises ValueError if a value is not allowed."""
        return Sampling.model_validate({**self.model_dump(), **fields}) if fields else self
