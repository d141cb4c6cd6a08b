"""`caprl-ray report`: one page about one output."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from caprl_ray.errors import RecipeError
from caprl_ray.explain import Explanation, code, flag
from caprl_ray.output import scores
from caprl_ray.output.scan import Tell, silent
from caprl_ray.output.summary import content
from caprl_ray.report import gallery, plots
from caprl_ray.report.evaluation import sentences
from caprl_ray.report.facts import Facts, facts
from caprl_ray.report.page import render
from caprl_ray.report.pictures import pictures
from caprl_ray.report.plots import Plot, share
from caprl_ray.report.sample import Sample, sample
from caprl_ray.report.strata import Row
from caprl_ray.report.svg import check_matplotlib
from caprl_ray.report.timeline import course, timeline
from caprl_ray.storage import Storage, join
from caprl_ray.version import __version__
from caprl_ray.watch import history

PLACE = ("report", "index.html")  # in an output
IMAGES, SECONDS = 480, 60.0  # defaults: rows in the gallery, and seconds for reading their images
EXAMPLES = 3  # of rows with one failure


def report(
    storage: Storage,
    path: str,
    *,
    images: int = IMAGES,
    seconds: float = SECONDS,
    old_column: str | None = None,
    tell: Tell = silent,
) -> str:
    """The page about an output.

    Args:
        images: rows in the gallery, at most.
        seconds: the time after which no more images are read.
        old_column: the source's column with the old text; found by its name if left out.

    Raises:
        RecipeError: there is no output, or matplotlib is not installed.
        SystemFailure: the output cannot be read.
    """
    check_matplotlib()
    found = facts(storage, path, tell)
    old = found.old_text(old_column)
    rows = sample(found, images, old, tell)
    return render("report.html", **_content(found, rows, old, seconds))


def written(storage: Storage, path: str) -> str:
    """Write the page about an output into the output. Returns a line with its path, or with the reason why there is
    none."""
    to = join(path, *PLACE)
    try:
        storage.put(to, report(storage, path).encode())
    except RecipeError as error:
        return f"no report: {error}"
    return f"report: {to}"


def _content(found: Facts, rows: Sample, old: str | None, seconds: float) -> dict[str, Any]:
    shown = [row for _, row in rows.shown]
    seen = pictures(found, shown, seconds)
    cards = [gallery.card(row, seen[row["id"]]) for row in shown]
    ledger = found.ledger
    return {
        "name": found.path.rstrip("/").rpartition("/")[2] or found.path,
        "path": found.path,
        "state": _state(found),
        "tiles": list(_tiles(found)),
        "notes": list(_notes(found)),
        "plots": list(_plots(found, rows)),
        "read": _read(found, rows),
        "failures": _faults(ledger.counts.codes, ledger.failed, code, "code", shown),
        "flags": _faults(ledger.counts.flags, ledger.finished, flag, "flag", shown),
        "chosen": _chosen(found, len(cards)),
        "cards": cards,
        "old_column": old or "",
        "options": gallery.options(shown),
        "sorts": gallery.SORTS,
        "prompts": list(prompts(found)),
        "recipe": json.dumps(found.recipe, indent=1, ensure_ascii=False),
        "version": __version__,
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def _state(found: Facts) -> Mapping[str, str]:
    if not found.plan.complete:
        return {"kind": "warn", "text": "the input is not planned to its end"}
    if found.balanced:
        return {"kind": "good", "text": f"complete: every planned {found.ledger.noun} is there once"}
    return {"kind": "warn", "text": "not complete: run the same command again to finish it"}


def _tiles(found: Facts) -> Iterator[Mapping[str, str]]:
    ledger, told = found.ledger, content(found.ledger) or {}
    planned = max(ledger.planned, ledger.finished + ledger.failed)
    yield {"name": f"{ledger.noun}s planned", "value": f"{planned:,}", "note": _units(found)}
    yield _tile(ledger.done, ledger.finished, planned)
    yield _tile("failed", ledger.failed, planned)
    if not found.balanced:
        yield _tile("not there yet", max(0, planned - ledger.finished - ledger.failed), planned)
    again = sum(count for decodes, count in told.get("decodes", {}).items() if int(decodes) > 1)
    yield _tile("decoded again", again, ledger.finished)
    if kept := told.get("tokens", {}).get("kept"):
        spent = told["tokens"].get("spent", kept)
        note = f"{spent - kept:,} more were decoded" if spent > kept else ""
        yield {"name": "tokens of captions", "value": f"{kept:,}", "note": note}
    yield from _gpu_tile(found.status or {})


def _gpu_tile(status: Mapping[str, Any]) -> Iterator[Mapping[str, str]]:
    hours, cost = status.get("gpu_hours"), status.get("cost")
    if isinstance(hours, int | float):
        note = f"${cost:,.2f}" if isinstance(cost, int | float) else ""
        yield {"name": "GPU hours, last run", "value": f"{hours:,.1f}", "note": note}


def _tile(name: str, count: int, total: int) -> Mapping[str, str]:
    return {"name": name, "value": f"{count:,}", "note": share(count, total) if count else ""}


def _units(found: Facts) -> str:
    count = len(found.ledger.units)
    unknown = f", {found.ledger.unknown:,} of unknown length" if found.ledger.unknown else ""
    return f"{count:,} unit{'' if count == 1 else 's'}{unknown}"


def _notes(found: Facts) -> Iterator[str]:
    yield f"Ledger: {found.ledger.summary()}."
    told = content(found.ledger) or {}
    yield from (f"{line.capitalize()}." for line in scores.sentences(told))
    yield from sentences(found.storage, found.path)
    models = told.get("models", {})
    if models:
        yield "Written by " + ", ".join(f"{model} ({count:,})" for model, count in models.items()) + "."
    if found.status is None:
        yield "status.json is not whole: a run may be writing it, so GPU hours are not shown."
    elif found.status and found.status.get("ended", "") is None:
        yield f"A run was going on at {found.status.get('at')}: {found.status.get('phase')}."
    runs = found.run.get("runs", {})
    if len(runs) > 1:
        yield f"{len(runs)} recipes wrote rows of this output; run.json has them."


def _plots(found: Facts, rows: Sample) -> Iterator[Plot]:
    ledger, told = found.ledger, content(found.ledger) or {}
    if runs := course(history.parse((found.status or {}).get("history"))):
        yield plots.course(runs, ledger.noun)
    elif times := timeline(rows.footers, ledger.finished):
        yield plots.over_time(times, ledger.noun)
    tokens = rows.numbers["caption_tokens"]
    tokens = tokens[tokens >= 0]
    words = (tokens, "tokens") if len(tokens) else (rows.numbers["characters"], "characters")
    if len(words[0]):
        yield plots.lengths(*words)
    seen = (rows.numbers["width"] > 0) & (rows.numbers["height"] > 0)
    if seen.any():
        yield plots.resolutions(rows.numbers["width"][seen], rows.numbers["height"][seen])
    decodes = told.get("decodes") or _counted(rows.numbers["decodes"])
    if decodes:
        of = sum(decodes.values())
        yield plots.columns("decodes", "Decodings", decodes, of, ("decodings of an image", f"{ledger.noun}s"))
    if ledger.counts.flags:
        yield plots.bars("flags", "Flags", ledger.counts.flags, ledger.finished, "captions")
    if ledger.counts.codes:
        yield plots.bars("codes", "Failures", ledger.counts.codes, ledger.failed, f"{ledger.noun}s")


def _counted(values: np.ndarray) -> dict[str, int]:
    found, counts = np.unique(values[values > 0], return_counts=True)
    return {str(value): int(count) for value, count in zip(found, counts, strict=True)}


def _read(found: Facts, rows: Sample) -> str:
    total = found.ledger.finished + found.ledger.failed
    if rows.whole:
        return f"Of all {total:,} rows."
    return f"Lengths and resolutions of {rows.rows:,} rows, a sample of {total:,}; everything else of all rows."


def _chosen(found: Facts, cards: int) -> str:
    total = found.ledger.finished + found.ledger.failed
    if cards >= total:
        return f"All {cards:,} rows."
    return (
        f"{cards:,} of {total:,} rows: failed ones of each code and flagged ones of each flag first, then repaired "
        "ones, each range of lengths and sizes, and any. The same rows each time."
    )


def _faults(
    counts: Mapping[str, int], total: int, explained: Any, kind: str, shown: Sequence[Row]
) -> list[Mapping[str, Any]]:
    """Codes or flags with their counts, the most frequent first."""
    return [
        _fault(name, count, share(count, total), explained(name), f"{kind}:{name}", shown)
        for name, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    ]


def _fault(
    name: str, count: int, part: str, of: Explanation | None, kind: str, shown: Sequence[Row]
) -> Mapping[str, Any]:
    rows = [row for row in shown if kind in gallery.kinds(row)]
    return {
        "name": name,
        "count": count,
        "share": part,
        "kind": kind,
        "meaning": of.meaning if of else "A check or a code of the run's own.",
        "causes": of.causes if of else "",
        "remedy": of.remedy if of else "",
        "not_flagged": of.not_flagged if of else "",
        "examples": [_example(row) for row in rows[:EXAMPLES]] if kind.startswith("code:") else [],
        "shown": len(rows),
    }


def _example(row: Row) -> Mapping[str, str]:
    source, key = row.get("source") or "", row.get("key") or ""
    place = source if source.endswith(key) else f"{source} {key}"
    return {"place": gallery.short(place, 300), "detail": gallery.short(row.get("detail") or "", 300)}


def prompts(found: Facts) -> Iterator[tuple[str, str]]:
    """The prompts of the output's recipe, by name."""
    several, one = found.recipe.get("prompts") or {}, found.recipe.get("prompt") or {}
    if isinstance(one, dict) and one.get("system"):
        yield "system", str(one["system"])
    if isinstance(several, dict) and several:
        yield from ((str(name), str(text)) for name, text in several.items())
    elif isinstance(one, dict) and one.get("user"):
        yield "prompt", str(one["user"])
