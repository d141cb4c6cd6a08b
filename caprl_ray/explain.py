"""The meaning of every failure code and flag, its usual causes and what to do, for the command `explain`, the
documentation and the report."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from caprl_ray.answer import columns as scoring
from caprl_ray.caption.columns import ADVICE, CODES
from caprl_ray.curate import columns as curation
from caprl_ray.errors import RecipeError
from caprl_ray.quality.check import Check
from caprl_ray.quality.registry import CHECKS
from caprl_ray.rows.advice import FLAG_ADVICE

CODE, FLAG = "failure code", "flag"
MOST_CLOSE = 3


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A failure code or a flag in words. `not_flagged`: captions that look faulty and are not; empty for codes."""

    name: str
    kind: str
    meaning: str
    causes: str
    remedy: str
    not_flagged: str = ""

    def text(self) -> str:
        """The explanation as text."""
        lines = [f"{self.name} ({self.kind})", f"  means: {self.meaning}"]
        lines += [f"  not flagged: {self.not_flagged}"] * bool(self.not_flagged)
        return "\n".join([*lines, f"  usual causes: {self.causes}", f"  what to do: {self.remedy}"])


@cache
def explanations() -> tuple[Explanation, ...]:
    """All of them: failure codes by stage, then flags, those of checks first. A name may be a code and a flag."""
    return (*_codes(), *(_of_check(name, check) for name, check in CHECKS.items()), *_flags())


def code(name: str) -> Explanation | None:
    """The explanation of a failure code; None for one of another job or version."""
    return _named(name, CODE)


def flag(name: str) -> Explanation | None:
    """The explanation of a flag, without the text after a colon. None for a check of the user's own.

    With several captions an image, the flag of one that failed is its failure code."""
    name = name.partition(":")[0]
    return _named(name, FLAG) or _named(name, CODE)


def explain(word: str) -> list[Explanation]:
    """Explain a code or a flag. Raises RecipeError for an unknown word, with similar names."""
    wanted = word.strip().partition(":")[0].lower().replace("-", "_")
    found = [explanation for explanation in explanations() if explanation.name == wanted]
    if not found:
        names = list(dict.fromkeys(explanation.name for explanation in explanations()))
        close = difflib.get_close_matches(wanted, names, MOST_CLOSE, 0.5) or [
            n for n in names if wanted and wanted in n
        ]
        hint = f"do you mean {' or '.join(close[:MOST_CLOSE])}?" if close else f"they are {', '.join(names)}."
        raise RecipeError(f"{word!r} is neither a failure code nor a flag; {hint}")
    return found


def _named(name: str, kind: str) -> Explanation | None:
    return next((found for found in explanations() if (found.name, found.kind) == (name, kind)), None)


def _codes() -> Iterator[Explanation]:
    for meanings, advice in ((CODES, ADVICE), (scoring.CODES, scoring.ADVICE), (curation.CODES, curation.ADVICE)):
        for name, said in advice.items():
            yield Explanation(name=name, kind=CODE, meaning=meanings[name], causes=said.causes, remedy=said.remedy)


def _flags() -> Iterator[Explanation]:
    for name, advice in FLAG_ADVICE.items():
        yield Explanation(name=name, kind=FLAG, meaning=advice.meaning, causes=advice.causes, remedy=advice.remedy)


def _of_check(name: str, check: type[Check]) -> Explanation:
    return Explanation(
        name=name,
        kind=FLAG,
        meaning=" ".join(str(check.__doc__).split()),
        causes=check.causes,
        remedy=check.remedy,
        not_flagged=check.spares,
    )
