"""Distinguish a row that a service cannot caption from a service that captions nothing.

If a row's request fails in every attempt, either the row is at fault or the service is down. So a harmless picture is
sent: the last one that was captioned, or a blank one. The row is at fault only if that picture is captioned.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from caprl_ray.engines.protocol import AS_THE_RECIPE, Completion, Picture
from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.recipe.turns import Turns

PROOF_PROMPT = "Describe the image."
PROOF_TEXT = "Say yes."
# The attempts of a row before it fails. Invariant: between two attempts, the service captioned a picture that was sent
# after the first attempt had failed. So no row fails because of a single outage, however long.
ROW_ATTEMPTS = 2
# How often the harmless picture is sent if it times out. A service may be busy for a while.
TIMED_OUT_PROOFS = 3


class Suspect(Exception):
    """A request that failed in every attempt. `row` is its failure if the row is at fault, or else `system`."""

    def __init__(self, row: RowFailure, system: SystemFailure, *, timed_out: bool = False) -> None:
        super().__init__(row, system)
        self.row, self.system = row, system
        self.proofs = TIMED_OUT_PROOFS if timed_out else 1


class Proof:
    """Sends rows by `send`, and the harmless picture after a row that failed for good."""

    def __init__(self, send: Callable[[Picture | None, str | Turns, Mapping[str, Any]], Awaitable[Completion]]) -> None:
        self._send = send
        self._proof: tuple[Picture | None, str | Turns] | None = None
        self._proving = asyncio.Lock()
        self._proved = 0.0  # when the last picture that was captioned had been sent
        self._failure: SystemFailure | None = None

    async def caption(
        self, picture: Picture | None, prompt: str | Turns, sampling: Mapping[str, Any] = AS_THE_RECIPE
    ) -> Completion:
        """Caption one picture. Raises RowFailure if this row is at fault, SystemFailure if the service is."""
        self._proof = self._proof or harmless(picture)
        suspects = []
        for _ in range(ROW_ATTEMPTS):
            sent = time.monotonic()
            try:
                completion = await self._send(picture, prompt, sampling)
            except Suspect as suspect:
                suspects.append(suspect)
                if len(suspects) < ROW_ATTEMPTS:
                    await self._prove(suspect)
                continue
            self._proof, self._proved = (picture, prompt), max(self._proved, sent)
            return completion
        raise suspects[-1].row from None

    async def _prove(self, suspect: Suspect) -> None:
        """Return if the service captions anything. One proof serves every row that failed before it was sent."""
        failed = time.monotonic()
        async with self._proving:
            if self._failure:
                raise self._failure
            if self._proved <= failed:
                await self._send_proof(suspect)

    async def _send_proof(self, suspect: Suspect) -> None:
        assert self._proof
        failure = suspect.system
        for _ in range(suspect.proofs):
            sent = time.monotonic()
            try:
                await self._send(*self._proof, AS_THE_RECIPE)
            except Suspect as again:
                failure = again.system
                continue
            except RowFailure:
                pass  # refused, so the service answers
            self._proved = max(self._proved, sent)
            return
        self._failure = failure
        raise failure from None


def harmless(picture: Picture | None) -> tuple[Picture | None, str | Turns]:
    """A picture and a prompt that hurt no engine: without a picture for engines that get none."""
    return (None, Turns(user=PROOF_TEXT)) if picture is None else (blank(picture), PROOF_PROMPT)


def blank(picture: Picture) -> Picture:
    """A gray picture of the same size."""
    gray = memoryview(bytes([128]) * (3 * picture.width * picture.height))
    return Picture(pixels=gray, width=picture.width, height=picture.height)
