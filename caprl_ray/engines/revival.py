"""An engine that is started again when its core dies or hangs, and the search for the row that kills it (D11)."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from caprl_ray.engines.admission import Admission
from caprl_ray.engines.protocol import Completion, EngineDied, MortalEngine, Picture
from caprl_ray.errors import RowFailure, SystemFailure

# How many rows may be under way with a row that has seen so many deaths of the engine. Most deaths have their cause
# outside (the OOM killer, a GPU that fell off the bus), so all go again together once. Whoever is there when it dies
# again goes with at most GROUP of its like: of 1,024 rows on a GPU, one at a time would take an hour and more. Then
# alone, twice.
# Invariant: at most two deaths with any number of others, one in a group, two alone, so that a row can end the engine
# at most five times, and none fails that has not twice been alone with its death.
GROUP = 32
COMPANY = (None, None, GROUP, 1, 1)
# Deaths in a row without a finished row between them, after which the engine is at fault.
# Invariant: more than a whole group of nothing but deadly rows needs, 2 + 1 + 2 * GROUP.
MOST_FRUITLESS_DEATHS = 100
# A GPU's memory is free some seconds after its process is gone; a start that fails otherwise is not tried again.
START_ATTEMPTS, START_PAUSE_S = 3, 10.0
# How often within the stall time the engine's progress is looked at, and the longest pause between two looks.
LOOKS, LONGEST_LOOK_S = 10, 5.0

PROOF_PROMPT = "Describe the image."


class Revival:
    """An Engine that outlives the deaths of the engine that `start` gives; make one with `begin`."""

    def __init__(self, start: Callable[[], Awaitable[MortalEngine]], stall_timeout_s: float) -> None:
        self._start = start
        self._stall_timeout_s = stall_timeout_s
        self._engine: MortalEngine | None = None
        self._starting = asyncio.Lock()
        self._admission = Admission(COMPANY)
        self._calls: set[asyncio.Task[Completion]] = set()
        self._finished = 0
        self._fruitless = 0
        self._proof: tuple[Picture, str] | None = None
        self._failure: SystemFailure | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.deaths = 0
        self.control_tokens: Sequence[str] = ()
        self.arguments: dict[str, Any] = {}

    @classmethod
    async def begin(cls, start: Callable[[], Awaitable[MortalEngine]], stall_timeout_s: float) -> "Revival":
        """Start the engine. Raises SystemFailure where it does not start.

        Args:
            start: starts one; raises EngineDied where another try may succeed and SystemFailure where none will.
            stall_timeout_s: seconds without progress after which an engine that has work counts as dead.
        """
        revival = cls(start, stall_timeout_s)
        await revival._alive()
        assert revival._engine
        revival.control_tokens = revival._engine.control_tokens
        revival.arguments = dict(getattr(revival._engine, "arguments", {}))
        revival._watcher = asyncio.create_task(revival._watch())
        return revival

    async def caption(self, picture: Picture, prompt: str) -> Completion:
        """Caption one picture. Raises RowFailure `engine_crash` where this row ends the engine, SystemFailure where
        every row would."""
        for deaths in range(len(COMPANY)):
            async with self._admission.admitted(deaths):
                try:
                    return await self._attempt(picture, prompt)
                except EngineDied:
                    continue
        raise RowFailure("engine_crash", "the engine died or hung each time, twice with this row alone")

    async def _attempt(self, picture: Picture, prompt: str) -> Completion:
        self._proof = self._proof or (_blank(picture), PROOF_PROMPT)
        completion = await self._call(await self._alive(), picture, prompt)
        self._proof = (picture, prompt)
        self._fruitless = 0
        return completion

    async def _call(self, engine: MortalEngine, picture: Picture, prompt: str) -> Completion:
        """Caption by this engine; whatever becomes of the call when the engine is found dead, it ends at once."""
        call = asyncio.ensure_future(engine.caption(picture, prompt))
        self._calls.add(call)
        try:
            await asyncio.wait({call})
        finally:
            self._calls.discard(call)
            self._finished += 1
        error = EngineDied("its core process was ended") if call.cancelled() else call.exception()
        if isinstance(error, EngineDied):
            self._bury(engine)
            raise error
        if error and engine is not self._engine and not isinstance(error, RowFailure):
            raise EngineDied(type(error).__name__) from error  # what a call says of an engine that is taken down
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
        """The engine, started again if it is dead; once for all rows."""
        async with self._starting:
            if self._failure:
                raise self._failure
            if self._engine is None:
                try:
                    self._check_fruit()
                    await _started(self._start_and_prove)
                except SystemFailure as failure:
                    self._failure = failure
                    raise
            assert self._engine
            return self._engine

    def _check_fruit(self) -> None:
        if self._fruitless >= MOST_FRUITLESS_DEATHS:
            raise SystemFailure(
                f"The engine died {self._fruitless} times and captioned no row in between; run caprl-ray preflight "
                "with --debug to see why."
            )

    async def _start_and_prove(self) -> None:
        """Start an engine and, before any row that may have killed the last one, let it caption what is harmless.

        So a broken system never passes for deadly rows (P4): the proof is the last row that was captioned, or a blank
        picture of a row's size where none was yet.
        """
        engine = self._engine = await self._start()
        if self._proof:
            try:
                await self._call(engine, *self._proof)
            except RowFailure:
                return  # refused, so it lives

    async def _watch(self) -> None:
        """Find the engine that has work and makes no progress. Counts looks, not the clock: where this event loop was
        held up, answers may lie there unread."""
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
    """Start, a few times where it may help. Raises SystemFailure."""
    patient = retry(
        stop=stop_after_attempt(START_ATTEMPTS),
        wait=wait_exponential(START_PAUSE_S),
        retry=retry_if_exception_type(EngineDied),
        reraise=True,
    )
    try:
        await patient(start)()
    except EngineDied as died:
        raise SystemFailure(f"The engine does not start or does not live: {died}.") from died


def _blank(picture: Picture) -> Picture:
    gray = memoryview(bytes([128]) * (3 * picture.width * picture.height))
    return Picture(pixels=gray, width=picture.width, height=picture.height)
