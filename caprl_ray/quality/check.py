"""A check: a name, a version, thresholds, and one verb."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from caprl_ray.quality.caption import Caption


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A threshold: its default with its source, its range, and what it means."""

    default: float
    whole: bool
    least: float
    most: float
    meaning: str
    source: str


def threshold(default: float, least: float, most: float, meaning: str, source: str) -> Any:
    """A field of a check that a recipe may set, between `least` and `most`. It is whole if its default is an int."""
    whole = isinstance(default, int)
    described = Threshold(default=default, whole=whole, least=least, most=most, meaning=meaning, source=source)
    return field(default=default, metadata={"threshold": described})


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check. Subclasses are frozen dataclasses: their first line says what they find, their fields are thresholds.

    `found` is pure, takes time that grows with the text's length, and keeps nothing between captions. Raise `version`
    with every change of what it finds.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    severe: ClassVar[bool] = False
    """Whether a caption with this flag is not fit for training as it is, so that another attempt is better."""
    standard: ClassVar[bool] = True
    """Whether the check is on if a recipe names none."""
    spares: ClassVar[str] = ""
    """What looks like a fault, and is none."""
    causes: ClassVar[str] = ""
    """What it usually comes from."""
    remedy: ClassVar[str] = ""
    """What to do about it."""

    def found(self, caption: Caption) -> bool:
        """Whether the caption has the fault."""
        raise NotImplementedError

    @classmethod
    def thresholds(cls) -> dict[str, Threshold]:
        """The thresholds that a recipe may set, by name."""
        return {f.name: f.metadata["threshold"] for f in fields(cls) if "threshold" in f.metadata}

    @property
    def settings(self) -> dict[str, Any]:
        """The version and thresholds of this check, as plain data."""
        return {"version": self.version} | {f.name: getattr(self, f.name) for f in fields(self)}
