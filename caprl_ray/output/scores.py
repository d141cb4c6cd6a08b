"""The mean scores of a whole output, from the sums in its objects' footers (output/tallies.py)."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from caprl_ray.output.tallies import Tallies

NORMAL = 1.959964  # 95 % of a normal distribution lie within so many standard deviations
SHOWN = 3  # codes


def content(tallies: Tallies) -> dict[str, Any]:
    """The mean score of the rows, the reasons of missing scores, and the gain from keeping the best of several
    captions, as plain data; empty for an output without scores.

    A row is an image, and its score the mean over its questions. So the intervals are those of means of independent
    values (Miller, arXiv 2411.00640, 2.1 and 2.2).
    """
    scores, codes, gain = (Counter(tallies.get(name, {})) for name in ("scores", "score_codes", "gain"))
    if not scores["rows"] and not codes:
        return {}
    found: dict[str, Any] = {
        "rows": round(scores["rows"]),
        "mean": _mean(scores["rows"], scores["sum"], scores["squares"]),
        "unscored": dict(codes),
    }
    if rows := round(gain["rows"]):
        difference = _mean(rows, gain["difference"], gain["squares"])
        best = {"rows": rows, "kept": gain["kept"] / rows, "first": gain["first"] / rows, "gain": difference}
        found["best"] = best
    return {"scores": found}


def sentences(found: Mapping[str, Any]) -> Iterator[str]:
    """The same in sentences, from a summary."""
    scores = found.get("scores")
    if not scores:
        return
    mean = scores["mean"]
    said = "no caption has one"
    if mean:
        said = f"{mean['value']:.3f}{_bounds(mean)} on average over {scores['rows']:,} captions"
    yield f"scores: {said}{_without(Counter(scores['unscored']))}"
    if best := scores.get("best"):
        gain = best["gain"]
        yield (
            f"best of several: {best['kept']:.3f} on average, and {best['first']:.3f} without scores: "
            f"{gain['value']:+.3f}{_bounds(gain, '+')} over {best['rows']:,} images"
        )


def _without(codes: Counter[str]) -> str:
    if not codes:
        return ""
    shown = ", ".join(f"{code} {count:,}" for code, count in codes.most_common(SHOWN))
    return f", {codes.total():,} without a score ({shown})"


def _mean(rows: float, total: float, squares: float) -> dict[str, float | None] | None:
    """A mean with its interval; None without rows, and without bounds for one."""
    if not rows:
        return None
    value = total / rows
    if rows < 2:
        return {"value": value, "low": None, "high": None}
    half = NORMAL * math.sqrt(max(0.0, squares - rows * value**2) / (rows - 1) / rows)
    return {"value": value, "low": value - half, "high": value + half}


def _bounds(mean: Mapping[str, float | None], sign: str = "") -> str:
    low, high = mean["low"], mean["high"]
    return "" if low is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
