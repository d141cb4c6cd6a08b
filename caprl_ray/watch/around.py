"""All observers of a running job, in one context manager."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray.actor import ActorHandle

from caprl_ray.cluster import resources, session, signals
from caprl_ray.cluster.interrupt import interruptible
from caprl_ray.output.folder import Output
from caprl_ray.watch.breaker import CircuitBreaker
from caprl_ray.watch.counter import Counter
from caprl_ray.watch.ending import GracefulEnd
from caprl_ray.watch.replicas import ReplicaWatch
from caprl_ray.watch.reporter import Reporter
from caprl_ray.watch.standstill import StandstillGuard


@dataclass(frozen=True)
class Watch:
    """The observers that a run reports to. `stop` ends the run with an error."""

    counter: ActorHandle
    breaker: CircuitBreaker
    reporter: Reporter
    standstill: StandstillGuard
    stop: Callable[[Exception], None]


@contextmanager
def watched(output: Output, debug: bool, *, guarded: bool = True) -> Iterator[Watch]:
    """A session on Ray that is watched, and that ends in good order when it is asked to stop. `guarded` is the
    session's."""
    job = output.job
    with signals.handled() as asked, session.session(job, debug, guarded=guarded, stopping=asked.asked.is_set):
        counter = resources.beside_driver(Counter)
        with (
            Reporter(counter, output, debug=debug) as reporter,
            interruptible() as stop,
            CircuitBreaker(counter, job, stop) as breaker,
            ReplicaWatch(counter, job, stop),
            StandstillGuard(counter, job, stop) as standstill,
            GracefulEnd(counter, job, asked, stop),
        ):
            yield Watch(counter, breaker, reporter, standstill, stop)
