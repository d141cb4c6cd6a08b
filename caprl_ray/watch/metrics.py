"""The counts of a run as metrics of Ray, which its nodes export for Prometheus under `ray_` and these names.

Names and units follow Prometheus' rules. Tags have few values. The driver tells what the counter knows of the whole
run, and each replica its own requests.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from caprl_ray.watch.batch import Load
from caprl_ray.watch.status import Status

Values = Iterator[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric: a counter if its name ends in `_total`, or else a gauge. `of` gives values by the values of `tags`."""

    name: str
    help: str
    tags: tuple[str, ...] = ()
    of: Callable[[Status], Values]

    @property
    def counts(self) -> bool:
        """Whether it only grows."""
        return self.name.endswith("_total")


def _images(status: Status) -> Values:
    record = status.record
    yield (status.run.done, ""), record.rows - record.failures
    yield from (((("failed", code)), count) for code, count in record.failed.items())


def _of(kind: str) -> Callable[[Status], Values]:
    """The sums of a kind, by name."""
    return lambda status: (((name,), amount) for name, amount in status.record.sums.get(kind, {}).items())


def _one(value: Callable[[Status], float | None]) -> Callable[[Status], Values]:
    """One value without tags, if there is one."""

    def values(status: Status) -> Values:
        found = value(status)
        if found is not None:
            yield (), found

    return values


def _replicas(status: Status) -> Values:
    replicas = status.record.replicas
    yield from ((("running",), replicas.running), (("starting",), replicas.starting), (("lost",), replicas.lost))


DRIVER = (
    Metric(
        name="caprl_ray_images_total",
        help="Rows that passed the last stage.",
        tags=("outcome", "code"),
        of=_images,
    ),
    Metric(
        name="caprl_ray_committed_images_total",
        help="Rows in objects that are written.",
        of=_one(lambda status: status.record.committed[0] if status.record.committed else None),
    ),
    Metric(
        name="caprl_ray_planned_images",
        help="Rows of the whole output, estimated while shards of unknown length are left.",
        of=_one(lambda status: status.rates.planned),
    ),
    Metric(name="caprl_ray_done_images", help="Rows of the output that are done.", of=_one(lambda s: s.done)),
    Metric(name="caprl_ray_flags_total", help="Finished rows by flag.", tags=("flag",), of=_of("flags")),
    Metric(
        name="caprl_ray_tokens_total",
        help="Tokens: of prompts with their images, of captions that are kept, and all that were decoded.",
        tags=("kind",),
        of=_of("tokens"),
    ),
    Metric(
        name="caprl_ray_decodes_total",
        help="Decodings of finished rows.",
        of=_one(lambda status: status.record.sum("decodes", "decodes")),
    ),
    Metric(
        name="caprl_ray_self_checks_total",
        help="Captions of planted pictures, by outcome.",
        tags=("outcome",),
        of=_of("self_checks"),
    ),
    Metric(
        name="caprl_ray_stage_seconds_total",
        help="Seconds that batches have spent in a stage.",
        tags=("stage",),
        of=_of("stage_seconds"),
    ),
    Metric(name="caprl_ray_stage_rows_total", help="Rows of a stage.", tags=("stage",), of=_of("stage_rows")),
    Metric(
        name="caprl_ray_replicas",
        help="Replicas that run and that start, and how many were lost: their process or node ended, or their engine "
        "did not start.",
        tags=("state",),
        of=_replicas,
    ),
    Metric(
        name="caprl_ray_gpu_seconds_total",
        help="Seconds for which replicas have held a GPU.",
        of=_one(lambda status: status.gpu_hours * 3600 if status.gpu_hours is not None else None),
    ),
)

# Of each replica, by name: what they mean, and their tags.
REQUESTS, PLACES, BATCHES = "caprl_ray_requests", "caprl_ray_request_places", "caprl_ray_batches_in_flight"
REPLICA: Mapping[str, tuple[str, tuple[str, ...]]] = {
    REQUESTS: ("Requests of a replica's engine, those that run and those that wait for a place.", ("state",)),
    PLACES: ("Requests that the engine runs at once.", ()),
    BATCHES: ("Batches that the replica holds.", ()),
}
NAMES = frozenset({metric.name for metric in DRIVER} | REPLICA.keys())


class Metrics:
    """Tells the statuses of a run to Ray, in the driver."""

    def __init__(self) -> None:
        self._made = {metric.name: _made(metric.name, metric.help, metric.tags) for metric in DRIVER}
        self._before: dict[tuple[str, tuple[str, ...]], float] = {}

    def tell(self, status: Status) -> None:
        """Tell a later status than the last one."""
        for metric in DRIVER:
            for values, amount in metric.of(status):
                tags = dict(zip(metric.tags, values, strict=True))
                if not metric.counts:
                    self._made[metric.name].set(amount, tags)
                    continue
                key = metric.name, values
                more, self._before[key] = amount - self._before.get(key, 0), amount
                if more > 0:  # less, where Ray has restarted the counter
                    self._made[metric.name].inc(more, tags)


class ReplicaMetrics:
    """Tells the load of a replica to Ray, in the replica."""

    def __init__(self) -> None:
        self._made = {name: _made(name, text, tags) for name, (text, tags) in REPLICA.items()}

    def tell(self, load: Load) -> None:
        """Tell the load now."""
        self._made[REQUESTS].set(load.running, {"state": "running"})
        self._made[REQUESTS].set(load.waiting, {"state": "waiting"})
        self._made[PLACES].set(load.places)
        self._made[BATCHES].set(load.batches)


def _made(name: str, text: str, tags: tuple[str, ...]) -> Any:
    from ray.util import metrics

    return (metrics.Counter if name.endswith("_total") else metrics.Gauge)(name, description=text, tag_keys=tags)
