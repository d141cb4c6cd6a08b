"""The view of a status on a terminal."""

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from caprl_ray.watch.status import Status
from caprl_ray.watch.words import clock, facts

LEAST_WIDTH = 40  # columns, below which lines are easier to read
LABEL_WIDTH, LAST_LINES, MOST_BAR = 12, 2, 60


def fits(console: Console) -> bool:
    """Whether a view can be drawn there repeatedly in one place."""
    return console.is_terminal and not console.is_dumb_terminal and console.width >= LEAST_WIDTH


def view(status: Status, width: int, note: str = "") -> RenderableType:
    """The whole view; `note` is what a reader from elsewhere adds. Texts of the dataset are no markup."""
    told = facts(status)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=LABEL_WIDTH - 2)
    table.add_column(overflow="fold")
    if status.rates.planned:
        table.add_row(
            "", ProgressBar(total=status.rates.planned, completed=status.done, width=min(width - LABEL_WIDTH, MOST_BAR))
        )
    for name, text in told.items():
        shown = text[: LAST_LINES * (width - LABEL_WIDTH)] if name == "last" else text
        style = "yellow" if name == "failed" and status.failed else ""
        table.add_row(name, Text(shown, style=style))
    head = Text(f"{status.run.job}  {status.run.output}  {clock(status.record.seconds)}", style="bold")
    return Group(head, table, *([Text(note, style="bold")] if note else []))
