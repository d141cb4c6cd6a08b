"""A check of captions: its name, version and thresholds, and the method that finds the fault."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from caprl_ray.quality.caption import Caption


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A threshold: its default with the source of the value, its range, and its meaning.

    `whole`: it is an integer. `least` and `most` are its smallest and largest value.
    """

    default: float
    whole: bool
    least: float
    most: float
    meaning: str
    source: str


def threshold(default: float, least: float, most: float, meaning: str, source: str) -> Any:
    """A field of a check that a recipe may set, from `least` to `most`. If its default is an int, it must be one."""
    whole = isinstance(default, int)
    described = Threshold(default=default, whole=whole, least=least, most=most, meaning=meaning, source=source)
    return field(default=default, metadata={"threshold": described})


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check. Subclasses are frozen dataclasses: their docstrings describe the fault, their fields are thresholds.

    `found` is a pure function and takes time linear in the text's length. Raise `version` whenever its results change.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    severe: ClassVar[bool] = False
    """Whether a caption with this flag is unfit for training, so that another attempt is better."""
    standard: ClassVar[bool] = True
    """Whether the check runs if a recipe names no checks."""
    spares: ClassVar[str] = ""
    """Captions that look faulty but are not flagged."""
    causes: ClassVar[str] = ""
    """The usual causes of the fault."""
    remedy: ClassVar[str] = ""
    """What the user can do about the fault."""

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
