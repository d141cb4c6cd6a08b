"""`caprl-ray compare`: one page about the same images under two recipes."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from caprl_ray.explain import code
from caprl_ray.output.scan import Tell, silent
from caprl_ray.report import gallery, plots
from caprl_ray.report.facts import Facts, facts
from caprl_ray.report.page import render
from caprl_ray.report.pairs import Pairs, paired
from caprl_ray.report.pictures import WITHOUT, Picture, pictures
from caprl_ray.report.plots import Plot, share
from caprl_ray.report.report import SECONDS
from caprl_ray.report.svg import check_matplotlib
from caprl_ray.storage import Storage
from caprl_ray.version import __version__

IMAGES = 160  # pairs in the gallery
MOST_WORDS = 1600  # of two captions whose differing words are marked
SORTS: tuple[gallery.Option, ...] = (
    ("place up", "largest differences first"),
    ("distance down", "fewest words in common first"),
    ("distance up", "most words in common first"),
    ("longer down", "B longer first"),
    ("longer up", "A longer first"),
)
REASONS = {"failed": "only one failed", "flags": "other flags", "words": "other words"}
_WORD = re.compile(r"\S+|\s+")
Part = tuple[bool, str]  # whether the other caption lacks it, and the text


@dataclass(frozen=True, kw_only=True)
class Side:
    """One caption of a pair: its words in parts, and its marks; or why there is none."""

    parts: Sequence[Part]
    chips: Sequence[tuple[str, str]]
    size: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The page, and its summary in one line."""

    page: str
    summary: str


def compare(
    storage: Storage,
    first: str,
    second: str,
    *,
    images: int = IMAGES,
    seconds: float = SECONDS,
    old_column: str | None = None,
    tell: Tell = silent,
) -> Comparison:
    """Compare two outputs. Arguments and errors as those of `report`; RecipeError if no image is in both."""
    check_matplotlib()
    a, b = facts(storage, first, tell), facts(storage, second, tell)
    old = a.old_text(old_column)
    with paired(a, b, old, tell) as pairs:
        content = _content(a, b, pairs, images, seconds, old)
    return Comparison(page=render("compare.html", **content), summary=content["found"])


def _content(a: Facts, b: Facts, pairs: Pairs, images: int, seconds: float, old: str | None) -> dict[str, Any]:
    chosen = pairs.chosen(images)
    seen = _pictures(a, b, chosen, seconds)
    cards = [_card(pair, picture) for pair, picture in zip(chosen, seen, strict=True)]
    return {
        "a": _about(a),
        "b": _about(b),
        "found": _found(a, b, pairs),
        "recipes": _recipes(a, b),
        "table": list(_table(pairs)),
        "plots": list(_plots(pairs)),
        "cards": cards,
        "old_column": old or "",
        "options": _options(chosen),
        "sorts": SORTS,
        "version": __version__,
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }


def _about(found: Facts) -> Mapping[str, str]:
    return {
        "name": found.path.rstrip("/").rpartition("/")[2] or found.path,
        "path": found.path,
        "ledger": found.ledger.summary(),
    }


def _found(a: Facts, b: Facts, pairs: Pairs) -> str:
    rows = [facts.ledger.finished + facts.ledger.failed for facts in (a, b)]
    of = f"A has {rows[0]:,} rows, B has {rows[1]:,}"
    every = f"; every {pairs.every}th image was compared" if pairs.every > 1 else ""
    return f"{pairs.count:,} images are in both, by {pairs.by}; {of}{every}."


def _recipes(a: Facts, b: Facts) -> list[tuple[str, ...]]:
    """The fields of the two fingerprints that differ."""
    one, other = (facts.run.get("fingerprint") or {} for facts in (a, b))
    fields = sorted(field for field in one.keys() | other.keys() if one.get(field) != other.get(field))
    return [(field, *(gallery.short(str(of.get(field)), 300) for of in (one, other))) for field in fields]


def _table(pairs: Pairs) -> Iterator[tuple[str, ...]]:
    """The figures of the images that are in both, for A and for B."""
    sides = ("a", "b")
    codes, flags = ([pairs.counts(side, what) for side in sides] for what in ("code", "flags"))
    failed = [sum(of.values()) for of in codes]
    yield "captioned", *(_part(pairs.count - count, pairs.count) for count in failed)
    yield "failed", *(_part(count, pairs.count) for count in failed)
    for name, word in (("caption_tokens", "tokens"), ("characters", "characters")):
        values = [pairs.numbers(side, name) for side in sides]
        if all(len(of) for of in values):
            yield f"{word}, median", *(f"{np.median(of):,.0f}" for of in values)
            yield f"{word}, 5th to 95th percentile", *(_range(of) for of in values)
    decodes = [pairs.numbers(side, "decodes") for side in sides]
    if all(len(of) for of in decodes):
        yield "decodings of an image", *(f"{of.mean():,.2f}" for of in decodes)
    for what, counts in (("flag", flags), ("failure", codes)):
        names = sorted(counts[0].keys() | counts[1].keys(), key=lambda name: (-_sum(counts, name), name))
        for name in names:
            yield f"{what} {name}", *(_part(of.get(name, 0), pairs.count) for of in counts)


def _sum(counts: Sequence[Mapping[str, int]], name: str) -> int:
    return sum(of.get(name, 0) for of in counts)


def _part(count: int, total: int) -> str:
    return f"{count:,} ({share(count, total)})"


def _range(values: np.ndarray) -> str:
    low, high = np.percentile(values, (5, 95))
    return f"{low:,.0f} to {high:,.0f}"


def _plots(pairs: Pairs) -> Iterator[Plot]:
    for name, word in (("caption_tokens", "tokens"), ("characters", "characters")):
        values = [pairs.numbers(side, name) for side in "ab"]
        if all(len(of) for of in values):
            yield plots.two_lengths(values[0], values[1], word)
            break
    distances = pairs.distances()
    if len(distances):
        yield plots.distances(distances, pairs.same())


def _pictures(a: Facts, b: Facts, chosen: Sequence[Mapping[str, Any]], seconds: float) -> list[Picture]:
    """A picture of each pair: from the input of A, or of B where only that one could read it."""
    rows = [("b", pair["b"]) if pair["a"]["code"] in WITHOUT else ("a", pair["a"]) for pair in chosen]
    seen = {
        (side, identity): picture
        for side, facts in (("a", a), ("b", b))
        for identity, picture in pictures(facts, [row for of, row in rows if of == side], seconds).items()
    }
    return [seen[side, row["id"]] for side, row in rows]


def _card(pair: Mapping[str, Any], picture: Picture) -> Mapping[str, Any]:
    a, b = pair["a"], pair["b"]
    parts = _parts(_text(a), _text(b))
    return {
        "key": gallery.short(a["key"] or a["source"] or a["id"], 200),
        "picture": picture,
        "kinds": " ".join(_kinds(pair)),
        "reason": "" if pair["reason"] == "words" else f"{REASONS[pair['reason']]}, ",
        "distance": round(pair["distance"], 4),
        "longer": len(_text(b)) - len(_text(a)),
        "size": f"{a['width']} {plots.TIMES} {a['height']}" if a["width"] and a["height"] else "",
        "sides": [("A", _side(a, parts[0])), ("B", _side(b, parts[1]))],
        "old": gallery.short(a["old_text"] or "", gallery.MOST_OLD),
        "facts": [("source", gallery.short(a["source"] or "", 1000)), ("id in A", a["id"]), ("id in B", b["id"])],
    }


def _side(row: Mapping[str, Any], parts: Sequence[Part]) -> Side:
    tokens = row["caption_tokens"]
    return Side(parts=parts, chips=gallery.chips(dict(row)), size="" if tokens is None else f"{tokens:,} tokens")


def _text(row: Mapping[str, Any]) -> str:
    """The caption, or why there is none."""
    if row["code"]:
        explained = code(row["code"])
        return explained.meaning if explained else row["code"]
    return gallery.short(row["caption"] or "", gallery.MOST_CHARACTERS)


def _parts(a: str, b: str) -> tuple[list[Part], list[Part]]:
    """Two texts in parts, with what only one of them has."""
    one, other = _WORD.findall(a), _WORD.findall(b)
    if len(one) + len(other) > MOST_WORDS:
        return [(False, a)], [(False, b)]
    blocks = difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    return (
        [(kind != "equal", "".join(one[start:end])) for kind, start, end, _, _ in blocks if end > start],
        [(kind != "equal", "".join(other[start:end])) for kind, _, _, start, end in blocks if end > start],
    )


def _kinds(pair: Mapping[str, Any]) -> list[str]:
    sides = {side: gallery.kinds(dict(pair[side])) for side in "ab"}
    marks = {f"{side}:{kind}" for side, of in sides.items() for kind in of if kind.startswith(("flag:", "code:"))}
    return [pair["reason"], *sorted(marks)]


def _options(chosen: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[gallery.Option]]]:
    found = [kind for pair in chosen for kind in _kinds(pair)]
    reasons = [(kind, f"{word} ({found.count(kind)})") for kind, word in REASONS.items() if kind in found]
    marks = sorted({kind for kind in found if ":" in kind})
    labels = [(kind, f"{kind[0].upper()}: {kind[7:]} ({found.count(kind)})") for kind in marks]
    return [("difference", reasons), ("flag or failure", labels)]
