"""How a replica joins the pool, and how it leaves if its engine does not start or stops captioning.

A node may be unable to run an engine: a broken GPU, an old driver, a full disk. That must not end the whole run. So the
counter actor counts failed starts. After some of them the node gets no more replicas (cluster/resources.py). The run
ends only if no node is left (watch/replicas.py).
"""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import ray
from ray.actor import ActorHandle

from caprl_ray.cluster import resources
from caprl_ray.engines.meter import Meter
from caprl_ray.errors import SystemFailure
from caprl_ray.replica.suspects import Identity
from caprl_ray.watch.batch import Load
from caprl_ray.watch.counter import HERE_S
from caprl_ray.watch.metrics import ReplicaMetrics
from caprl_ray.watch.starts import MAIN

T = TypeVar("T")

# If Ray places a replica on an excluded node, the replica occupies its resources for this long, so that the next one is
# placed elsewhere.
HOLD_S = 60.0
# Between two starts on the same resources.
PAUSE_S = 5.0


class Replica:
    """One replica as the counter actor sees it.

    `replaced`: if this replica fails, the run starts another one. Otherwise SystemFailures go to the caller.
    """

    def __init__(self, counter: ActorHandle, *, replaced: bool, pool: str = MAIN) -> None:
        context = ray.get_runtime_context()
        self.replaced = replaced
        self.meter: Meter | None = None
        """Around its engine, when that has started."""
        self._batches = 0
        self._metrics = ReplicaMetrics()
        self._counter, self._pool = counter, pool
        self._id, self._node = uuid.uuid4().hex, context.get_node_id()
        self._restarted = context.was_current_actor_reconstructed
        self._runs = self._captioned = False
        self._ended, self._leaving, self._counting = threading.Event(), threading.Lock(), threading.Lock()

    def start(self, engine: Callable[[], T]) -> T:
        """Start the engine and report it.

        Raises SystemFailure if it does not start. Then Ray Data tries again, three times, and makes another actor.
        """
        if self.replaced and not self._restarted and self._node in ray.get(self._counter.struck.remote(self._pool)):
            time.sleep(HOLD_S)
            self._leave(SystemFailure("This node gets no more replicas."), struck=True)
        threading.Thread(target=self._report, name="here", daemon=True).start()
        try:
            started = engine()
        except Exception as error:
            if not self.replaced:
                raise
            failure = error if isinstance(error, SystemFailure) else _unexpected(error)
            self._leave(failure, struck=self._failed(failure))
        self._runs = True
        self._counter.alive.remote(self._id, True, pool=self._pool)
        return started

    @contextmanager
    def working(self) -> Iterator[None]:
        """A batch is in flight during the block."""
        with self._counting:
            self._batches += 1
        try:
            yield
        finally:
            with self._counting:
                self._batches -= 1

    def load(self) -> Load | None:
        """The requests of its engine since the last call; None before it runs."""
        if not self.meter:
            return None
        requests = self.meter.requests()
        load = Load(
            replica=self._id,
            running=requests.running,
            waiting=requests.waiting,
            places=self.meter.places,
            batches=self._batches,
        )
        if self._pool == MAIN:
            self._metrics.tell(load)
        return load

    def captioned(self) -> None:
        """Report a finished batch: this node can run an engine."""
        if not self._captioned:
            self._captioned = True
            self._counter.captioned.remote(self._node, self._pool)

    def lost(self, failure: SystemFailure) -> None:
        """Report that the engine no longer captions. Ends the process; Ray starts it again and repeats its batches."""
        if self.replaced:
            with self._leaving:  # every batch in flight comes here; report one failure
                self._failed(failure)
                os._exit(1)

    def sick(self, sentence: str, suspects: list[Identity]) -> None:
        """Report that its captions cannot be trusted, including those of `suspects`, rows of finished batches.

        If the run replaces the replica, ends the process, and another one captions its batches. Otherwise waits for the
        end of the run (watch/sick.py).
        """
        with self._leaving:
            self._ended.set()
            sentence = f"{sentence} (on node {resources.node_name()})"
            if ray.get(self._counter.sick.remote(self._id, self._node, sentence, self.replaced, suspects)):
                os._exit(1)
        time.sleep(HOLD_S)

    def _failed(self, failure: SystemFailure) -> bool:
        """Report a failed start. Returns whether the node gets no more replicas."""
        self._ended.set()
        report = self._counter.start_failed.remote(
            self._id, self._node, resources.node_name(), str(failure), self._pool
        )
        return bool(ray.get(report))

    def _leave(self, failure: SystemFailure, *, struck: bool) -> NoReturn:
        if not struck or self._restarted:
            time.sleep(PAUSE_S)
        if self._restarted:
            # Ray does not send the unfinished tasks of this actor to another one. So Ray must restart it, here or
            # elsewhere.
            os._exit(1)
        while struck and not resources.replaces_actors():
            time.sleep(HOLD_S)  # this Ray would end the run with the actor, which now keeps its place in the pool
        raise failure

    def _report(self) -> None:
        """Report that this replica lives. It has its own thread, because a starting engine blocks the event loop for
        minutes."""
        while not self._ended.is_set():
            self._counter.here.remote(self._pool)
            self._counter.alive.remote(self._id, self._runs, self.load(), self._pool)
            self._ended.wait(HERE_S)


def _unexpected(error: Exception) -> SystemFailure:
    return SystemFailure(f"The engine did not start ({type(error).__name__}); caprl-ray preflight --debug shows why.")
