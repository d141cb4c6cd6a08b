"""The checks of a recipe, and its action for each flag."""

import json
from typing import Any

from caprl_ray.errors import RecipeError
from caprl_ray.quality.checks import Checks, Settings
from caprl_ray.quality.own import is_own
from caprl_ray.quality.registry import CHECKS
from caprl_ray.recipe.quality import Action, Quality
from caprl_ray.recipe.sampling import Sampling

# Faults that another decoding often repairs. The other flags only mark a caption.
RETRIED = frozenset({"loop", "truncated", "refusal", "garbage", "empty", "json"})


class Rules:
    """The checks of a recipe and their actions. Raises RecipeError if the recipe names an unknown check."""

    def __init__(self, quality: Quality, sampling: Sampling) -> None:
        given = quality.checks
        structured = getattr(sampling, "structured_outputs", None) or {}
        standard = [name for name, check in CHECKS.items() if check.standard and given.get(name) != "off"]
        named = [name for name, action in given.items() if action != "off"]
        settings = Settings(
            checks=list(dict.fromkeys([*standard, *named])),
            thresholds=quality.thresholds,
            language=None if given.get("language") == "off" else quality.language,
            json_schema=None if given.get("json") == "off" else _schema(structured.get("json")),
        )
        try:
            self.checks = Checks.of(settings)
        except RecipeError as error:
            raise RecipeError(f"quality: {error}") from None
        unknown = sorted(quality.limits.keys() - set(self.checks.names))
        if unknown and "limits" in quality.model_fields_set:
            running = ", ".join(self.checks.names)
            raise RecipeError(f"quality.limits.{unknown[0]}: no check of this name runs; those that do are {running}.")
        self._actions: dict[str, Action] = dict.fromkeys(RETRIED, "retry")
        self._actions |= {name.rpartition(":")[2] if is_own(name) else name: action for name, action in given.items()}

    def action(self, flag: str) -> Action:
        """The action for a caption with this flag."""
        return self._actions.get(flag, "keep")

    def versions(self) -> dict[str, Any]:
        """Versions and thresholds of the checks, as plain data."""
        return self.checks.versions()


def _schema(schema: Any) -> Any:
    """A JSON schema as plain data; a recipe may hold it as text, as vLLM takes it."""
    try:
        return json.loads(schema) if isinstance(schema, str) else schema
    except ValueError:
        raise RecipeError("sampling.structured_outputs.json: the schema is not valid JSON.") from None
