"""Restart an engine whose core dies or hangs, and find the row that kills it (docs/design.md, D11)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from caprl_ray.engines.admission import Admission
from caprl_ray.engines.proof import harmless
from caprl_ray.engines.protocol import AS_THE_RECIPE, Completion, EngineDied, MortalEngine, Picture
from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.recipe.turns import Turns

# Concurrency limit of rows by the number of engine deaths that they have seen. Most deaths have an external cause (the
# OOM killer, a GPU that fell off the bus), so all rows run together once more. Rows that see a second death run in
# groups of at most GROUP: one at a time would take more than an hour for the 1,024 rows of a GPU. Then each runs alone,
# twice. Invariant: at most two deaths with any number of others, one in a group, two alone. So a row ends the engine at
# most five times, and no row fails that has not died alone twice.
GROUP = 32
COMPANY = (None, None, GROUP, 1, 1)
# After this many deaths without a finished row, the engine is at fault. Invariant: larger than the deaths by a whole
# group of poison rows, 2 + 1 + 2 * GROUP.
MOST_FRUITLESS_DEATHS = 100
# A GPU's memory is free some seconds after its process has ended. A start that fails for another reason is not retried.
START_ATTEMPTS, START_PAUSE_S = 3, 10.0
# How many times per stall timeout the engine's progress is checked, and the longest pause between two checks.
LOOKS, LONGEST_LOOK_S = 10, 5.0


class Revival:
    """An Engine that survives the deaths of the engines that `start` makes. Make one with `begin`."""

    def __init__(self, start: Callable[[], Awaitable[MortalEngine]], stall_timeout_s: float) -> None:
        self._start = start
        self._stall_timeout_s = stall_timeout_s
        self._engine: MortalEngine | None = None
        self._starting = asyncio.Lock()
        self._admission = Admission(COMPANY)
        self._calls: set[asyncio.Task[Completion]] = set()
        self._finished = 0
        self._fruitless = 0
        self._proof: tuple[Picture | None, str | Turns] | None = None
        self._failure: SystemFailure | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.deaths = 0
        self.control_tokens: Sequence[str] = ()
        self.arguments: dict[str, Any] = {}

    @classmethod
    async def begin(cls, start: Callable[[], Awaitable[MortalEngine]], stall_timeout_s: float) -> "Revival":
        """Start the engine. Raises SystemFailure if it does not start.

        Args:
            start: starts an engine. Raises EngineDied if another try may succeed and SystemFailure if none will.
            stall_timeout_s: seconds without progress after which an engine with work counts as dead.
        """
        revival = cls(start, stall_timeout_s)
        await revival._alive()
        assert revival._engine
        revival.control_tokens = revival._engine.control_tokens
        revival.arguments = dict(getattr(revival._engine, "arguments", {}))
        revival._watcher = asyncio.create_task(revival._watch())
        return revival

    async def stop(self) -> None:
        """End the engine for good. Afterwards none of its processes is left."""
        self._failure = SystemFailure("The engine was stopped.")
        if self._watcher:
            self._watcher.cancel()
        if self._engine:
            self._bury(self._engine)
        async with self._starting:  # a start that is under way ends its engine
            return

    async def caption(
        self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any] = AS_THE_RECIPE
    ) -> Completion:
        """Caption one picture. Raises RowFailure `engine_crash` if this row kills the engine, SystemFailure if every
        row would."""
        for deaths in range(len(COMPANY)):
            async with self._admission.admitted(deaths):
                try:
                    return await self._attempt(picture, prompt, sampling)
                except EngineDied:
                    continue
        raise RowFailure("engine_crash", "the engine died or hung each time, twice with this row alone")

    async def _attempt(self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any]) -> Completion:
        self._proof = self._proof or harmless(picture)
        completion = await self._call(await self._alive(), picture, prompt, sampling)
        self._proof = (picture, prompt)
        self._fruitless = 0
        return completion

    async def _call(
        self,
        engine: MortalEngine,
        picture: Picture | None,
        prompt: str | Turns,
        sampling: Mapping[str, Any] = AS_THE_RECIPE,
    ) -> Completion:
        """Caption by this engine. The call ends as soon as the engine is found dead."""
        call = asyncio.ensure_future(engine.caption(picture, prompt, sampling))
        self._calls.add(call)
        try:
            await asyncio.wait({call})
        except asyncio.CancelledError:  # the caption is no longer wanted
            call.cancel()
            raise
        finally:
            self._calls.discard(call)
            self._finished += 1
        error = EngineDied("its core process was ended") if call.cancelled() else call.exception()
        if isinstance(error, EngineDied):
            self._bury(engine)
            raise error
        if error and engine is not self._engine and not isinstance(error, RowFailure):
            raise EngineDied(type(error).__name__) from error  # an error of an engine that is being taken down
        return call.result()

    def _bury(self, engine: MortalEngine) -> None:
        """Take a dead engine down, once, and release every row that waits for it."""
        if engine is not self._engine:
            return
        self._engine = None
        self.deaths += 1
        self._fruitless += 1
        engine.stop()
        for call in self._calls:
            call.cancel()

    async def _alive(self) -> MortalEngine:
        """The engine, restarted if it is dead, once for all rows."""
        async with self._starting:
            self._check_goes_on()
            if self._engine is None:
                try:
                    self._check_fruit()
                    await _started(self._start_and_prove)
                except SystemFailure as failure:
                    self._failure = failure
                    raise
            assert self._engine
            return self._engine

    def _check_goes_on(self) -> None:
        if self._failure:
            raise self._failure

    def _check_fruit(self) -> None:
        if self._fruitless >= MOST_FRUITLESS_DEATHS:
            raise SystemFailure(
                f"The engine died {self._fruitless} times and captioned no row in between; run caprl-ray preflight "
                "with --debug to see why."
            )

    async def _start_and_prove(self) -> None:
        """Start an engine and let it first caption a harmless picture: that of the last captioned row, or a blank one
        of a row's size. Only then it gets rows that may have killed the last engine. So a broken system is never
        mistaken for poison rows.
        """
        self._check_goes_on()  # `stop` may have come between two attempts,
        engine = await self._start()
        if self._failure:  # or during this one
            engine.stop()
            raise self._failure
        self._engine = engine
        if self._proof:
            try:
                await self._call(engine, *self._proof)
            except RowFailure:
                return  # refused, so it lives

    async def _watch(self) -> None:
        """Find an engine that has work and makes no progress. Counts checks, not time: after a pause of this event
        loop, unread answers may be waiting."""
        look = min(self._stall_timeout_s / LOOKS, LONGEST_LOOK_S)
        seen: Any = None
        still = 0.0
        while True:
            await asyncio.sleep(look)
            engine = self._engine
            progress = (engine, engine.steps if engine else 0, self._finished)
            still = still + look if self._calls and progress == seen else 0.0
            seen = progress
            if engine and still >= self._stall_timeout_s:
                self._bury(engine)


async def _started(start: Callable[[], Awaitable[None]]) -> None:
    """Start, a few times if that may help. Raises SystemFailure."""
    patient = retry(
        stop=stop_after_attempt(START_ATTEMPTS),
        wait=wait_exponential(START_PAUSE_S),
        retry=retry_if_exception_type(EngineDied),
        reraise=True,
    )
    try:
        await patient(start)()
    except EngineDied as died:
        raise SystemFailure(f"The engine does not start, or dies at once: {died}.") from died
