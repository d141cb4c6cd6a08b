"""A whole prompt: the turns of a chat before the answer."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The turns before an answer, and the beginning of the answer.

    Attributes:
        user: the text of the user turn.
        system: the text of the system turn; None means no system turn at all.
        begin: the beginning of the answer, which the model continues.
        choices: the letters of which the answer must be one; empty for any answer.
        shared: how many characters at the start of `user` are the same in prompts that may be asked at the same time.
    """

    user: str
    system: str | None = None
    begin: str = ""
    choices: tuple[str, ...] = ()
    shared: int = 0
