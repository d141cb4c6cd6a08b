"""The page about an evaluation."""

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from caprl_ray.errors import CaprlError
from caprl_ray.evaluate.answers import Evaluation
from caprl_ray.evaluate.cards import MOST_KIND, SORTS, card, in_turn, options
from caprl_ray.evaluate.figures import FEW_IMAGES
from caprl_ray.evaluate.words import Figures, costs, groups, marked, names, percent, points, pvalue, verdicts
from caprl_ray.report import gallery, plots
from caprl_ray.report.page import render
from caprl_ray.report.pictures import Picture
from caprl_ray.report.plots import Plot
from caprl_ray.report.svg import check_matplotlib
from caprl_ray.report.thumbnails import thumbnails
from caprl_ray.version import __version__

SECONDS = 60.0  # for pictures


def page(evaluation: Evaluation, figures: Figures, seconds: float = SECONDS) -> str:
    """The page about an evaluation and its figures (figures.py). Pictures are read for about `seconds`.

    Raises RecipeError if matplotlib is not installed.
    """
    check_matplotlib()
    called = names(figures)
    shown = list(in_turn(figures))
    seen = _pictures(evaluation, dict.fromkeys(one["image"] for _, one in shown), seconds)
    return render(
        "evaluation.html",
        name=", ".join(called[output] for output in figures["outputs"]),
        paths=[gallery.short(output, 300) for output in figures["outputs"] if called[output] != output],
        references=figures["references"],
        tiles=list(_tiles(figures, called)),
        plots=list(_plots(figures, called)),
        ways=list(_ways(figures, called)),
        notes=figures.get("evaluation", {}).get("notes", ()),
        verdicts=list(verdicts(figures)),
        differences=[_difference(one, called) for one in _compared(figures)],
        groups=[_group(word, found, called) for word, found in groups(figures)],
        few=FEW_IMAGES,
        cards=[card(output, one, called, seen[one["image"]]) for output, one in shown],
        options=options(shown, figures, called),
        sorts=SORTS,
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _tiles(figures: Figures, called: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    for output in figures["outputs"]:
        of = figures["ways"][output]["score"]
        note = "" if of is None or of["low"] is None else f"{100 * of['low']:.1f} to {100 * of['high']:.1f} %"
        yield {"name": called[output], "value": percent(of and of["value"]), "note": note}
    yield {"name": "images", "value": f"{figures['images']:,}", "note": f"{figures['questions']:,} questions"}
    yield from ({"name": word, "value": value, "note": ""} for word, value in costs(figures))


def _plots(figures: Figures, called: Mapping[str, str]) -> Iterator[Plot]:
    references = figures["references"]
    rows = [
        (called[way], one["score"], way in references)
        for way, one in figures["ways"].items()
        if one["score"] is not None
    ]
    if rows:
        yield plots.intervals("scores", "Scores and their intervals", rows, "per cent of the questions answered right")
    apart = [
        (f"{called[one['second']]} less {called[one['first']]}", one["difference"], one["first"] in references)
        for one in _compared(figures)
        if one["difference"] is not None
    ]
    if apart:
        yield plots.intervals("apart", "Differences and their intervals", apart, "points", zero=True)


def _compared(figures: Figures) -> list[Mapping[str, Any]]:
    return [*figures["differences"], *figures["against_references"]]


def _ways(figures: Figures, called: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    for way, one in figures["ways"].items():
        yield (
            called[way],
            marked(one),
            f"{one['questions']:,} of {one['asked']:,}",
            f"{one['images']:,}",
            percent(one["can_not_answer"]),
        )


def _difference(one: Mapping[str, Any], called: Mapping[str, str]) -> tuple[str, ...]:
    return (
        f"{called[one['second']]} less {called[one['first']]}",
        points(one["difference"]),
        pvalue(one["p_corrected"]),
        f"{one['images']:,}",
        f"{one['questions_that_differ']:,} of {one['questions']:,}",
        "yes" if one["told_apart"] else "no",
    )


def _group(
    word: str, found: Sequence[Mapping[str, Any]], called: Mapping[str, str]
) -> tuple[str, list[str], list[list[str]]]:
    rows = [
        [
            gallery.short(one["name"], MOST_KIND),
            f"{one['images']:,}",
            *(marked(one["ways"][way]) for way in called),
        ]
        for one in found
    ]
    return word, ["", "images", *called.values()], rows


def _pictures(evaluation: Evaluation, keys: Mapping[str, Any], seconds: float) -> dict[str, Picture]:
    end, found = time.monotonic() + seconds, {}
    with thumbnails() as thumbnail:
        for key in keys:
            late = Picture(missing=f"Reading pictures took longer than {seconds:g} s.")
            found[key] = _picture(evaluation, key, thumbnail) if time.monotonic() < end else late
    return found


def _picture(evaluation: Evaluation, key: str, thumbnail: Any) -> Picture:
    try:
        made: Picture = thumbnail(evaluation.pictures(key))
    except (CaprlError, OSError) as error:
        return Picture(missing=str(error))
    return made
