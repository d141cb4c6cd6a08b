"""Tokens of prompts that begin alike: what they share is tokenized once.

A caption's questions, in all rotations, follow the same instruction and caption, which have most of the tokens. To
tokenize a prompt of 850 tokens takes a core a millisecond (benchmarks/results.md, Scoring).

The tokens must be those of the whole text. Tokenizers first cut a text into words, by the characters around the cut. So
both agree or differ for all prompts with the same characters there, and the first such prompt is the check.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

KEPT = 512  # beginnings: captions that are asked about at the same time
NEAR = 8  # characters on each side of the cut


class SharedText:
    """`encode` is the model's tokenizer: the text, and whether the tokens that begin a prompt belong to it."""

    def __init__(self, encode: Callable[[str, bool], Sequence[int]]) -> None:
        self._rest = encode
        self._begun = lru_cache(KEPT)(lambda text: tuple(encode(text, True)))
        self._agree: dict[tuple[str, str], bool] = {}

    def tokens(self, shared: str, rest: str) -> list[int] | None:
        """The tokens of `shared + rest`; None if they are not those of both parts."""
        if not shared or not rest:
            return None
        place = shared[-NEAR:], rest[:NEAR]
        if self._agree.get(place) is False:
            return None
        joined = [*self._begun(shared), *self._rest(rest, False)]
        if place not in self._agree:
            self._agree[place] = joined == list(self._rest(shared + rest, True))
        return joined if self._agree[place] else None
