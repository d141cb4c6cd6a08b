"""The section `quality`: how captions are checked and repaired."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from caprl_ray.recipe.fields import Section

# YAML reads a bare off as false.
Action = Annotated[
    Literal["keep", "retry", "fail", "off"], BeforeValidator(lambda value: "off" if value is False else value)
]
# Decoded again with these in turn. A retry with the same sampling often gives the same loop (QwenLM/Qwen3-VL issue
# 1611); a lower top_p cuts the unlikely tokens that most loops begin with, and the penalty leads out of them.
RETRIES: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.05},
    {"temperature": 1.0, "top_p": 0.8, "repetition_penalty": 1.15},
]


class Quality(Section):
    """How captions are checked, and what happens to captions that fail a check (docs: Checks on captions)."""

    checks: dict[str, Action] = {}
    """The action when a caption fails a check, by the check's name. `keep` flags it, `retry` decodes it again, `fail`
    makes a failed row of code `quality`, `off` does not check. If left out: `loop`, `truncated`, `refusal`, `garbage`,
    `empty` and `json` are retried, and the others flag. A check of your own has its import path as its name, such as
    "package.module:function"; it takes a Caption and says whether it is flagged."""
    thresholds: dict[str, int | float] = {}
    """Other thresholds, as {check.threshold: value}."""
    language: str | None = None
    """The language that captions should have, as a code such as en. Set it to turn the check `language` on; it needs
    the extra `language`."""
    alt_column: str | None = None
    """The source column with the text that the image had before. Set it to turn the check `copies_alt_text` on."""
    retries: list[dict[str, Any]] = RETRIES
    """How a caption that fails a check marked `retry` is decoded again: changes of sampling, one per further try. An
    empty list never decodes again. The best caption is kept, with its flags."""
    limits: dict[str, Annotated[float, Field(gt=0, le=1)]] = {"garbage": 0.1}
    """The largest share of a replica's latest captions that may fail a check at their first decoding, by the check's
    name. A replica above it is restarted, and its latest captions are written again; if all replicas are, the run
    ends. A broken GPU writes !!!! for a part of its captions."""
    window: Annotated[int, Field(ge=32, le=10_000)] = 200
    """How many of a replica's latest captions `limits` looks at."""
    self_check: Annotated[int, Field(ge=0)] = 100
    """Two different test pictures are added to a replica's first batch, and to every batch of this number after it. If
    their captions do not fit the right picture, the replica is restarted as for `limits`, and all captions since the
    last successful self check are written again. 0 never checks."""
    at_end: Literal["keep", "trim", "fail"] = "keep"
    """The action for a caption that still fails such a check after all tries. `keep` keeps it with its flags. `trim`
    cuts it after its last whole sentence, before a loop, and adds the flag `trimmed`. `fail` makes a failed row of
    code `quality`."""
