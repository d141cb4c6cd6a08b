"""Kinds of images and kinds of questions, by which the scores of an evaluation are grouped."""

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import takewhile

from caprl_ray.evaluate.answers import EVERY
from caprl_ray.output.place import PATTERN
from caprl_ray.output.record import stored_paths
from caprl_ray.report.facts import Facts
from caprl_ray.report.strata import Row

MOST_KINDS = 20  # of images; rarer kinds are merged
REST = "others"
_EXTENSIONS = {name: name for name in ("jpg", "png", "webp", "gif", "bmp", "tiff", "jxl", "avif", "heic", "jp2", "ppm")}
_EXTENSIONS |= {"jpeg": "jpg", "jpe": "jpg", "tif": "tiff", "heif": "heic"}

# The first kind whose words occur in the question.
_QUESTIONS = (
    ("counting", r"how many|number of|\bcount\b|how often"),
    ("color", r"colou?r|\bhue\b"),
    ("text", r"\b(?:text|words?|written|writes?|reads?|says?|letters?|labell?ed|titled?|spell|slogan)\b"),
    (
        "size",
        r"\b(?:size|how (?:large|small|big|tall|long|wide|high)|larger|largest|smaller|smallest|tallest)\b",
    ),
    ("position", r"\b(?:where|positioned|position|located|location|direction)\b"),
    ("position", r"\b(?:left|right|above|below|behind|beside|between|beneath|under|next to|in front)\b"),
    ("action", r"\bdoing\b|\b(?:holding|wearing|action|activity|gesture|pose|posture)\b"),
    ("value", r"\b(?:values?|percent|percentage|how much|amount|price|rate|year|score)\b"),
)
_PATTERNS = tuple((kind, re.compile(words, re.IGNORECASE)) for kind, words in _QUESTIONS)
OTHER = "other"


def question_kind(text: str, named: str = "") -> str:
    """The kind of a question: its own `kind`, or else by its words."""
    return named or next((kind for kind, words in _PATTERNS if words.search(text)), OTHER)


def image_kinds(facts: Facts, column: str | None) -> Callable[[Row], str]:
    """How to find the kind of a row's image: by a column of the source, which rows have as `old_text`; or else by its
    input path, if the recipe has several; or else by its format."""
    if column:
        return lambda row: EVERY if row.get("old_text") in (None, "") else str(row["old_text"])
    names = _names(stored_paths(facts.run))
    units = {ref.unit: ref.kind for ref in facts.plan.units}

    def kind(row: Row) -> str:
        source = row["source"] or ""
        for head, name in names.items():
            if f"{source}/".startswith(head):
                return name
        return _format(row["key"] or "") or _format(source) or units.get(row["unit"], EVERY)

    return kind


def frequent(kinds: Iterable[str]) -> Callable[[str], str]:
    """Names of kinds; all but the most frequent are merged."""
    counts = Counter(kinds)
    kept = {kind for kind, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))[: MOST_KINDS - 1]}
    return (lambda kind: kind) if len(counts) <= MOST_KINDS else (lambda kind: kind if kind in kept else REST)


def _names(paths: list[str]) -> dict[str, str]:
    """The beginnings of input paths, longest first, each with a name: its last part, or the parts that differ if two
    have the same last part."""
    heads = sorted(set(map(_head, paths)), key=lambda head: (-len(head), head))
    if not 1 < len(heads) <= MOST_KINDS:
        return {}
    parts = [head.rstrip("/-_.").split("/") for head in heads]
    names = [of[-1] for of in parts]
    if len(set(names)) < len(heads):
        start, end = _alike(parts), _alike([of[::-1] for of in parts])
        names = ["/".join(of[start : len(of) - end]) or of[-1] for of in parts]
    return dict(zip(heads, names, strict=True))


def _alike(paths: list[list[str]]) -> int:
    """The number of leading parts that the paths have in common."""
    return sum(1 for _ in takewhile(lambda some: len(set(some)) == 1, zip(*paths, strict=False)))


def _head(path: str) -> str:
    """The common beginning of all images of an input path: the path as a folder, or everything before its pattern."""
    pattern = PATTERN.search(path)
    return path[: pattern.start()] if pattern else f"{path.rstrip('/')}/"


def _format(path: str) -> str | None:
    return _EXTENSIONS.get(posixpath.splitext(path)[1].removeprefix(".").lower())
