"""The section `sampling`: how captions are sampled."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from caprl_ray.recipe import sampling_fields
from caprl_ray.recipe.fields import Positive, Section


class RepetitionDetection(Section):
    """When the engine stops a caption that repeats itself, token by token.

    A caption ends with the finish reason `repetition` when its last `min_count` x n tokens are one pattern of n tokens
    again and again. n lies between `min_pattern_size` and `max_pattern_size`. A loop of fewer tokens is found too: some
    multiple of its length lies between them, because the upper one is about twice the lower one.
    """

    min_pattern_size: Annotated[int, Field(ge=1, le=512)] = 33
    """The shortest pattern, in tokens."""
    max_pattern_size: Annotated[int, Field(ge=1, le=512)] = 64
    """The longest pattern, in tokens. vLLM compares each length between the two at every token: a wide range costs
    time."""
    min_count: Annotated[int, Field(ge=2, le=64)] = 8
    """How often the pattern must stand there, one after the other. Equal rows of a table are a pattern too: a lower
    number saves tokens and cuts more tables."""

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

    More fields of vLLM's SamplingParams are allowed, under the same names: those in `sampling_fields.FIELDS`.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, use_attribute_docstrings=True)

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """The sampling temperature. 0 is greedy decoding: the same image then gives nearly always the same caption."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: only the most likely tokens, whose probabilities sum to this value, are sampled. 1 keeps
    all."""
    max_tokens: Positive = 2048
    """The longest caption, in tokens. A caption that reaches it is `truncated` (see quality). Raise it if many are."""
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Values above 1 make tokens that were already used less likely. Raise it slightly if captions repeat
    themselves."""
    n: Annotated[int, Field(ge=1, le=16)] = 1
    """How many captions each prompt gives an image. Above 1, the column `captions` has them all and `caption` the
    best, with `score` by its score. It needs a temperature above 0."""
    repetition_detection: RepetitionDetection | None = RepetitionDetection()
    """When the engine stops a caption that only repeats itself. null lets it go on to max_tokens."""

    @model_validator(mode="after")
    def _check(self) -> "Sampling":
        sampling_fields.check(self.model_extra or {}, type(self).model_fields)
        if self.n > 1 and not self.temperature:
            raise ValueError(f"n is {self.n}, but temperature is 0, so all captions would be equal; raise it")
        return self

    def changed(self, fields: Mapping[str, Any]) -> "Sampling":
        """This section with other values in some fields. Raises ValueError if one is not allowed."""
        return Sampling.model_validate({**self.model_dump(), **fields}) if fields else self
