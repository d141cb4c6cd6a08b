"""The check for captions that should be JSON of a given schema."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from caprl_ray.errors import RecipeError
from caprl_ray.quality.caption import Caption
from caprl_ray.quality.check import Check


@dataclass(frozen=True, kw_only=True)
class Json(Check):
    """The caption is not JSON, or not as the schema wants it."""

    name: ClassVar = "json"
    severe: ClassVar = True
    standard: ClassVar = False
    spares: ClassVar = "White space around it, and any order of the fields. A markdown fence around it is a fault."

    wanted: Mapping[str, Any] = field(hash=False)

    def __post_init__(self) -> None:
        self._validator  # noqa: B018 (a schema that is wrong is refused here)

    def found(self, caption: Caption) -> bool:
        try:
            document = json.loads(caption.text, parse_constant=_refuse)
            return not self._validator.is_valid(document)
        except (ValueError, RecursionError):
            return True

    @cached_property
    def _validator(self) -> Any:
        """The schema, compiled. Raises RecipeError for one that is wrong. It fetches nothing that a schema refers to."""
        import jsonschema
        from referencing import Registry
        from referencing.exceptions import Unresolvable

        schema = json.loads(json.dumps(self.wanted))
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        validator = kind(schema, registry=Registry())
        try:
            kind.check_schema(schema)
            validator.is_valid(None)
        except jsonschema.SchemaError as error:
            raise RecipeError(f"json: the schema is not valid: {error.message}.") from None
        except Unresolvable as error:
            raise RecipeError(f"json: the schema refers to {error.ref}, which is not in it.") from None
        return validator


def _refuse(constant: str) -> None:
    """NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(constant)
