"""The table of measurements, one line per setting."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting of the table. Figures are None if it failed or if they are unknown."""

    setting: str
    changes: dict[str, Any]
    may_change: list[str]
    note: str
    images_s: float | None
    images_s_low: float | None
    images_s_high: float | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    faster: bool
    tokens_s: float | None
    gpu_busy: float | None
    memory_bytes: int | None
    start_s: float | None
    first_caption_s: float | None
    equal: int
    compared: int
    per_million: float | None
    score: float | None
    score_low: float | None
    score_high: float | None
    seconds: float
    failure: str

    def cells(self) -> list[str]:
        """The cells of the table."""
        if self.failure:
            return [self.setting]
        return [
            self.setting,
            f"{self.images_s:.2f}",
            "" if self.gain is None else percent(self.gain, self.gain_low, self.gain_high),
            f"{self.tokens_s:,.0f}" if self.tokens_s else "-",
            "-" if self.gpu_busy is None else f"{self.gpu_busy:.0%}",
            f"{self.memory_bytes / GIB:.1f} GiB" if self.memory_bytes else "-",
            f"{self.first_caption_s:.1f} s",
            f"{self.equal} of {self.compared}" if self.compared else "-",
            "-" if self.per_million is None else f"${self.per_million:,.2f}",
            "" if self.score is None else f"{self.score:.3f} [{self.score_low:.3f} to {self.score_high:.3f}]",
        ]


TITLES = (
    "",
    "images/s",
    "gain",
    "tokens/s",
    "GPU busy",
    "memory",
    "first caption",
    "equal captions",
    "1M images",
    "score",
)


def lines_of(rows: list[Row]) -> Iterator[str]:
    """Lines of a table. A setting that failed has the reason in place of figures."""
    cells = [list(TITLES), *(row.cells() for row in rows)]
    if not any(row.score is not None for row in rows):
        cells = [row[: len(TITLES) - 1] for row in cells]
    widths = [max(len(row[n]) for row in cells if n < len(row)) for n in range(len(cells[0]))]
    failures = ["", *(row.failure for row in rows)]
    for row, failure in zip(cells, failures, strict=True):
        name, *figures = row
        columns = (figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=False))
        yield "  ".join([f"  {name.ljust(widths[0])}", *([failure] if failure else columns)]).rstrip()


def percent(gain: float, low: float | None, high: float | None) -> str:
    """A factor as a percentage of gain, with its interval."""
    text = f"{gain - 1:+.1%}"
    return text if low is None or high is None else f"{text} [{low - 1:+.1%} to {high - 1:+.1%}]"
