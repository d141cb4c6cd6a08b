"""The check for captions that repeat themselves.

The text is compressed in one pass and in pieces, each after everything before it. A piece that only repeats earlier
text shrinks to a few bytes, however long the text or the repeated part is. (The ratio of a whole text depends on its
length: 2 % of normal texts of 600 characters are above Whisper's limit of 2.4, and 33 % of those of 6,000.) Only the
low byte of each character is compressed, so that all scripts have the same weight.
"""

import operator
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from caprl_ray.quality.caption import Caption
from caprl_ray.quality.check import Check, threshold

PIECE = 300
END = 2 * PIECE
# Han, kana and hangul need fewer characters for the same content.
DENSE_PIECE = 150
_DENSE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
# A piece is a table that is set out with spaces or lines only if it has more than half as many other characters.
_SET_OUT = 24
_TRIES = 4  # periods that are tried, because a repeated part may contain its own last characters more than once
_SHORT = 60  # characters; a shorter text is no loop
_TAIL = 16  # characters at the end; where they stood before gives the period of a repetition
_NUMBER = re.compile("[0-9]{1,9}(?![0-9])")  # of a longer number, the last nine digits
_LAST = 48  # the last numbers, which are tested first and may be less regular than all
_STRUCTURE = re.compile(r"[\d|]|\n.*\n.*\n", re.DOTALL)
_DECIMAL = b"0123456789"
_DIGITS = str.maketrans("123456789", "000000000")
_FILL = re.compile(r"([ \t\-=_.])\1{2,250}")
_MARKUP = re.compile(r"[|{}<>=;\\_#\d]")
# Deflate without a header. A memLevel of 5 starts four times as fast as the default and compresses short texts equally
# well. With fixed codes, the pieces need no tables of codes.
_LEVEL, _WINDOW, _MEMORY, _CODES = 1, -15, 5, zlib.Z_FIXED


@dataclass(frozen=True, kw_only=True)
class Loop(Check):
    """The caption repeats itself: at its end, or over a long part anywhere."""

    name: ClassVar = "loop"
    severe: ClassVar = True
    version: ClassVar = 2
    spares: ClassVar = (
        "Tables, long lists, code, repeated axis labels, refrains of poems, and a phrase that comes back now and then."
    )
    causes: ClassVar = "Greedy or nearly greedy decoding of dense or repetitive pictures."
    remedy: ClassVar = (
        "Give `quality.retries` a higher temperature or `repetition_penalty`, and caption some again; `caprl-ray "
        "compare` shows what changes."
    )

    ratio: float = threshold(
        8.0,
        3,
        100,
        "The compression ratio of a piece of 300 characters of prose, compressed after the text before it.",
        "measured on benchmarks/captions: good prose reaches 5 and a seat map 7; whole pieces of loops are above 9",
    )
    ratio_markup: float = threshold(
        20.0,
        3,
        200,
        "The same ratio for tables, code and numbers.",
        "measured on benchmarks/captions: good tables and charts reach 6.4; tables in documentation reach more",
    )
    copies: int = threshold(
        3, 2, 100, "The number of exact copies at the end that are a loop.", "llama.cpp's loop guard: 3 copies"
    )
    characters: int = threshold(
        200,
        20,
        10_000,
        "The least number of characters in these copies. Characters are counted as bytes in UTF-8.",
        "llama.cpp's loop guard: 48 tokens; a third of the value if decoding was cut off",
    )
    unique_words: float = threshold(
        0.2,
        0.01,
        0.6,
        "The least share of different words in the last 600 characters, if they have no number and no table.",
        "cosmos-curator flags less than 0.4 in whole captions; good ends in benchmarks/captions have 0.41 or more",
    )

    def found(self, caption: Caption) -> bool:
        if caption.finish_reason == "repetition":
            return True
        cut = caption.finish_reason == "length"
        text = caption.text.rstrip()
        if len(caption.text) - len(text) >= self.characters:
            return True
        if len(text) < _SHORT:
            return False
        return self._copies(text, cut) or _counts_on(text, cut) or self._few_words(text) or self._repeats(text, cut)

    def _copies(self, text: str, cut: bool) -> bool:
        """Whether the text ends in copies of one part of any length. In a cut text, fewer characters are enough."""
        least = self.characters // 3 if cut else self.characters
        for period in _periods(text):
            unit = text[-period:]
            copies = max(self.copies, -(-least // len(unit.encode(errors="replace"))))
            if len(text) >= period * copies and text.endswith(unit * copies):
                return True
            if len(text) >= period * (self.copies + 1) and text.startswith(text[period:]):
                return True  # the whole text is copies
        return False

    def _few_words(self, text: str) -> bool:
        """Whether the end is prose that consists of a few words in changing order."""
        words = text[-END:].split()[1:]
        return (
            len(words) >= 60 and len(set(words)) < self.unique_words * len(words) and not _STRUCTURE.search(text[-END:])
        )

    def _repeats(self, text: str, cut: bool) -> bool:
        """Whether two pieces in a row repeat earlier text, or the last one does, or a piece of prose is a mere copy."""
        before = small = False
        for piece, size in compressed(text):
            before, small = small, size * self.ratio < len(piece) and self._is_loop(piece, size, cut)
            if small and (before or (size * self.ratio * 2 < len(piece) and not _has_markup(piece))):
                return True
        return small

    def _is_loop(self, piece: str, size: int, cut: bool) -> bool:
        """Whether a piece with a high compression ratio is a loop, and no table, list or form."""
        if _SET_OUT < 2 * _content_length(piece) < len(piece):
            return False
        if not _has_markup(piece):
            return True
        ratio = (self.ratio + self.ratio_markup) / 2 if cut else self.ratio_markup
        return size * ratio < len(piece)


def _periods(text: str) -> Iterator[int]:
    """Possible periods of a repetition at the end: the distances to earlier copies of the text's last characters."""
    place = len(text) - _TAIL
    for _ in range(_TRIES):
        place = text.rfind(text[-_TAIL:], 0, place + _TAIL - 1)
        if place < 0:
            return
        yield len(text) - _TAIL - place


def _content_length(piece: str) -> int:
    """The length of a piece without the spaces and lines that set out a table."""
    return len(_FILL.sub(r"\1", piece))


def compressed(text: str) -> Iterator[tuple[str, int]]:
    """The pieces of the text in order, each with its compressed size after all text before it.

    All pieces have the same length. The remainder at the text's start is only compressed and not returned.
    """
    dense = not text.isascii() and 3 * len(_DENSE.findall(text)) > len(text)
    size = DENSE_PIECE if dense else PIECE
    data = text.encode("utf-16-le", "surrogatepass")[::2] if not text.isascii() else text.encode()
    # A character beyond the BMP has two units in UTF-16. Then each unit becomes a character, so that places agree.
    text = text if len(data) == len(text) else data.decode("latin-1")
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW, _MEMORY, _CODES)
    start = len(data) % size
    packer.compress(data[:start])
    packer.flush(zlib.Z_PARTIAL_FLUSH)
    for begin in range(start, len(data), size):
        packed = packer.compress(data[begin : begin + size])
        yield text[begin : begin + size], len(packed) + len(packer.flush(zlib.Z_PARTIAL_FLUSH))


def _has_markup(piece: str) -> bool:
    return 100 * len(_MARKUP.findall(piece)) > 6 * len(piece)


def _counts_on(text: str, cut: bool) -> bool:
    """Whether the end repeats one phrase with a number that counts up or down."""
    end = text[-END:] if cut else text[-2 * END :]
    data = end.encode(errors="replace")
    if len(end) < END or len(data) - len(data.translate(None, _DECIMAL)) < 12:
        return False
    if not _is_counting(_NUMBER.findall(end[-END:])[-_LAST:], 3 / 4) or not _is_counting(_NUMBER.findall(end), 9 / 10):
        return False
    masked = re.sub("0+", "0", end.translate(_DIGITS))
    return len(zlib.compress(masked.encode("utf-16-le", "surrogatepass")[::2], 1)) * 6 < len(masked)


def _is_counting(digits: list[str], share: float) -> bool:
    """Whether numbers count up or down: each is the one before it, or two or three places before, plus a constant."""
    numbers = list(map(int, digits[1:-1]))  # without the outer ones, which may be cut off
    return any(_steps(numbers, apart, share) for apart in (1, 2, 3))


def _steps(numbers: list[int], apart: int, share: float) -> bool:
    """Whether at least this share of the numbers equals the number `apart` places before, or that plus a constant.

    Enough of them must be the latter.
    """
    differences = list(map(operator.sub, numbers[apart:], numbers))
    steps = Counter(filter(None, differences)).most_common(1)
    more = steps[0][1] if steps else 0
    return more * 4 >= max(4, len(numbers) // apart) and more + differences.count(0) >= share * len(differences)
