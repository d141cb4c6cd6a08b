"""The fingerprint: what must not change between the runs of one dataset."""

import json
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from caprl_ray.job import Job
from caprl_ray.output import numbering
from caprl_ray.recipe.engine_arguments import CHANGES_CAPTIONS, ENGINE, changing_captions
from caprl_ray.recipe.model import Model


def fingerprint(job: Job) -> dict[str, Any]:
    """The fields of every job and those of this job, as field -> value."""
    settings = job.recipe.input
    # None if they are left out, as in outputs that are older than these fields.
    fields: dict[str, Any] = {
        "input.image_column": settings.image_column,
        "input.image_key": settings.image_key,
        "input.rename": settings.rename or None,
    }
    fields[numbering.NUMBERING] = numbering.NOW
    columns = settings.columns.model_dump(exclude_defaults=True)
    fields |= {"input.columns": columns} if columns else {}
    return fields | {"version.caprl_ray": installed("caprl_ray")} | dict(job.fingerprint)


def installed(package: str) -> str | None:
    """The version of an installed package, or of its build for CPUs."""
    for name in (package, f"{package}-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def engine_fields(model: Model, section: str = "model") -> dict[str, Any]:
    """The fields of a model's engine arguments, as far as they change what it writes. `section` is the model's."""
    sections = {f"{section}.engine": model.engine} | {
        f"{section}.engine_by_accelerator.{name}": given for name, given in model.engine_by_accelerator.items()
    }
    return {
        f"{section}.{name}": value
        for section, given in sections.items()
        for name, value in changing_captions(given).items()
    }


def outdated(field: str) -> bool:
    """Whether a field that an older version stored is ignored now: an engine argument that changes no caption."""
    section, _, name = field.rpartition(".")
    return bool(ENGINE.match(section)) and name not in CHANGES_CAPTIONS


def short(fields: Mapping[str, Any]) -> str:
    """A short hash of a fingerprint, which names a recipe in the column `run`."""
    return sha256(json.dumps(fields, default=str, sort_keys=True).encode()).hexdigest()[:12]
