"""Numbers with units, as answers about charts give them: 1,234; 12 %; $5; 3.2 million; 40 km."""

import re
from dataclasses import dataclass

PERCENT = "%"
# Words that may stand behind a number, or for money also before it. Other words make it a text, compared whole.
_UNITS = {
    PERCENT: ("%", "percent", "per cent", "pct", "percentage points"),
    "$": ("$", "usd", "us$", "dollar", "dollars"),
    "€": ("€", "eur", "euro", "euros"),
    "£": ("£", "gbp", "pound", "pounds"),
    "¥": ("¥", "yen", "jpy", "yuan", "rmb", "cny"),
    "₹": ("₹", "inr", "rupees"),
    "km": ("km", "kilometer", "kilometers", "kilometre", "kilometres"),
    "m": ("m", "meter", "meters", "metre", "metres"),
    "cm": ("cm", "centimeters", "centimetres"),
    "mm": ("mm", "millimeters", "millimetres"),
    "mile": ("mi", "mile", "miles"),
    "ft": ("ft", "foot", "feet"),
    "kg": ("kg", "kilogram", "kilograms"),
    "g": ("g", "gram", "grams"),
    "t": ("t", "ton", "tons", "tonne", "tonnes"),
    "second": ("sec", "second", "seconds"),  # not s: 1990s are no seconds
    "min": ("min", "mins", "minute", "minutes"),
    "h": ("h", "hr", "hrs", "hour", "hours"),
    "day": ("day", "days"),
    "week": ("week", "weeks"),
    "month": ("month", "months"),
    "year": ("year", "years", "yr", "yrs"),
    "°": ("°", "degree", "degrees"),
    "°c": ("°c",),
    "°f": ("°f",),
    "w": ("w", "watt", "watts"),
    "kw": ("kw",),
    "mw": ("mw",),
    "gw": ("gw",),
    "kwh": ("kwh",),
    "twh": ("twh",),
    "point": ("pt", "pts", "point", "points"),
    "people": ("people", "person", "persons"),
}
_SCALES = {
    "thousand": 1e3,
    "thousands": 1e3,
    "k": 1e3,
    "million": 1e6,
    "millions": 1e6,
    "mn": 1e6,
    "billion": 1e9,
    "billions": 1e9,
    "bn": 1e9,
    "trillion": 1e12,
    "trillions": 1e12,
    "tn": 1e12,
}
_CAPITALS = {"M": 1e6, "B": 1e9, "T": 1e12}  # of charts' axes; in small letters they are units
_NAMES = {word: unit for unit, words in _UNITS.items() for word in words}
_MONEY = "$€£¥₹"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?P<before>[{_MONEY}]?)\s*"
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?P<power>e[-+]?\d{1,3})?"
    r"\s*(?P<after>[^\d\s].*)?",
    re.IGNORECASE | re.ASCII,
)
LONGEST = 64  # characters of a number with its unit


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number as it is written, its unit (empty if none), and what a word such as million multiplies it by."""

    number: float
    unit: str = ""
    scale: float = 1.0

    @classmethod
    def of(cls, text: str) -> "Quantity | None":
        """The quantity that a whole text is; None for any other text."""
        text = text.strip().replace("\N{MINUS SIGN}", "-").rstrip(".")
        found = _NUMBER.fullmatch(text) if len(text) <= LONGEST else None
        rest = _rest(found["before"], found["after"]) if found else None
        if found is None or rest is None:
            return None
        number = float(found["sign"] + found["number"].replace(",", "") + (found["power"] or ""))
        return cls(number=number, unit=rest[1], scale=rest[0]) if abs(number) != float("inf") else None

    @property
    def readings(self) -> tuple[float, ...]:
        """The numbers that this may stand for where the other side has no unit: 12 % is 12 or 0.12."""
        scale = 0.01 if self.unit == PERCENT else self.scale
        return (self.number,) if scale == 1 else (self.number, self.number * scale)


def _rest(before: str, after: str | None) -> tuple[float, str] | None:
    """The scale and the unit around a number; None if there is anything else."""
    if after in _CAPITALS:
        return _CAPITALS[after], before
    word = " ".join((after or "").lower().split())
    scale = 1.0
    first, _, others = word.partition(" ")
    if first in _SCALES:
        scale, word = _SCALES[first], others
    unit = _NAMES.get(word, "") if word else ""
    if (word and not unit) or (before and unit and unit != before):
        return None
    return scale, before or unit
