"""Trim a loop and an incomplete sentence off the end of a caption."""

import re

# The end of a sentence, with closing quotes, brackets and markdown emphasis, or the end of a line, because lists and
# tables have no full stops.
_WHOLE = re.compile(r"[.!?…]['\"”’)\]*_`]*(?=\s|\Z)|[。！？]['\"”’）」』]*|\|?\n|\|\Z")
# A passage is a loop if it stands there this many times in a row.
COPIES = 3
MOST_CHARACTERS = 2**14  # at the end of a text; a loop is looked for only in these


def trimmed(text: str) -> str:
    """Remove an incomplete last sentence or line. If the text ends in a loop, remove all but its first round, too.

    From a text without a whole sentence, only the loop is removed. Takes time linear in the text's length.
    """
    text = text[: _loop_start(text)]
    ends = [match.end() for match in _WHOLE.finditer(text)]
    whole = text[: ends[-1]].rstrip() if ends else ""
    return whole or text.rstrip()


def _loop_start(text: str) -> int:
    """The place after the first round of the loop at the end of the text; the text's length if there is no loop.

    Of all endings that repeat themselves COPIES times, the longest one counts. They are found in the reversed text: its
    first `length` characters have a border of `border` characters exactly if they repeat with the period `length -
    border` (the prefix function of Knuth, Morris and Pratt, 1977).
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
    return end + (text[end : end + 1] == "\n")  # a line is whole only with its line break
