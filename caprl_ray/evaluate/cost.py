"""The cost of an evaluation, from the statuses of its jobs."""

import json
from collections.abc import Sequence

from caprl_ray.curate.results import CURATED
from caprl_ray.storage import Storage, join
from caprl_ray.watch.status import NAME, NotAStatus, Status


def cost(storage: Storage, outputs: Sequence[str], curated: Sequence[str]) -> dict[str, float]:
    """Sums over the last runs of the jobs that wrote these outputs, and the number of questions that were written."""
    told = [status for path in outputs if (status := _status(storage, path))]
    found: dict[str, float] = {"seconds": sum(status.record.seconds for status in told)}
    hours = [status.gpu_hours for status in told if status.gpu_hours is not None]
    dollars = [status.cost for status in told if status.cost is not None]
    found |= {"gpu_hours": sum(hours)} if hours else {}
    found |= {"dollars": sum(dollars)} if dollars else {}
    if curated:
        counts = [json.loads(storage.read(join(path, CURATED)))["questions"] for path in curated]
        found |= {f"questions_{name}": sum(count[name] for count in counts) for name in ("written", "kept")}
    return found


def _status(storage: Storage, path: str) -> Status | None:
    try:
        return Status.parse(storage.read(join(path, NAME)))
    except (FileNotFoundError, NotADirectoryError, NotAStatus):
        return None
