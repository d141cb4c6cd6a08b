"""summary.json: counters of the whole output, written at the end of every run.

It holds counters and mean scores. It is written only if the counters add up, because a wrong number is worse than none.
"""

from typing import Any

from caprl_ray.output import scores
from caprl_ray.output.ledger import Ledger

SUMMARY = "summary.json"
SCHEMA = 1  # of the file; raised with every change of its fields
MOST_OPENERS = 20


def content(ledger: Ledger) -> dict[str, Any] | None:
    """The summary of an output; None if its counters do not add up.

    Rows of versions without counters are only in `rows`; `counted` is the number of rows in the other counters.
    """
    counts, of = ledger.counts, ledger.counts.tallies
    counted = of["model"].total() if "model" in of else 0
    found = {
        "schema": SCHEMA,
        "rows": {ledger.done: ledger.finished, "failed": ledger.failed},
        "counted": {ledger.done: counted, "failed": counts.codes.total()},
        "failed": dict(counts.codes),
        "flags": dict(counts.flags),
        "left_out": ledger.left_out.report(),
        "models": dict(of.get("model", {})),
        "finish_reasons": dict(of.get("finish_reason", {})),
        "decodes": dict(of.get("decodes", {})),
        "repaired": dict(of.get("repaired", {})),
        "tokens": dict(of.get("tokens", {})),
        "characters": {low: of["characters"][low] for low in sorted(of.get("characters", {}), key=int)},
        "openers": dict(of["openers"].most_common(MOST_OPENERS)) if "openers" in of else {},
        **scores.content(of),
    }
    return found if _adds_up(found, ledger.done) else None


def _adds_up(found: dict[str, Any], done: str) -> bool:
    counted, tokens, scored = found["counted"], found["tokens"], found.get("scores")
    return (
        (not scored or scored["rows"] + sum(scored["unscored"].values()) <= found["rows"][done])
        and counted[done] <= found["rows"][done]
        and counted["failed"] <= found["rows"]["failed"]
        and all(sum(found[name].values()) in (0, counted[done]) for name in ("finish_reasons", "decodes", "characters"))
        and all(count <= counted[done] for name in ("flags", "repaired", "openers") for count in found[name].values())
        and tokens.get("kept", 0) <= tokens.get("spent", tokens.get("kept", 0))
    )
