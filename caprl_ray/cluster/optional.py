"""The switch for everything that reaches into the internals of other libraries, and what this process has missed.

`cluster/internals.py` reaches into Ray, `engines/internals.py` into vLLM. If a library has no such place, or
CAPRL_RAY_PLAIN=1 is set, the job uses public means instead and says once what it is without.
"""

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PLAIN = "CAPRL_RAY_PLAIN"
# What an absent name, attribute or parameter of another version raises.
ABSENT = (ImportError, AttributeError, TypeError, KeyError)

_missing: dict[str, None] = {}  # in the order in which they were missed
_said: set[str] = set()


def plain() -> bool:
    """Whether the user has switched the internals off."""
    return os.environ.get(PLAIN) == "1"


def optional(name: str, reach: Callable[[], T]) -> T | None:
    """What `reach` returns; None if it is switched off, or if the library lacks what it needs.

    `name` says to people what the job is without then.
    """
    if not plain():
        try:
            return reach()
        except ABSENT:
            pass
    miss(name)
    return None


def miss(name: str) -> None:
    """Remember that the job is without this."""
    _missing.setdefault(name)


def missed() -> str | None:
    """One line about everything that was missed and not yet said; None where there is nothing new."""
    new = [name for name in _missing if name not in _said]
    if not new:
        return None
    _said.update(new)
    why = f"{PLAIN}=1 switches them off" if plain() else "these versions of Ray and vLLM do not have them"
    return f"without {', '.join(new)}: {why}; the run may be slower"
