"""The faults of one run and their times, drawn from a seed alone, so that a failed run can be repeated."""

import random
from dataclasses import dataclass

# The kinds of kills, and the faults of storage.
KILLS = ("core killed", "core stopped", "replica killed", "prepare killed", "node lost", "driver killed")
STORAGE = "storage faults"
KINDS = (*KILLS, STORAGE)
STORAGE_FAULTS = ("slow_down", "reset", "short", "lost")


@dataclass(frozen=True)
class Point:
    """A point of a run: the `count`-th request of a method for a key that begins with `prefix`, of one driver."""

    method: str
    prefix: str
    count: int

    @property
    def place(self) -> tuple[str, str]:
        """What is counted."""
        return self.method, self.prefix

    def __str__(self) -> str:
        return f"{self.method} {self.prefix} {self.count}"


@dataclass(frozen=True)
class Kill:
    """End one process when the run comes to a point, or as soon after it as there is one."""

    kind: str
    at: Point

    def __str__(self) -> str:
        return f"{self.kind} at {self.at}"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One run's faults: kills, and the share of requests to storage that go wrong."""

    seed: int
    kills: tuple[Kill, ...]
    share: float

    @property
    def kinds(self) -> set[str]:
        return {kill.kind for kill in self.kills} | ({STORAGE} if self.share else set())


def draw(seed: int) -> Schedule:
    """One to three faults. The first is of each kind in turn. At most one node is lost, so that one remains."""
    chance = random.Random(seed)
    kinds = [KINDS[seed % len(KINDS)]]
    while chance.random() < 0.5 and len(kinds) < 3:
        kinds.append(chance.choice([kind for kind in KINDS if kind not in kinds]))
    share = chance.uniform(0.02, 0.1) if STORAGE in kinds else 0.0
    kills = tuple(Kill(kind, _point(kind, chance)) for kind in kinds if kind != STORAGE)
    return Schedule(seed=seed, kills=kills, share=share)


def _point(kind: str, chance: random.Random) -> Point:
    """A point with running rows: all are prepared before many are committed. A driver may end at any step."""
    points = [Point("GET", "in/", chance.randint(5, 90))]
    if kind != "prepare killed":
        points.append(Point("PUT", "out/data/", chance.randint(1, 3)))
    if kind == "driver killed":
        steps = ("lease.json", "run.json", "plan/", "data/", "_SUCCESS")
        points += [Point("PUT", f"out/{step}", 1) for step in steps]
        points += [Point("GET", "out/data/", chance.randint(1, 8)), Point("PUT", "out/lease.json", 7)]
    return chance.choice(points)
