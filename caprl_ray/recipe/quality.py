"""The section `quality`: how captions are checked and repaired."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from caprl_ray.recipe.fields import Section

# YAML reads a bare off as false.
Action = Annotated[
    Literal["keep", "retry", "fail", "off"], BeforeValidator(lambda value: "off" if value is False else value)
]
# One retry for each. A retry with the same sampling often gives the same loop (QwenLM/Qwen3-VL issue 1611). A lower
# top_p cuts off the unlikely tokens that most loops begin with, and a higher penalty ends a loop.
RETRIES: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.05},
    {"temperature": 1.0, "top_p": 0.8, "repetition_penalty": 1.15},
]


class Quality(Section):
    """How captions are checked, and what happens to captions that fail a check (docs: Checks on captions)."""

    checks: dict[str, Action] = {}
    """The action when a caption fails a check, by the check's name. `keep` flags it, `retry` decodes it again, `fail`
    makes a failed row of code `quality`, `off` turns the check off. If left out: `retry` for `loop`, `truncated`,
    `refusal`, `garbage`, `empty` and `json`, and `keep` for the others. To add a check of your own, give its import
    path as the name, such as "package.module:function". The function takes a Caption and returns whether to flag it."""
    thresholds: dict[str, int | float] = {}
    """Thresholds of checks in place of their defaults, as {check.threshold: value}."""
    language: str | None = None
    """The language that captions should have, as a code such as en. Set it to turn on the check `language`, which needs
    `pip install 'caprl_ray[language]'`."""
    alt_column: str | None = None
    """The source column with the image's alt text. Set it to turn on the check `copies_alt_text`."""
    retries: list[dict[str, Any]] = RETRIES
    """How a caption that fails a check marked `retry` is decoded again: the changes of sampling, one entry per retry.
    With an empty list it is not decoded again. The best caption is kept, with its flags."""
    limits: dict[str, Annotated[float, Field(gt=0, le=1)]] = {"garbage": 0.1}
    """The largest share of a replica's latest captions that may fail a check at their first decoding, by the check's
    name. It detects a broken GPU, which writes !!!! in place of some captions. A replica above a limit is restarted,
    and its latest captions are written again. If all replicas are above it, the run ends."""
    window: Annotated[int, Field(ge=32, le=10_000)] = 200
    """The number of a replica's latest captions to which `limits` applies."""
    self_check: Annotated[int, Field(ge=0)] = 100
    """The number of batches from one self check of a replica to the next; the first batch has one. In a self check the
    replica also captions two different test pictures. If their captions show that rows are mixed up or pixels are not
    seen, the replica is restarted, and all captions since its last successful self check are written again. 0 turns it
    off."""
    at_end: Literal["keep", "trim", "fail"] = "keep"
    """The action for a caption that fails a check marked `retry` even after all retries. `keep` keeps it with its
    flags. `trim` removes an incomplete last sentence and a loop, and adds the flag `trimmed`. `fail` makes a failed row
    of code `quality`."""
