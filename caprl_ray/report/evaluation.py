"""The score of an evaluated output, for its report."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from caprl_ray.storage import Storage, join

EVALUATION = "evaluation.json"  # in an evaluated output
PLACE = ("report", "evaluation.html")  # the page about it


def sentences(storage: Storage, path: str) -> Iterator[str]:
    """The score of an output with its interval; nothing if it was not evaluated."""
    try:
        found = json.loads(storage.read(join(path, EVALUATION)))
        yield _said(found["ways"][found["outputs"][0]], join(path, *PLACE))
    except (FileNotFoundError, NotADirectoryError):
        return
    except (ValueError, LookupError, TypeError, AttributeError):
        yield f"{EVALUATION} is not of an evaluation; evaluate the output again."


def _said(way: Mapping[str, Any], page: str) -> str:
    """The first output is the one whose folder holds the file."""
    score = way["score"]
    if score is None:
        return f"Evaluated, but no question has an answer; see {page}."
    bounds = "" if score["low"] is None else f" [{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
    asked = f"{way['questions']:,} questions about {way['images']:,} images"
    return (
        f"Evaluated: {100 * score['value']:.1f} %{bounds} of {asked} are answered right from the captions; see {page}."
    )
