"""Tokens of prompts that begin alike: what they share is tokenized once.

A caption's questions, in all rotations, follow the same instruction and caption, which have most of the tokens. vLLM
takes a core a millisecond or two to tokenize such a prompt (benchmarks/results.md, Scoring).

The tokens must be those that vLLM makes of the whole text. Tokenizers first cut a text into words, by the characters
around the cut. So whole and parts agree or differ for all prompts with the same characters there, and the first such
prompt, which vLLM tokenizes, is the check.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

KEPT = 512  # beginnings: captions that are asked about at the same time
NEAR = 8  # characters on each side of the cut
MOST_PLACES = 64  # a prompt of the user's own may have the caption's characters there, which are always others


class SharedText:
    """`encode` is the model's tokenizer: of a text, and with the tokens that begin a prompt or without."""

    def __init__(self, encode: Callable[[str, bool], Sequence[int]]) -> None:
        self._rest = encode
        self._begun = lru_cache(KEPT)(lambda text: tuple(encode(text, True)))
        self._agree: dict[tuple[str, str], bool] = {}

    def tokens(self, shared: str, rest: str) -> list[int] | None:
        """The tokens of `shared + rest`; None if it is not known that they are those of both parts."""
        return self._joined(shared, rest) if self._agree.get(_place(shared, rest)) else None

    def learn(self, shared: str, rest: str, whole: Sequence[int] | None) -> None:
        """Compare with vLLM's tokens of the whole text; None if vLLM did not say."""
        place = _place(shared, rest)
        if whole and place not in self._agree and len(self._agree) < MOST_PLACES:
            self._agree[place] = self._joined(shared, rest) == list(whole)

    def _joined(self, shared: str, rest: str) -> list[int]:
        return [*self._begun(shared), *self._rest(rest, False)]


def _place(shared: str, rest: str) -> tuple[str, str]:
    return shared[-NEAR:], rest[:NEAR]
