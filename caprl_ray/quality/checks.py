"""The checks that one recipe asks for, with its thresholds, and the flags that they set."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caprl_ray.errors import RecipeError
from caprl_ray.quality import own
from caprl_ray.quality.caption import Caption
from caprl_ray.quality.check import Check, Threshold
from caprl_ray.quality.registry import CHECKS

Number = int | float
# The values that checks need beside the caption, and the field or option that gives them.
NEEDED = {
    "language": "the language that captions should have, as quality.language or --language",
    "json": "a JSON schema, as sampling.structured_outputs.json of a recipe",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A recipe's settings for checks.

    Attributes:
        checks: the names of the checks that run, or import paths `package.module:function`. If None, the standard ones.
        own: import paths of the user's own checks, which run in addition to `checks`.
        thresholds: values by `check.threshold`, such as {"loop.ratio": 10}.
        language: the language that captions should have, such as "en"; adds the check `language`.
        json_schema: the schema that captions should satisfy; adds the check `json`.
    """

    checks: Sequence[str] | None = None
    own: Sequence[str] = ()
    thresholds: Mapping[str, Number] = field(default_factory=dict)
    language: str | None = None
    json_schema: Mapping[str, Any] | None = None


class Checks:
    """The checks of one recipe, in order of severity, the worst fault first. Thread-safe; build it once per process."""

    def __init__(self, checks: Iterable[Check]) -> None:
        order = list(CHECKS)
        self._checks = sorted(checks, key=lambda check: _rank(order, check))
        self._ranks = {check.name: len(self._checks) - place for place, check in enumerate(self._checks)}

    @classmethod
    def of(cls, settings: Settings | None = None) -> "Checks":
        """The checks that a recipe asks for.

        Raises RecipeError if a check, a threshold, a language or a schema does not exist or is not allowed.
        """
        settings = settings or Settings()
        names = _names(settings)
        owned = [own.load(name) for name in dict.fromkeys([*filter(own.is_own, names), *settings.own])]
        _refuse_clashes(owned)
        thresholds = _by_check(settings.thresholds, names)
        given = {"language": settings.language, "json": settings.json_schema}
        built = (
            CHECKS[name](**thresholds.get(name, {}), **({"wanted": given[name]} if name in given else {}))
            for name in names
            if not own.is_own(name)
        )
        return cls([*built, *owned])

    @property
    def names(self) -> tuple[str, ...]:
        """The flags that can be set, the worst first."""
        return tuple(check.name for check in self._checks)

    @property
    def severe(self) -> frozenset[str]:
        """The flags of captions that are unfit for training."""
        return frozenset(check.name for check in self._checks if check.severe)

    def flags(self, caption: Caption) -> tuple[str, ...]:
        """The names of the checks that find a fault, the worst first.

        Raises CheckError, a RowFailure with the code `check_error`, if one of the user's own checks fails.
        """
        return tuple(check.name for check in self._checks if check.found(caption))

    def severity(self, flags: Collection[str]) -> tuple[int, ...]:
        """A sort key for captions by their flags, the best first. The worst flag decides, then the next one.

        `min(attempts, key=lambda attempt: checks.severity(attempt.flags))` is the best attempt; of equally good ones,
        the earliest. Flags that are not of these checks count least.
        """
        return tuple(sorted((self._ranks.get(flag, 0) for flag in flags), reverse=True))

    def versions(self) -> dict[str, dict[str, Any]]:
        """Versions and settings by check, as plain data for the fingerprint: all that decides about flags."""
        return {check.name: check.settings for check in self._checks}


def _rank(order: list[str], check: Check) -> float:
    """The place of a check in the order of severity. The user's own checks come after the package's severe ones."""
    severe = sum(CHECKS[name].severe for name in order)
    return order.index(check.name) if check.name in order else severe - 0.5


def _names(settings: Settings) -> list[str]:
    """The names of the checks that run. Raises RecipeError if one does not exist or lacks a value that it needs."""
    given = {"language": settings.language, "json": settings.json_schema}
    standard = [name for name, check in CHECKS.items() if check.standard]
    names = list(dict.fromkeys(standard if settings.checks is None else settings.checks))
    for name in names:
        if not own.is_own(name) and name not in CHECKS:
            raise RecipeError(
                f"{name!r} is not a check; they are {', '.join(CHECKS)}, or package.module:function for your own."
            )
        if name in given and given[name] is None:
            raise RecipeError(f"the check {name} needs {NEEDED[name]}; give it, or leave the check out.")
    return [*names, *(name for name, value in given.items() if value is not None and name not in names)]


def _by_check(thresholds: Mapping[str, Number], names: Collection[str]) -> dict[str, dict[str, Number]]:
    """Thresholds by check. Raises RecipeError if one does not exist, has no effect, or is out of range."""
    found: dict[str, dict[str, Number]] = {}
    for path, value in thresholds.items():
        name, _, key = path.partition(".")
        known = CHECKS[name].thresholds() if name in CHECKS else {}
        if key not in known:
            every = [f"{check.name}.{key}" for check in CHECKS.values() for key in check.thresholds()]
            raise RecipeError(f"{path!r} is not a threshold; they are {', '.join(every)}.")
        if name not in names:
            raise RecipeError(f"{path} is given, but the check {name} does not run; add it to the checks.")
        found.setdefault(name, {})[key] = _checked(path, value, known[key])
    return found


def _checked(path: str, value: Number, threshold: Threshold) -> Number:
    numbers = int if threshold.whole else (int, float)
    if not isinstance(value, numbers) or isinstance(value, bool) or not threshold.least <= value <= threshold.most:
        kind = "a whole number" if threshold.whole else "a number"
        raise RecipeError(
            f"{path}: {value!r} is not allowed; it should be {kind} from {threshold.least:g} to {threshold.most:g}."
        )
    return value


def _refuse_clashes(owned: Sequence[own.OwnCheck]) -> None:
    seen = dict.fromkeys(CHECKS, "a check of caprl_ray")
    for check in owned:
        if check.name in seen:
            raise RecipeError(f"{check.path}: {check.name} is also {seen[check.name]}; give the function another name.")
        seen[check.name] = check.path
