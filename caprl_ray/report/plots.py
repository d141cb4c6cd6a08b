"""The plots of a page. Each is a figure with a title, its numbers in a sentence, and SVG."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from caprl_ray.report.svg import FIRST, INK, SECOND, SETTINGS, inline
from caprl_ray.report.timeline import Course, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIMES = "\N{MULTIPLICATION SIGN}"
WIDTH, HEIGHT = 5.4, 2.5  # inches of 72 units
BARS = 12  # of flags, at most
MOST_DOTS = 300
SIDE_TICKS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot: its name on the page, a title, its message in a sentence, and its SVG."""

    name: str
    title: str
    text: str
    svg: Markup


@contextmanager
def _axes(name: str, height: float = HEIGHT, rows: Sequence[int] = (1,)) -> Iterator[tuple["Axes", list[Markup]]]:
    """Axes to draw on, and a list that holds the SVG at the end. Nothing of matplotlib's own state is changed.

    With heights of several `rows` these are the first of as many axes, one above the other.
    """
    import matplotlib
    from matplotlib.figure import Figure

    svg: list[Markup] = []
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        several = figure.subplots(len(rows), squeeze=False, sharex=True, height_ratios=rows)[:, 0]
        for axes in several:
            axes.grid(axis="y")
        yield several[0], svg
        svg.append(inline(figure, name))


def over_time(times: Timeline, noun: str) -> Plot:
    """Rows a second, over the time at which their objects were written."""
    unit, word = _unit(float(times.edges[-1]))
    with _axes("time") as (axes, svg):
        axes.stairs(times.per_second, times.edges / unit, fill=True, color=FIRST, alpha=0.25)
        axes.stairs(times.per_second, times.edges / unit, color=FIRST, linewidth=1.4)
        axes.set(xlabel=f"{word} from the start", ylabel=f"{noun}s a second", ylim=(0, None), xlim=(0, None))
    seconds = float(times.edges[-1])
    mean, most = times.rows.sum() / seconds, times.per_second.max()
    text = (
        f"{times.rows.sum():,.0f} {noun}s in {duration(seconds)}: {mean:,.3g} a second on average, {most:,.3g} at most."
    )
    return Plot(name="time", title="Rate over time", text=text, svg=svg[0])


def course(times: Course, noun: str) -> Plot:
    """Rows a second, and below them the replicas that ran, over the same time."""
    unit, word = _unit(float(times.edges[-1]))
    most = float(times.replicas.max())
    with _axes("time", HEIGHT + 1.2, rows=(2, 1)) as (axes, svg):
        above, below = axes.figure.axes
        above.stairs(times.per_second, times.edges / unit, fill=True, color=FIRST, alpha=0.25)
        above.stairs(times.per_second, times.edges / unit, color=FIRST, linewidth=1.4)
        above.set(ylabel=f"{noun}s a second", ylim=(0, None), xlim=(0, None))
        above.tick_params(labelbottom=False)
        below.stairs(times.replicas, times.edges / unit, fill=True, color=SECOND, alpha=0.35)
        below.set(xlabel=f"{word} from the start", ylabel="replicas", ylim=(0, max(1.0, 1.15 * most)))
        below.locator_params(axis="y", integer=True, nbins=4)
    runs = f" in {times.runs} runs" if times.runs > 1 else ""
    text = (
        f"{duration(float(times.edges[-1]))}{runs}: at most {times.per_second.max():,.3g} {noun}s a second; "
        f"{times.mean_replicas:,.3g} replicas on average while any ran, at most {most:,.3g}."
    )
    return Plot(name="time", title="Rate and replicas over time", text=text, svg=svg[0])


def lengths(values: np.ndarray, what: str) -> Plot:
    """A histogram of caption lengths."""
    low, middle, high = np.percentile(values, (5, 50, 95))
    edge = float(max(np.percentile(values, 99.5), 1))
    with _axes("lengths") as (axes, svg):
        counts, edges = np.histogram(np.minimum(values, edge), bins=min(48, max(4, int(edge))), range=(0, edge))
        axes.bar(edges[:-1], counts, np.diff(edges) * 0.92, align="edge", color=FIRST)
        axes.axvline(middle, color=SECOND, linewidth=1.2)
        axes.text(middle, 1, f"  median {middle:,.0f}", va="top", color=INK, transform=axes.get_xaxis_transform())
        axes.set(xlabel=f"{what} of a caption", ylabel="captions", xlim=(0, edge))
    text = f"Median {middle:,.0f} {what}; nine of ten have {low:,.0f} to {high:,.0f}; the longest {values.max():,}."
    return Plot(name="lengths", title="Lengths", text=text, svg=svg[0])


def two_lengths(first: np.ndarray, second: np.ndarray, what: str) -> Plot:
    """The lengths of captions of the same images under two recipes."""
    edge = float(max(np.percentile(np.concatenate([first, second]), 99.5), 1))
    bins = np.linspace(0, edge, min(48, max(4, int(edge))) + 1)
    with _axes("lengths") as (axes, svg):
        for name, values, colour, style in (("A", first, FIRST, "-"), ("B", second, SECOND, "--")):
            counts, _ = np.histogram(np.minimum(values, edge), bins)
            axes.stairs(counts, bins, color=colour, linestyle=style, linewidth=1.6, label=name)
        axes.legend(frameon=False)
        axes.set(xlabel=f"{what} of a caption", ylabel="captions", xlim=(0, edge), ylim=(0, None))
    text = f"Median {np.median(first):,.0f} {what} in A, {np.median(second):,.0f} in B."
    return Plot(name="lengths", title="Lengths", text=text, svg=svg[0])


def distances(values: np.ndarray, same: int) -> Plot:
    """The share of words that the two captions of an image do not have in common."""
    with _axes("distances") as (axes, svg):
        counts, edges = np.histogram(100 * values, bins=25, range=(0, 100))
        axes.bar(edges[:-1], counts, np.diff(edges) * 0.92, align="edge", color=FIRST)
        axes.set(xlabel="per cent of words that are in one caption only", ylabel="images", xlim=(0, 100))
    text = f"Median {100 * np.median(values):,.0f} %; {same:,} pairs of captions are the same to the letter."
    return Plot(name="distances", title="Words that differ", text=text, svg=svg[0])


def resolutions(width: np.ndarray, height: np.ndarray) -> Plot:
    """Widths and heights of the source images: the larger a dot, the more images."""
    for step in (8, 4, 3, 2):  # dots to each doubling
        sides = np.round(np.log2(np.stack([width, height])) * step).astype(np.int64)
        places, counts = np.unique(sides, axis=1, return_counts=True)
        if len(counts) <= MOST_DOTS:
            break
    with _axes("sizes", HEIGHT + 0.5) as (axes, svg):
        area = 8 + 160 * counts / counts.max()
        across, up = 2.0 ** (places / step)
        axes.scatter(across, up, s=area, color=FIRST, alpha=0.55, linewidths=0)
        axes.set(xscale="log", yscale="log", xlabel="width in pixels", ylabel="height in pixels")
        for axis, values in ((axes.xaxis, width), (axes.yaxis, height)):
            ticks = [tick for tick in SIDE_TICKS if values.min() / 2 <= tick <= values.max() * 2]
            axis.set_ticks(ticks, [str(tick) for tick in ticks])
            axis.set_ticks([], minor=True)
        axes.grid(axis="both")
    pixels = np.median(width * height) / 1e6
    text = (
        f"Median {pixels:,.2g} megapixels, from {_size(width, height, np.argmin)} to {_size(width, height, np.argmax)}."
    )
    return Plot(name="sizes", title="Resolutions", text=text, svg=svg[0])


def bars(name: str, title: str, counts: Mapping[str, int], total: int, noun: str) -> Plot:
    """Horizontal bars with their counts, the largest first."""
    shown = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:BARS]
    labels, values = [label for label, _ in shown], [value for _, value in shown]
    with _axes(name, 0.5 + 0.26 * max(3, len(shown))) as (axes, svg):
        drawn = axes.barh(labels, values, 0.62, color=FIRST)
        axes.bar_label(drawn, [share(value, total) for value in values], padding=4, color=INK)
        axes.set_ylim(max(3, len(shown)) - 0.5, -0.5)
        axes.margins(x=0.22)
        axes.grid(visible=False)
        axes.grid(axis="x")
        axes.set(xlabel=noun)
        axes.locator_params(axis="x", integer=True, nbins=5)
    more = f"; {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
    text = "; ".join(f"{label} {value:,} ({share(value, total)})" for label, value in shown[:4]) + more + "."
    return Plot(name=name, title=title, text=text, svg=svg[0])


def columns(name: str, title: str, counts: Mapping[str, int], total: int, labels: Sequence[str]) -> Plot:
    """Vertical bars in the order of the keys. `labels` are those of the two axes."""
    keys = sorted(counts, key=int)
    with _axes(name) as (axes, svg):
        drawn = axes.bar(keys, [counts[key] for key in keys], 0.55, color=FIRST)
        axes.bar_label(drawn, [share(counts[key], total) for key in keys], padding=3, color=INK)
        axes.margins(x=max(0.05, 0.4 - 0.05 * len(keys)), y=0.15)
        axes.set(xlabel=labels[0], ylabel=labels[1])
    text = "; ".join(f"{key}: {counts[key]:,} ({share(counts[key], total)})" for key in keys[:6]) + "."
    return Plot(name=name, title=title, text=text, svg=svg[0])


def intervals(
    name: str, title: str, rows: Sequence[tuple[str, Mapping[str, Any], bool]], across: str, *, zero: bool = False
) -> Plot:
    """Shares of 1 with their intervals in per cent, a line each; also where zero is. What is marked is drawn in the
    second colour."""
    with _axes(name, 0.6 + 0.3 * max(3, len(rows))) as (axes, svg):
        for place, (_, of, marked) in enumerate(rows):
            value, colour = 100 * of["value"], SECOND if marked else FIRST
            low, high = (value if of[end] is None else 100 * of[end] for end in ("low", "high"))
            axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot(value, place, "D" if marked else "o", color=colour, markersize=6)
        if zero:
            axes.axvline(0, color=INK, linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
        axes.set(xlabel=across, ylim=(max(3, len(rows)) - 0.5, -0.5))
        axes.grid(visible=False)
        axes.grid(axis="x")
    text = "; ".join(f"{label} {100 * of['value']:.1f}" for label, of, _ in rows) + "."
    return Plot(name=name, title=title, text=text, svg=svg[0])


def share(count: float, total: float) -> str:
    """A part of the whole, in per cent."""
    part = count / total if total else 0.0
    return "0 %" if not count else "< 0.1 %" if part < 0.001 else f"{100 * part:.1f} %".replace(".0 %", " %")


def duration(seconds: float) -> str:
    """A time in words."""
    unit, word = _unit(seconds)
    return f"{seconds / unit:,.3g} {word}"


def _unit(seconds: float) -> tuple[float, str]:
    return (
        (86400, "days")
        if seconds > 2 * 86400
        else (3600, "hours")
        if seconds > 7200
        else ((60, "minutes") if seconds > 120 else (1, "seconds"))
    )


def _size(width: np.ndarray, height: np.ndarray, which: Any) -> str:
    place = which(width.astype(np.int64) * height)
    return f"{width[place]:,} {TIMES} {height[place]:,}"
