"""Chaos with three drivers on one output, each with a part of it. A driver that was killed is followed by another one.

Run as a program, this file is the command line on a machine of its own, as far as leases tell, and with short leases.
"""

import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from caprl_ray import cli
from caprl_ray.output import holder, lease
from tests.chaos import victims
from tests.chaos.arena import Arena, Outcome, Trigger
from tests.chaos.schedule import Kill, Point, Schedule, draw

PARTS = 3
MOST_DRIVERS, ALL_S = 30, 600.0
RENEWAL_S, EXPIRY_S = 3.0, 20.0
HELD = "holds it until"  # what a driver says that begins before the lease of a lost one has ended


@dataclass
class Drivers:
    """The drivers of all parts. `apart`: each is on a machine of its own, so that nobody sees whether it lives."""

    arena: Arena
    apart: bool
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    begun: int = 0

    def start(self, part: int) -> None:
        """Begin another driver of a part."""
        place = [__file__, f"machine {self.begun}"] if self.apart else ["-m", "caprl_ray"]
        command = [sys.executable, *place, "caption", str(self.recipe), "--part", f"{part}/{PARTS}"]
        environment = self.arena.head.client | {"RAY_ADDRESS": self.arena.head.address}
        with open(self._log(part), "wb") as log:
            self.running[part] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.begun += 1

    @property
    def recipe(self) -> Path:
        """The recipe of all."""
        return self.arena.folder / "recipe.yaml"

    def said(self, part: int) -> str:
        """What the last driver of a part has written."""
        return self._log(part).read_text()

    def _log(self, part: int) -> Path:
        return self.arena.folder / f"part-{part}.log"

    def living(self) -> list[subprocess.Popen[bytes]]:
        return [driver for driver in self.running.values() if driver.poll() is None]

    def follow(self) -> str | None:
        """Begin drivers for those that were killed, and forget those that have finished; returns the fault of one."""
        for part, driver in [*self.running.items()]:
            code = driver.poll()
            if code == 0:
                del self.running[part]
            elif code == -signal.SIGKILL or (code == 2 and HELD in self.said(part)):
                time.sleep(0 if code == -signal.SIGKILL else EXPIRY_S / 4)
                self.start(part)
            elif code is not None:
                return f"the driver of part {part} ended with {code}: {self.said(part)[-2000:]}"
        return None

    def end(self) -> None:
        """Let none outlive the run."""
        for driver in self.living():
            driver.kill()
            driver.wait()


def drawn(seed: int) -> Schedule:
    """The schedule of a seed, with two more drivers killed, of whichever part: one early, one late."""
    chance = random.Random(seed)
    early = Point("PUT", "out/", chance.randint(1, 12))
    late = Point("PUT", "out/data/", chance.randint(2, 9))
    schedule = draw(seed)
    return replace(schedule, kills=(*schedule.kills, Kill("driver killed", early), Kill("driver killed", late)))


def run(arena: Arena, schedule: Schedule, *, apart: bool) -> Outcome:
    """Run three drivers by a schedule, from a new output to the checked end."""
    began = time.monotonic()
    document = arena.clear()
    document["replicas"] = {"min": 1, "max": 1, "gpus": 0.5}
    document["output"]["rows_per_object"] = 16
    chance, drivers = random.Random(schedule.seed), Drivers(arena, apart)
    drivers.recipe.write_text(yaml.safe_dump(document))

    def strike(kill: Kill) -> str | None:
        living = drivers.living()
        return victims.strike(kill.kind, arena.head, chance.choice(living), chance) if living else None

    trigger, problem = Trigger(schedule, strike), None
    try:
        arena.server.fault = trigger
        for part in range(1, PARTS + 1):
            drivers.start(part)
        while drivers.running and not problem:
            trigger.look()
            problem = drivers.follow()
            if time.monotonic() - began > ALL_S or drivers.begun > MOST_DRIVERS:
                said = "; ".join(f"{part}: {drivers.said(part)[-1000:]}" for part in drivers.running)
                problem = f"parts do not end: {said}"
            time.sleep(0.2)
    finally:
        arena.server.fault = None
        drivers.end()
    return Outcome(
        seed=schedule.seed,
        fired=trigger.fired,
        missed=[str(kill) for kill in trigger.waiting],
        storage_faults=trigger.faults,
        drivers=drivers.begun,
        read_again=arena.read_again(),
        seconds=time.monotonic() - began,
        problem=problem or arena.compact(chance) or arena.check(document),
    )


if __name__ == "__main__":
    machine = sys.argv[1]
    holder.boot = lambda: machine
    lease.RENEWAL_S, lease.EXPIRY_S = RENEWAL_S, EXPIRY_S
    sys.exit(cli.main(sys.argv[2:]))
