"""The user's own checks: functions, which a recipe names by import path, `package.module:function`."""

import hashlib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from caprl_ray.errors import RecipeError, RowFailure
from caprl_ray.quality.caption import Caption
from caprl_ray.quality.check import Check

CHECK_ERROR = "check_error"
"""The code of a row for which one of the user's own checks failed."""


class CheckError(RowFailure):
    """One of the user's own checks raised an exception, or did not return True or False."""

    def __init__(self, check: str, what: str) -> None:
        super().__init__(CHECK_ERROR, f"the check {check} {what}")
        self.check = check

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.check, self.detail)


def _again(check: str, detail: str) -> CheckError:
    return CheckError(check, detail.removeprefix(f"the check {check} "))


@dataclass(frozen=True, kw_only=True)
class OwnCheck(Check):
    """A function of the user that takes a Caption and returns whether it has the fault."""

    name: str  # type: ignore[misc]
    path: str
    source: str = ""
    function: Callable[[Caption], Any] = field(compare=False)
    severe: ClassVar = True

    def found(self, caption: Caption) -> bool:
        """Call the function. Raises CheckError, without the function's own message, which may quote the row."""
        try:
            found = self.function(caption)
        except Exception as error:
            raise CheckError(self.name, f"raised {type(error).__name__}") from error
        if found is not True and found is not False and type(found).__name__ not in ("bool", "bool_"):
            raise CheckError(self.name, f"returned {type(found).__name__}, not True or False")
        return bool(found)

    @property
    def settings(self) -> dict[str, Any]:
        return {"path": self.path, "source": self.source}


def is_own(name: str) -> bool:
    """Whether the name of a check is an import path."""
    return ":" in name


def load(path: str) -> OwnCheck:
    """The check at an import path. Raises RecipeError if it cannot be imported or is not a function.

    The version of the check is the function's attribute `version`, or else a hash of its source.
    """
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise RecipeError(f"{path!r} is no check; a check of your own looks like package.module:function.")
    try:
        function = getattr(importlib.import_module(module), name)
    except AttributeError:
        raise RecipeError(f"{path}: the module {module} has no function {name}.") from None
    except Exception as error:  # noqa: BLE001 (anything can happen at a module's import)
        raise RecipeError(
            f"{path}: the module cannot be imported ({type(error).__name__}: {error}); is it on PYTHONPATH?"
        ) from None
    if not callable(function) or inspect.isclass(function) or inspect.iscoroutinefunction(function):
        raise RecipeError(f"{path}: a check must be a plain function that takes a caption and returns True or False.")
    return OwnCheck(name=name, path=path, source=_version(function), function=function)


def _version(function: Callable[[Caption], Any]) -> str:
    version = getattr(function, "version", None)
    if version is not None:
        return str(version)
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # the function is compiled, or was made at run time
        return "unknown"
    return hashlib.sha256(source.encode()).hexdigest()[:16]
