"""The folder of a tune: its conditions and all measurements. The same command continues from it."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from caprl_ray.commands.estimate import Estimate, steady
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.tune.measuring import Seen
from caprl_ray.tune.settings import Setting

CONDITIONS, MACHINE, MEASURED, TUNED, LOCK = "conditions.json", "machine.json", "measured", "tuned.yaml", ".lock"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measurement of a setting, as it is stored: a Result of search.py.

    Attributes:
        seconds: the requested time in steady state.
        cost_s: the whole time, with the start.
        finished: when each batch was finished, its captions and tokens.
        greedy: greedy captions of the first images of the sample.
        failure: why it failed; empty if it did not.
        limit_s: the time limit, if it was exceeded.
        passing: whether it may work the next time; it has failed in this way once.
    """

    setting: str
    seconds: float
    cost_s: float
    failure: str = ""
    start_s: float | None = None
    first_caption_s: float | None = None
    finished: list[tuple[float, int, int]]
    greedy: list[str | None]
    failed: dict[str, int]
    gpu_busy: float | None = None
    gpu_bytes: int | None = None
    host_bytes: int | None = None
    arguments: dict[str, Any]
    limit_s: float | None = None
    passing: bool = False

    @classmethod
    def of(cls, setting: Setting, seconds: float, cost_s: float, seen: Seen, arguments: dict[str, Any]) -> Self:
        """A successful measurement, unless no image has a caption. Replicas share one GPU, and each has its own host
        memory."""
        busy = [load.gpu_busy for load in seen.loads if load.gpu_busy is not None]
        used = [load.gpu_bytes for load in seen.loads if load.gpu_bytes is not None]
        captions = sum(captions for _, captions, _ in seen.finished)
        codes = ", ".join(f"{code} {count}" for code, count in seen.failed.items())
        return cls(
            setting=setting.name,
            seconds=seconds,
            cost_s=cost_s,
            failure="" if captions else f"it captioned no image ({codes})",
            start_s=seen.start_s,
            first_caption_s=seen.first_caption_s,
            finished=seen.finished,
            greedy=seen.greedy,
            failed=seen.failed,
            gpu_busy=sum(busy) / len(busy) if busy else None,
            gpu_bytes=max(used) if used else None,
            host_bytes=sum(load.host_bytes for load in seen.loads),
            arguments=arguments,
        )

    @classmethod
    def failed_with(
        cls,
        setting: Setting,
        seconds: float,
        cost_s: float,
        failure: str,
        *,
        limit_s: float | None = None,
        passing: bool = False,
    ) -> Self:
        """A failed measurement; with `limit_s`, it ran out of time."""
        return cls(
            setting=setting.name, seconds=seconds, cost_s=cost_s, failure=failure,
            finished=[], greedy=[], failed={}, arguments={}, limit_s=limit_s, passing=passing,
        )  # fmt: skip

    @cached_property
    def rate(self) -> Estimate | None:
        """Images/s; None if it failed."""
        return None if self.failure else self._steady(1)

    @cached_property
    def tokens_s(self) -> Estimate | None:
        """Tokens of captions/s."""
        return None if self.failure else self._steady(2)

    def _steady(self, column: int) -> Estimate:
        return steady([one[0] for one in self.finished], [one[column] for one in self.finished])

    def worth_another_try(self, limit_s: float) -> bool:
        """Whether it may work the next time, or had a shorter time limit than this one."""
        return self.passing or (self.limit_s is not None and self.limit_s < 0.9 * limit_s)

    def equal(self, other: "Measurement") -> tuple[int, int]:
        """The number of greedy captions that equal those of another measurement, and the number compared."""
        both = [pair for pair in zip(self.greedy, other.greedy, strict=False) if None not in pair]
        return sum(one == another for one, another in both), len(both)


class State:
    """The folder. Use it as a context: one tune at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK, blocking=False)

    def __enter__(self) -> "State":
        try:
            (self.folder / MEASURED).mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise RecipeError(
                f"--out: another tune writes to {self.folder}; wait for it, or give another folder."
            ) from None
        except OSError as error:
            raise SystemFailure.of(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def check(self, conditions: Mapping[str, Any]) -> None:
        """Raise RecipeError if the stored measurements have other conditions."""
        file = self.folder / CONDITIONS
        if not file.exists():
            return
        before, now = _read(file), _plain(conditions)
        differ = sorted(name for name in before | now if before.get(name) != now.get(name))
        if differ:
            raise RecipeError(
                f"--out: {self.folder} was measured under other conditions ({', '.join(differ[:5])}); remove it, or "
                "give another folder."
            )

    def begin(self, conditions: Mapping[str, Any]) -> None:
        """Store the conditions."""
        self.write(CONDITIONS, _text(_plain(conditions)))

    def same_machine(self, machine: Mapping[str, Any]) -> None:
        """Store the hardware of the first replica's node. Raises RecipeError for other hardware, whose figures are not
        comparable."""
        if not machine:  # no replica started
            return
        before = self.machine
        if not before:
            self.write(MACHINE, _text(dict(machine)))
        elif before != machine:
            raise RecipeError(
                f"--out: {self.folder} was measured on {_said(before)}, and this replica has {_said(machine)}; run it "
                "on such a node, or give another folder."
            )

    @property
    def machine(self) -> dict[str, Any]:
        """The hardware of the measurements; empty before the first one."""
        file = self.folder / MACHINE
        return _read(file) if file.exists() else {}

    def write(self, name: str, text: str | None) -> None:
        """Write a file whole or not at all; None removes it."""
        file = self.folder / name
        if text is None:
            file.unlink(missing_ok=True)
            return
        temporary = file.with_name(f"{file.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)

    def load(self, setting: str, seconds: float) -> Measurement | None:
        """An earlier measurement."""
        file = self.folder / _name(setting, seconds)
        if not file.exists():
            return None
        known = {one.name for one in fields(Measurement)}
        return Measurement(**{name: value for name, value in _read(file).items() if name in known})

    def keep(self, measurement: Measurement) -> None:
        """Store a measurement."""
        self.write(_name(measurement.setting, measurement.seconds), _text(asdict(measurement)))


def _name(setting: str, seconds: float) -> str:
    return f"{MEASURED}/{blake2b(setting.encode(), digest_size=6).hexdigest()}-{seconds:g}s.json"


def _said(machine: Mapping[str, Any]) -> str:
    """A node in words."""
    names = Counter(machine.get("machine.gpus") or ())
    gpus = [f"{count} x {name}" for name, count in names.items()] or ["no GPU"]
    return f"{', '.join(gpus)} and {machine.get('machine.cores')} cores"


def _plain(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions as JSON returns them."""
    return dict(json.loads(json.dumps(conditions, default=str)))


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise RecipeError(f"--out: {file} cannot be read ({type(error).__name__}); remove it and run again.") from None
