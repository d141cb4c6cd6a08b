"""The figures of an evaluation on a terminal."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from caprl_ray.evaluate.figures import FEW_IMAGES
from caprl_ray.evaluate.words import FEW, Figures, costs, groups, marked, names, one_line, percent, verdicts

WIDTH = 120
WORST_SHOWN, MOST_TEXT = 3, 100  # captions of each output, and characters of a question or a source


def table(figures: Figures, width: int = WIDTH) -> str:
    """Scores, differences, scores by group, the worst captions and cost, in lines."""
    lines = io.StringIO()
    console = Console(file=lines, width=width, color_system=None, markup=False, emoji=False, highlight=False)
    for part in _parts(figures):
        console.print(part)
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines()).rstrip()


def _parts(figures: Figures) -> Iterator[RenderableType]:
    called = names(figures)
    yield _ways(figures, called)
    yield ""
    sentences = list(verdicts(figures))
    yield from map(Text, sentences)
    yield from [""] * bool(sentences)
    by = list(groups(figures))
    for word, found in by:
        yield _groups(word, found, called)
        yield ""
    if any(one["few"] for found in (figures["ways"].values(), *(found for _, found in by)) for one in found):
        yield f"{FEW} fewer than {FEW_IMAGES} images: not to be relied on"
    for output in figures["outputs"]:
        for line in _worst(figures["worst"][output][:WORST_SHOWN], called[output]):
            yield Text(line)
    if cost := costs(figures):
        yield Text("cost: " + ", ".join(f"{value} {word}" if word != "cost" else value for word, value in cost))


def _table(*titles: str) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for place, title in enumerate(titles):
        found.add_column(Text(title), justify="right" if place else "left", overflow="fold", no_wrap=bool(place))
    return found


def _ways(figures: Figures, called: Mapping[str, str]) -> Table:
    found = _table("", "score, 95 % interval", "questions", "images", "can not answer")
    for way, one in figures["ways"].items():
        found.add_row(
            Text(called[way]),
            marked(one),
            f"{one['questions']:,} of {one['asked']:,}",
            f"{one['images']:,}",
            percent(one["can_not_answer"]),
        )
    return found


def _groups(word: str, groups: Sequence[Mapping[str, Any]], called: Mapping[str, str]) -> Table:
    found = _table(word, "images", *called.values())
    for one in groups:
        scores = [one["ways"][way] for way in called]
        found.add_row(
            one_line(one["name"]),
            f"{one['images']:,}",
            *("-" if of["score"] is None else percent(of["score"]["value"]) + FEW * of["few"] for of in scores),
        )
    return found


def _worst(found: Sequence[Mapping[str, Any]], output: str) -> Iterator[str]:
    if found:
        yield f"least answered of {output}:"
    for one in found:
        right = one["questions"] - len(one["missed"])
        source, asked = one_line(one["source"], MOST_TEXT), one_line(one["missed"][0]["question"], MOST_TEXT)
        yield f"  {source}: {right} of {one['questions']} answered right; not: {asked}"
