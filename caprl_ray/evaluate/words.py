"""The figures of an evaluation in words, for the terminal and the page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from caprl_ray.evaluate.asked import IMAGE_KIND, QUESTION_KIND, RESOLUTION
from caprl_ray.evaluate.figures import FEW_IMAGES
from caprl_ray.text import plain

Figures = Mapping[str, Any]
FEW = "*"  # marks figures from few images
MOST_NAME, MOST_IMAGES = 60, 1_000_000
MOST_SOURCE = 300  # characters of a path in a sentence
GROUPS = {IMAGE_KIND: "kind of image", QUESTION_KIND: "kind of question", RESOLUTION: "resolution"}
COSTS = {
    "seconds": ("seconds", "{:,.0f}"),
    "gpu_hours": ("GPU hours", "{:,.2f}"),
    "dollars": ("cost", "${:,.2f}"),
    "questions_written": ("questions written", "{:,.0f}"),
    "questions_kept": ("questions kept", "{:,.0f}"),
    "questions_asked": ("questions asked", "{:,.0f}"),
    "answers": ("answers", "{:,.0f}"),
}


def names(figures: Figures) -> dict[str, str]:
    """Names of the ways: an output is called by the last part of its path, unless two outputs have the same."""
    ways = [*figures["outputs"], *figures["references"]]
    last = {way: one_line(way.rstrip("/").rpartition("/")[2] or way) for way in ways}
    called = [*last.values()]
    return {way: last[way] if called.count(last[way]) == 1 else _lettered(way) for way in ways}


def _lettered(way: str) -> str:
    """The name of a way on one line, with its letter: "B: …/out"."""
    letter, colon, path = way.partition(": ")
    return f"{letter}{colon}{one_line(path)}" if path else one_line(way)


def one_line(text: str, most: int = MOST_NAME) -> str:
    """Untrusted text on one line; a long text loses its beginning."""
    text = " ".join(plain(text).split())
    return text if len(text) <= most else f"…{text[-most:]}"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "none" if value is None else f"{100 * value:.1f} %"


def scored(value: Mapping[str, Any] | None) -> str:
    """A score with its interval."""
    if value is None:
        return "no answers"
    return f"{percent(value['value'])}{_bounds(value, '')}"


def marked(one: Mapping[str, Any]) -> str:
    """The score of a way or of a group, with its interval and a mark if it comes from few images."""
    return f"{scored(one['score'])}{FEW if one['few'] and one['score'] else ''}"


def _bounds(value: Mapping[str, Any], sign: str) -> str:
    if value["low"] is None:
        return ""
    return f" [{100 * value['low']:{sign}.1f}, {100 * value['high']:{sign}.1f}]"


def verdicts(figures: Figures) -> Iterator[str]:
    """How outputs compare with each other, a sentence or a few for each pair."""
    called, found = names(figures), figures["differences"]
    yield from (verdict(one, called) for one in found)
    if len(found) > 1:
        yield f"The p-values are corrected for {len(found)} comparisons (Holm); the intervals are not."


def verdict(one: Mapping[str, Any], called: Mapping[str, str]) -> str:
    """One comparison."""
    first, second, value = called[one["first"]], called[one["second"]], one["difference"]
    if value is None:
        return f"{first} and {second} cannot be compared: they have no answered question in common."
    if one["told_apart"]:
        better, worse = (second, first) if value["value"] > 0 else (first, second)
        ends = [value["low"], value["high"]] if value["value"] > 0 else [-value["high"], -value["low"]]
        size = {"value": abs(value["value"]), "low": ends[0], "high": ends[1]}
        by = f"{100 * size['value']:.1f} points{_bounds(size, '')}, p = {pvalue(one['p_corrected'])}"
        return f"{better} is better than {worse} by {by}.{_few(one)}"
    images = f"{one['images']:,} image{'' if one['images'] == 1 else 's'}"
    said = f"{first} and {second} cannot be told apart with {images}"
    if not one["questions_that_differ"]:
        return f"{said}: all {one['questions']:,} questions were answered alike."
    p = pvalue(one["p_corrected"])
    return f"{said}: {second} differs by {points(value)} points, p = {p}.{_needed(one)}{_few(one)}"


def points(value: Mapping[str, Any] | None) -> str:
    """A difference with its interval, in percentage points."""
    return "none" if value is None else f"{100 * value['value']:+.1f}{_bounds(value, '+')}"


def pvalue(p: float) -> str:
    """A p-value."""
    return f"{p:.2f}" if p >= 0.1 else f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def _few(one: Mapping[str, Any]) -> str:
    return f" With fewer than {FEW_IMAGES} images the interval is too narrow." if one["images"] < FEW_IMAGES else ""


def _needed(one: Mapping[str, Any]) -> str:
    """The difference that this sample can detect, and the images needed for the measured one."""
    said = f" This sample can tell {100 * one['smallest']:.1f} points." if one["smallest"] else ""
    if one["images_needed"]:
        seen = f"{100 * abs(one['difference']['value']):.1f} points"
        said += f" For {seen} it takes {about(one['images_needed'])} images."
    return said


def about(images: int) -> str:
    """A number of images, rounded up to two digits."""
    if images > MOST_IMAGES:
        return f"more than {MOST_IMAGES:,}"
    step = 10 ** max(0, len(str(images)) - 2)
    return f"about {-(-images // step) * step:,}"


def costs(figures: Figures) -> list[tuple[str, str]]:
    """The known cost of the evaluation."""
    cost = figures["cost"]
    return [(word, form.format(cost[name])) for name, (word, form) in COSTS.items() if cost.get(name) is not None]


def groups(figures: Figures) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    """The groups of scores, by the name of the grouping. A single group is left out."""
    yield from ((word, figures["by"][by]) for by, word in GROUPS.items() if len(figures["by"][by]) > 1)
