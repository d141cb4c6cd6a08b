"""Many replicas in few processes, for `scale.py`: their places, their signs of life and their share of Ray's pool.

An actor stands for several replicas. Only the engine is computed: each caption takes its picture's time in the first
place that is free, and a batch returns when its last caption would be written. What a batch costs the driver, the
counter and the object store is real: its blocks, its messages, its place among the tasks in flight.
"""

import asyncio
import heapq
import json
import math
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from captioning import substitute

from caprl_ray.caption.stage import Captioner
from caprl_ray.cluster import session
from caprl_ray.engines.stub import SECONDS, stub_seconds
from caprl_ray.errors import RowFailure
from caprl_ray.prepare.decode import Prepared
from caprl_ray.prepare.stage import Prepare
from caprl_ray.replica.start import Replica
from caprl_ray.rows.stage import Changes

SIDE = 16
ROW_BYTES = 3 * SIDE * SIDE + 256  # of a picture, and about what its row has besides
CAPTION_WORDS = 300
SLOW = "SLOW_NODE"  # environment variable: a path; the first replica that can create it is slow
SLOWER = 3.0
TAKEN = "TAKEN"  # environment variable: a folder, with a file for each process of replicas (`taken`)


def tiny_images(count: int) -> Iterator[bytes]:
    """Random pictures of SIDE x SIDE pixels, the same ones at every call."""
    chance = random.Random(1)
    return (chance.randbytes(3 * SIDE * SIDE) for _ in range(count))


class Tiny(Prepare):
    """Prepare that passes bytes on as pixels of SIDE x SIDE."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._decode = passed_on


def passed_on(image: bytes) -> Prepared:
    """Use the image's bytes as its pixels."""
    return Prepared(pixels=image, pixel_width=SIDE, pixel_height=SIDE, width=SIDE, height=SIDE)


class Places:
    """The places of one engine, in wall-clock seconds. A place is the time at which it is free."""

    def __init__(self, count: int) -> None:
        self._free = [0.0] * count

    def taken(self, now: float, lengths: Sequence[float]) -> list[tuple[float, float]]:
        """When each of these captions begins and ends. Each takes the place that is free first."""
        spans = []
        for length in lengths:
            begin = max(now, self._free[0])
            heapq.heapreplace(self._free, begin + length)
            spans.append((begin, begin + length))
        return spans


class Writer:
    """Captions a batch when its last caption would be written, by the replica of this actor with the fewest rows."""

    def __init__(self, *arguments: Any) -> None:
        self._cut = arguments[-1]
        self._each = int(os.environ["REPLICAS"]) // int(os.environ["ACTORS"])
        self._places = [Places(int(os.environ["PLACES"])) for _ in range(self._each)]
        self._rows = [0] * self._each
        slower = SLOWER if slow_here() else 1.0
        self._bounds = [slower * float(part) for part in os.environ[SECONDS].split("-")]
        self._text = " ".join(f"word{n}" for n in range(CAPTION_WORDS))
        self._taken = Path(os.environ[TAKEN]) / str(os.getpid())

    async def write(self, rows: list[dict[str, Any]]) -> Sequence[Changes | RowFailure]:
        """The captions of a batch."""
        now = time.time()
        lengths = [stub_seconds(bytes(row["pixels"]), *self._bounds) for row in rows]
        replica = self._rows.index(min(self._rows))
        self._rows[replica] += len(rows)
        spans = self._places[replica].taken(now, lengths)
        with open(self._taken, "a", encoding="ascii") as lines:
            lines.write(json.dumps(spans) + "\n")
        ended = await self._cut(asyncio.sleep(max(end for _, end in spans) - now))
        self._rows[replica] -= len(rows)
        return [ended or self._caption() for _ in rows]

    def sums(self) -> Mapping[str, Counter[str]]:
        """Nothing beside the rows."""
        return {}

    def _caption(self) -> Changes:
        return {
            "caption": self._text,
            "finish_reason": "stop",
            "flags": [],
            "repaired": [],
            "decodes": 1,
            "decoded_tokens": CAPTION_WORDS,
            "saved_tokens": 0,
            "prompt_tokens": 1000,
            "caption_tokens": CAPTION_WORDS,
            "model": "simulated",
        }


def taken(folder: Path, begin: float, end: float, killed: Mapping[int, float]) -> tuple[float, float]:
    """Seconds of all places together, between two times, in which captions were written; and those seconds, at any
    time, whose captions were lost.

    A process that was `killed`, by its id and when, hands on nothing of a batch that was not finished by then.
    """
    seconds = lost = 0.0
    for file in folder.iterdir():
        ended = killed.get(int(file.name), math.inf)
        for line in file.read_text(encoding="ascii").splitlines():
            spans = [(first, min(last, ended)) for first, last in json.loads(line)]
            seconds += sum(max(0.0, min(last, end) - max(first, begin)) for first, last in spans)
            if max(last for _, last in spans) == ended:
                lost += sum(max(0.0, last - first) for first, last in spans)
    return seconds, lost


def slow_here() -> bool:
    """Whether this process's replica is the slow one."""
    if SLOW not in os.environ:
        return False
    with suppress(FileExistsError):
        os.close(os.open(os.environ[SLOW], os.O_CREAT | os.O_EXCL))
        return True
    return False


class Replicas(Captioner):
    """One actor in place of several replicas, each of which gives its own signs of life."""

    writer = Writer  # type: ignore[assignment]

    def __init__(self, *arguments: Any, counter: Any, **named: Any) -> None:
        super().__init__(*arguments, counter=counter, **named)
        self._others = [Replica(counter, replaced=True) for _ in range(self._writer._each - 1)]  # type: ignore[attr-defined]
        for other in self._others:
            other.start(lambda: None)


def pool_as_large(each: int) -> None:
    """Let Ray look after its pool as often as one with `each` times as many actors costs: once for each actor and turn
    of its loop."""
    from ray.data._internal.execution.operators.actor_pool_map_operator import _ActorPool

    refresh = _ActorPool.refresh_actor_state

    def refreshed(pool: Any) -> None:
        for _ in range(each):
            refresh(pool)

    substitute(_ActorPool, "refresh_actor_state", refreshed)


def blocks_of(size: int) -> None:
    """Cut blocks of compressed pictures at this size."""
    configure = session.configure

    def configured(context: Any, debug: bool) -> None:
        configure(context, debug)
        context.target_max_block_size = size

    substitute(session, "configure", configured)
