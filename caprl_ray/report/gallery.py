"""The cards of a gallery: a row of the output with its picture and its words, and what filters and sorts it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caprl_ray.explain import code
from caprl_ray.report.pictures import Picture
from caprl_ray.report.strata import Row
from caprl_ray.text import plain

TIMES = "\N{MULTIPLICATION SIGN}"
MOST_CHARACTERS, MOST_OLD = 4000, 1000  # of a caption on a page, and of an old text
Option = tuple[str, str]  # the value of an option of a select, and its label
SORTS: tuple[Option, ...] = (
    ("place up", "failures and flags first"),
    ("length up", "shortest caption first"),
    ("length down", "longest caption first"),
    ("pixels up", "smallest image first"),
    ("pixels down", "largest image first"),
    ("decodes down", "most decodings first"),
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One row as it is shown. `kinds` are the filters that it passes, `facts` what only the opened card shows."""

    key: str
    picture: Picture
    kinds: str
    chips: Sequence[tuple[str, str]]
    size: str
    caption: str = ""
    code: str = ""
    meaning: str = ""
    detail: str = ""
    old: str = ""
    facts: Sequence[tuple[str, str]] = field(default_factory=list)
    length: int = 0
    pixels: int = 0
    decodes: int = 0


def card(row: Row, picture: Picture) -> Card:
    """The card of a row."""
    failed = row.get("code") or ""
    explained = code(failed) if failed else None
    caption, width, height = row.get("caption") or "", row.get("width"), row.get("height")
    return Card(
        key=short(row.get("key") or row.get("source") or row["id"], 200),
        picture=picture,
        kinds=" ".join(kinds(row)),
        chips=chips(row),
        size=f"{width} {TIMES} {height}" if width and height else "",
        caption=short(caption, MOST_CHARACTERS),
        code=failed,
        meaning=explained.meaning if explained else failed,
        detail=short(row.get("detail") or "", 500),
        old=short(row.get("old_text") or "", MOST_OLD) if isinstance(row.get("old_text"), str) else "",
        facts=[(name, value) for name, value in _facts(row) if value],
        length=len(caption),
        pixels=(width or 0) * (height or 0),
        decodes=row.get("decodes") or 0,
    )


def kinds(row: Row) -> list[str]:
    """The filters that a row passes."""
    if row.get("code"):
        return ["failed", f"code:{word(row['code'])}"]
    flags = flags_of(row)
    found = ["captioned", "flagged" if flags else "clean", *(f"flag:{word(flag)}" for flag in flags)]
    return [*found, *["repaired"] * bool(row.get("repaired"))]


def chips(row: Row) -> list[tuple[str, str]]:
    """The marks of a row, each with its kind."""
    if row.get("code"):
        return [("code", row["code"])]
    marks = [("flag", short(flag, 80)) for flag in row.get("flags") or ()]
    return marks + [("mended", f"repaired: {flag}") for flag in row.get("repaired") or ()]


def flags_of(row: Row) -> list[str]:
    """A row's flags, without what follows their colons."""
    return list(dict.fromkeys(flag.partition(":")[0] for flag in row.get("flags") or ()))


def options(rows: Iterable[Row]) -> list[tuple[str, list[Option]]]:
    """The filters of a gallery, with the number of its rows that pass."""
    found = Counter(kind for row in rows for kind in kinds(row))
    plain_ = [(kind, f"{kind} ({found[kind]})") for kind in ("captioned", "failed", "flagged", "clean", "repaired")]
    return [
        ("kind", [option for option in plain_ if found[option[0]]]),
        ("flag", _options("flag:", found)),
        ("failure code", _options("code:", found)),
    ]


def _options(start: str, found: Mapping[str, int]) -> list[Option]:
    names = sorted((kind for kind in found if kind.startswith(start)), key=lambda kind: (-found[kind], kind))
    return [(kind, f"{kind.removeprefix(start)} ({found[kind]})") for kind in names]


def _facts(row: Row) -> Iterable[tuple[str, str]]:
    """The facts on an opened card, beside the caption."""
    for n, one in enumerate(row.get("captions") or (), 1):
        text = one.get("text") or f"({', '.join(one.get('flags') or ())})"
        yield f"caption {n}: {one.get('prompt') or ''}", short(text, MOST_OLD)
    yield "source", short(row.get("source") or "", 1000)
    yield "key", short(row.get("key") or "", 1000)
    yield "id", row["id"]
    yield "SHA-256", row.get("sha256") or ""
    for name, value in (
        ("finish reason", row.get("finish_reason")),
        ("tokens", row.get("caption_tokens")),
        ("decodings", row.get("decodes")),
        ("attempts", row.get("attempts")),
        ("model", row.get("model")),
        ("stage", row.get("stage")),
        ("recipe", row.get("run")),
    ):
        yield name, "" if value is None else str(value)


def short(text: str, most: int) -> str:
    """A text without control characters, cut where it is longer than a page has room for."""
    text = plain(str(text))
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def word(name: Any) -> str:
    """A name as one word of a list of words."""
    return "_".join(str(name).split())
