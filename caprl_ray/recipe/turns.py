"""A whole prompt: the turns of a chat before the answer."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Turns:
    """What is said before an answer, and how the answer begins.

    `system` None means no system turn at all. `begin` is text that the answer goes on from. `choices`: the answer is
    one of these, each a letter, and nothing else.
    """

    user: str
    system: str | None = None
    begin: str = ""
    choices: tuple[str, ...] = ()
