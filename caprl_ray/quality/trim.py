"""Trim the end of a caption that was stopped: a loop, and half a sentence."""

import re

# The end of a sentence with what closes it (a quote, a bracket, markdown's emphasis), or of a line: lists and tables
# have no full stops.
_WHOLE = re.compile(r"[.!?…]['\"”’)\]*_`]*(?=\s|\Z)|[。！？]['\"”’）」』]*|\|?\n|\|\Z")
# How often a passage must stand there, one after the other, to be a loop.
COPIES = 3
MOST_CHARACTERS = 2**14  # of the end of a text, in which a loop is looked for


def trimmed(text: str) -> str:
    """The text up to the end of its last whole sentence or line, and up to the first round of a loop that ends it.

    A text without a whole sentence comes back as it is, but for the loop. Linear in its length.
    """
    text = text[: _loop_start(text)]
    ends = [match.end() for match in _WHOLE.finditer(text)]
    whole = text[: ends[-1]].rstrip() if ends else ""
    return whole or text.rstrip()


def _loop_start(text: str) -> int:
    """The end of the first round of the loop that ends the text; its length if it ends in none.

    Of all endings that repeat themselves COPIES times, the longest one counts. A text read backwards has a border of
    `border` characters in its first `length` ones exactly if they repeat with the period `length - border` (the prefix
    function of Knuth, Morris and Pratt, 1977).
    """
    backwards = text[-MOST_CHARACTERS:][::-1]
    borders = [0] * len(backwards)
    longest, round_ = 0, 0
    for place in range(1, len(backwards)):
        border = borders[place - 1]
        while border and backwards[place] != backwards[border]:
            border = borders[border - 1]
        borders[place] = border + (backwards[place] == backwards[border])
        length = place + 1
        period = length - borders[place]
        if length >= COPIES * period and length > 2 * period + 16:
            longest, round_ = length, period
    end = len(text) - longest + round_
    return end + (text[end : end + 1] == "\n")  # a line is whole with its end
