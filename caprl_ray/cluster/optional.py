"""The switch for all code that uses internals of other libraries, and the list of what this process lacks.

`cluster/internals.py` uses internals of Ray, `engines/internals.py` those of vLLM. If a library has no such place, or
CAPRL_RAY_PLAIN=1 is set, the job uses public interfaces and says once what it lacks.
"""

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PLAIN = "CAPRL_RAY_PLAIN"
# Exceptions for a name, attribute or parameter that another version lacks.
ABSENT = (ImportError, AttributeError, TypeError, KeyError)

_missing: dict[str, None] = {}  # in order
_said: set[str] = set()


def plain() -> bool:
    """Whether internals are switched off."""
    return os.environ.get(PLAIN) == "1"


def optional(name: str, reach: Callable[[], T]) -> T | None:
    """The result of `reach`; None if internals are switched off or the library lacks something. `name` names it in the
    message.
    """
    if not plain():
        try:
            return reach()
        except ABSENT:
            pass
    miss(name)
    return None


def miss(name: str) -> None:
    """Remember that the job lacks this."""
    _missing.setdefault(name)


def missed() -> str | None:
    """One line about everything that is missing and was not reported yet; None if there is nothing new."""
    new = [name for name in _missing if name not in _said]
    if not new:
        return None
    _said.update(new)
    absent = "these versions of Ray and vLLM, or this model, do not have them"
    why = f"{PLAIN}=1 switches them off" if plain() else absent
    return f"without {', '.join(new)}: {why}; the run may be slower"
