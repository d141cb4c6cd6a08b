"""A status in words: the facts of the view on a terminal and of the line elsewhere."""

from collections import Counter
from collections.abc import Iterator, Mapping

from caprl_ray.text import plain
from caprl_ray.watch.record import Replicas, Requests
from caprl_ray.watch.status import RUNNING, Status

SHOWN = 5  # codes or flags
UNNAMED = ("done", "rate", "state")  # in a line


def facts(status: Status) -> dict[str, str]:
    """Each fact by its name, without empty ones."""
    return {name: text for name, text in _facts(status) if text}


def line(status: Status) -> str:
    """All facts in one line."""
    found = facts(status)
    return "  ".join(text if name in UNNAMED else f"{name} {text}" for name, text in found.items())


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


def _facts(status: Status) -> Iterator[tuple[str, str]]:
    yield "done", _done(status)
    yield ("rate" if _rate(status) else "state"), _rate(status) or status.phase
    if status.rates.eta_s is not None and status.ended is None:
        yield "ETA", clock(status.rates.eta_s)
    yield "tokens", _tokens(status)
    if status.run.gpus is not None:
        yield "replicas", _replicas(status.record.replicas)
    yield "engine", _engine(status)
    for name, readers in status.record.readers.items():
        yield f"{name} replicas", _replicas(readers.replicas)
        yield f"{name} engine", "" if status.ended is not None else _places(readers.requests)
    yield "failed", f"{status.failed:,}" + _brackets(_most(status.record.failed))
    yield "flags", _flags(status)
    yield "self-check", _self_check(status)
    yield "score", _score(status)
    yield "cost", _cost(status)
    if status.record.last:
        last = status.record.last
        yield "last", " ".join(plain(": ".join(filter(None, (last.key, last.text)))).split())


def _done(status: Status) -> str:
    planned, noun = status.rates.planned, status.run.noun
    if planned is None:
        return f"{status.done:,} {noun}"
    about = "" if status.rates.exact else "about "
    share = f" ({100 * status.done / planned:.1f} %)" if planned else ""
    return f"{status.done:,} / {about}{planned:,} {noun}{share}"


def _rate(status: Status) -> str:
    now, overall, noun = status.rates.now, status.rates.overall, status.run.noun
    if status.phase != RUNNING or now is None:
        return ""
    if status.ended is not None and overall is not None:
        return f"{overall:,.1f} {noun}/s over the run"
    return f"{now:,.1f} {noun}/s" + (f" ({overall:,.1f} over the run)" if overall is not None else "")


def _tokens(status: Status) -> str:
    now, overall = status.rates.tokens, status.rates.tokens_overall
    if not overall or not now:
        return ""
    return f"{now:,.0f}/s ({overall:,.0f} over the run)"


def _engine(status: Status) -> str:
    told = "" if status.ended is not None else _places(status.record.requests)
    return told + (f": {status.waits}" if told and status.waits else "")


def _places(requests: Requests) -> str:
    if not requests.places:
        return ""
    return f"{requests.running:,.0f} of {requests.places:,} places taken, {requests.waiting:,.0f} waiting"


def _replicas(replicas: Replicas) -> str:
    counts = {"running": replicas.running, "starting": replicas.starting, "lost": replicas.lost}
    return ", ".join(f"{count:,} {word}" for word, count in counts.items() if count or word == "running")


def _flags(status: Status) -> str:
    sums = status.record.sums
    parts = [_most(sums.get("flags", {}))]
    repaired, decodes = sum(sums.get("repaired", {}).values()), sums.get("decodes", {})
    if repaired:
        parts.append(f"{repaired:,.0f} repaired")
    if decodes.get("rows") and decodes["decodes"] > decodes["rows"]:
        parts.append(f"{decodes['decodes'] / decodes['rows']:.2f} decodings each")
    loops = sums.get("stopped_loops", {})
    if loops.get("loops"):
        parts.append(f"{loops['loops']:,.0f} loops stopped, up to {loops['tokens']:,.0f} tokens saved")
    return ", ".join(filter(None, parts))


def _self_check(status: Status) -> str:
    checks = status.record.sums.get("self_checks", {})
    total = sum(checks.values())
    return f"{checks.get('passed', 0):,.0f} of {total:,.0f} passed" if total else ""


def _score(status: Status) -> str:
    """The mean of this run's scores, and the gain from choosing the best of several captions so far."""
    scores, gain = (Counter(status.record.sums.get(kind, {})) for kind in ("scores", "gain"))
    if not scores["rows"]:
        return ""
    more = f", {gain['difference'] / gain['rows']:+.3f} by the best of several" if gain["rows"] else ""
    return f"{scores['sum'] / scores['rows']:.3f} over {scores['rows']:,.0f} {status.run.noun}{more}"


def _cost(status: Status) -> str:
    hours, cost, gpus = status.gpu_hours, status.cost, status.run.gpus
    if gpus is None:
        return ""
    if hours is None:
        return f"{status.record.replicas.seconds / 3600:,.2f} replica hours"
    return f"{hours:,.2f} GPU hours" + (f", ${cost:,.2f}" if cost is not None else "")


def _most(counts: Mapping[str, float]) -> str:
    """The most frequent ones."""
    names = sorted((name for name in counts if counts[name]), key=lambda name: (-counts[name], name))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"{name} {counts[name]:,.0f}" for name in names[:SHOWN]) + more


def _brackets(text: str) -> str:
    return f" ({text})" if text else ""
