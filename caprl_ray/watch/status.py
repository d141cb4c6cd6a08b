"""The status of a run: everything that one screen shows, as plain data. `status.json` holds it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from caprl_ray.output.part import FOLDER, STATUS, Part
from caprl_ray.storage import join
from caprl_ray.watch.rates import Rates
from caprl_ray.watch.record import Record, known

NAME = "status.json"
SCHEMA = 1  # of the file; raised when a field changes its meaning or goes away

RUNNING = "running"
# Of the engines' places: below the first, engines wait for images; from the second on, images wait for engines.
STARVED, FULL = 0.8, 0.95


def place(output: str, part: Part | None = None) -> str:
    """The path of the status of an output, or of a part of it."""
    return join(output, FOLDER, f"{part.name}{STATUS}") if part else join(output, NAME)


class NotAStatus(ValueError):
    """The content is no whole status, or one of a newer version."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The identity of a run, and its constant facts.

    Attributes:
        job: the job's name.
        done: its word for finished rows.
        noun: its word for rows, in the plural.
        output: the output's path.
        run, lease: the run and the number of its lease, as lease.json names them.
        driver: the driver's process in words.
        part: the part of the output that it writes, as K/N; empty for all of it.
        gpus: GPUs of a replica; None if the job has no replicas.
        price: dollars an hour of a GPU, if the recipe says it.
        reader_gpus, reader_price: the same of further pools, by their names.
    """

    job: str = "caption"
    done: str = "captioned"
    noun: str = "images"
    output: str = ""
    run: str | None = None
    lease: int | None = None
    driver: str = ""
    part: str = ""
    gpus: float | None = None
    price: float | None = None
    reader_gpus: Mapping[str, float] = field(default_factory=dict)
    reader_price: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run at one moment.

    Attributes:
        at: the time of day.
        phase: the present activity, in words.
        before, failed_before: rows of earlier runs, and the failed ones among them.
        ended: why the run ended early; empty if it was finished, None while it runs.
    """

    run: Run
    at: str
    phase: str
    before: int
    failed_before: int
    rates: Rates
    record: Record
    ended: str | None = None

    @property
    def done(self) -> int:
        """All rows of the output that are done."""
        return self.before + self.record.rows

    @property
    def failed(self) -> int:
        """All failed rows of the output."""
        return self.failed_before + self.record.failures

    @property
    def gpu_hours(self) -> float | None:
        """The hours for which this run has held GPUs; None without GPUs."""
        return sum(hours for hours, _ in self._held) if self._held else None

    @property
    def _held(self) -> list[tuple[float, float | None]]:
        """Of each pool on GPUs, the hours of GPUs and the price of one."""
        run, main, readers = self.run, self.record.replicas.seconds, self.record.readers
        pools = [(run.gpus, run.price, main)]
        pools += [
            (gpus, run.reader_price.get(name, run.price), readers[name].replicas.seconds)
            for name, gpus in run.reader_gpus.items()
            if name in readers
        ]
        return [(seconds * gpus / 3600, price) for gpus, price, seconds in pools if gpus]

    @property
    def cost(self) -> float | None:
        """Their price in dollars, if the recipe says one."""
        priced = [hours * price for hours, price in self._held if price is not None]
        return sum(priced) if priced and len(priced) == len(self._held) else None

    @property
    def waits(self) -> str | None:
        """The bottleneck, in words; None while no engine runs."""
        requests = self.record.requests
        if not requests.places or self.ended is not None:
            return None
        left = self.rates.planned - self.done if self.rates.planned is not None and self.rates.exact else None
        if left is not None and left <= requests.running + requests.waiting:
            return "the last ones"
        if requests.used >= FULL:
            return f"{self.run.noun} wait for the engine"
        if requests.used >= STARVED:
            return "neither waits"
        later = next((name for name, pool in self.record.readers.items() if pool.requests.used >= FULL), None)
        return (
            f"the engine waits for {self.run.noun}" if later is None else f"{self.run.noun} wait for the {later} engine"
        )

    def plain(self) -> dict[str, Any]:
        """The content of status.json: the fields, and values that are derived from them."""
        told = {"done": self.done, "failed": self.failed, "gpu_hours": self.gpu_hours, "cost": self.cost}
        return {"schema": SCHEMA, **asdict(self), "waits": self.waits, **told}

    @classmethod
    def parse(cls, content: bytes) -> "Status":
        """The status in a status.json. Raises NotAStatus."""
        try:
            found = json.loads(content)
        except ValueError as error:
            raise NotAStatus("is no whole status.json; look again in half a minute") from error
        if not isinstance(found, Mapping) or not isinstance(found.get("schema"), int):
            raise NotAStatus("is not the status of a run")
        if found["schema"] > SCHEMA:
            raise NotAStatus(f"was written by a newer version (schema {found['schema']}); update caprl_ray here")
        try:
            parts = {
                "run": Run(**known(Run, found["run"])),
                "rates": Rates(**known(Rates, found["rates"])),
                "record": Record.parse(found["record"]),
            }
            return cls(**{**known(cls, found), **parts})
        except (TypeError, KeyError, ValueError) as error:
            raise NotAStatus("is not the status of a run") from error
