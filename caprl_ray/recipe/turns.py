"""A whole prompt: the turns of a chat before the answer."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The turns before an answer, and the beginning of the answer.

    `system` None means no system turn at all. `begin` is text that the answer goes on from. `choices`: the answer is
    one of these, each a letter, and nothing else. `shared` is how many characters of `user` other prompts begin with,
    too, which may be asked at the same time.
    """

    user: str
    system: str | None = None
    begin: str = ""
    choices: tuple[str, ...] = ()
    shared: int = 0
