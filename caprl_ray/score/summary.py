"""Sum up scores: four numbers for each benchmark, with intervals, and differences between outputs.

Questions about one image are not independent, so intervals come from drawing whole images (cluster bootstrap; Efron
and Tibshirani 1993, 8.6; Miller, arXiv 2411.00640, 2.2).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from caprl_ray.score import paper
from caprl_ray.score.judge import position_bias
from caprl_ray.score.metrics import LETTERS
from caprl_ray.score.tally import Lines, Means, Tally

RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 20250922


def summary(tally: Tally) -> dict[str, Any]:
    """The sums of each benchmark, as plain data, and the mean of their accuracies."""
    found = {name: _benchmark(name, lines, tally) for name, lines in tally.lines()}
    accuracies = [one["accuracy"]["value"] for one in found.values() if one["accuracy"]]
    return {"average": sum(accuracies) / len(accuracies) if accuracies else None, "benchmarks": found}


def difference(ours: Tally, theirs: Tally) -> dict[str, Any]:
    """Ours minus theirs, on the questions of each benchmark that both have answered.

    `told_apart` says whether the interval leaves zero out.
    """
    others, found = dict(theirs.lines()), {}
    for name, lines in ours.lines():
        if name in others:
            pairs = lines.means(blind=False).minus(others[name].means(blind=False))
            value = interval(pairs)
            apart = value is not None and value["low"] is not None and not value["low"] <= 0 <= value["high"]
            found[name] = {"questions": len(pairs.values), "difference": value, "told_apart": apart}
    return found


def interval(means: Means) -> dict[str, Any] | None:
    """The mean of all questions, with the interval that drawing images gives; None without questions.

    `low` and `high` are None with fewer than two images.
    """
    if not len(means.values):
        return None
    images, inverse = np.unique(means.images, return_inverse=True)
    sums, counts = np.bincount(inverse, means.values), np.bincount(inverse)
    value = float(sums.sum() / counts.sum())
    if len(images) < 2:
        return {"value": value, "low": None, "high": None}
    random = np.random.default_rng(SEED)
    drawn = [_ratio(sums, counts, random.integers(0, len(images), len(images))) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"value": value, "low": float(low), "high": float(high)}


def _ratio(sums: np.ndarray, counts: np.ndarray, drawn: np.ndarray) -> float:
    return float(sums[drawn].sum() / counts[drawn].sum())


def _benchmark(name: str, lines: Lines, tally: Tally) -> dict[str, Any]:
    asked, seen = tally.of[name], ~lines.blind
    judged = seen & ~np.isnan(lines.correct)
    found: dict[str, Any] = {
        "images": len(np.unique(lines.images[seen])),
        "questions": len(np.unique(lines.questions[seen])),
        "answers": int(seen.sum()),
        "accuracy": interval(lines.means(blind=False)),
        "blind": interval(lines.means(blind=True)),
        "can_not_answer": _share(lines.refused[judged]),
        "unscored": 1 - _share(judged[seen]) if seen.any() else None,
        "codes": dict(asked.codes),
        "again": {"answers": asked.again, "same": asked.same},
        "places": _places(lines, judged),
    }
    return found | ({"paper": paper.results(name)} if paper.benchmark(name) else {})


def _share(which: np.ndarray) -> Any:
    return float(which.mean()) if len(which) else None


def _places(lines: Lines, judged: np.ndarray) -> dict[str, Any] | None:
    """Accuracy by the position of the right option, and the difference between the best and the worst position."""
    placed = judged & (lines.places >= 0)
    if not placed.any():
        return None
    places, right = lines.places[placed], lines.correct[placed]
    by_place = {LETTERS[place]: float(right[places == place].mean()) for place in np.unique(places)}
    pairs = list(zip(places.tolist(), (right == 1).tolist(), strict=True))
    return {"accuracy": by_place, "bias": position_bias(pairs)}


def sentences(found: Mapping[str, Any]) -> list[str]:
    """A summary in sentences, a line for each benchmark."""
    lines = [_line(name, one) for name, one in found["benchmarks"].items()]
    average = found["average"]
    return [*lines, *([f"average of {len(lines)} benchmarks: {average:.1%}"] if len(lines) > 1 and average else ())]


def compared(found: Mapping[str, Any], other: str) -> list[str]:
    """Differences in sentences, a line for each benchmark."""
    if not found:
        return [f"{other} has no benchmark in common"]
    return [
        f"{name}: {one['difference']['value']:+.1%}{_bounds(one['difference'])} to {other} on {one['questions']:,} "
        f"questions of both; {'they differ' if one['told_apart'] else 'they cannot be told apart'}"
        if one["questions"]
        else f"{name}: no question is answered in both"
        for name, one in found.items()
    ]


def _line(name: str, one: Mapping[str, Any]) -> str:
    parts = [
        f"{name}: {_shown(one['accuracy'])} right with the caption",
        f"{_shown(one['blind'])} blind",
        f'{_percent(one["can_not_answer"])} "can not answer"',
        f"{_percent(one['unscored'])} unscored",
        f"{one['questions']:,} questions about {one['images']:,} images",
    ]
    again, places = one["again"], one["places"]
    if again["answers"]:
        parts.append(f"asked twice, {again['same'] / again['answers']:.1%} of {again['answers']:,} the same")
    if places and places["bias"] is not None:
        parts.append(f"places of the right option differ by {places['bias']:.1%}")
    if one.get("paper"):
        parts.append("paper: " + ", ".join(f"{model} {value}" for model, value in one["paper"].items()))
    return "; ".join(parts)


def _percent(share: float | None) -> str:
    return "no answers" if share is None else f"{share:.1%}"


def _shown(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "no answers"
    return f"{value['value']:.1%}{_bounds(value)}"


def _bounds(value: Mapping[str, Any]) -> str:
    return "" if value["low"] is None else f" [{value['low']:.1%}, {value['high']:.1%}]"
