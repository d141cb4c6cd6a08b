"""run.json: the job, the input, every recipe that wrote rows, and accepted differences and failures."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from caprl_ray.errors import RecipeError
from caprl_ray.job import Job
from caprl_ray.models.resolve import HUB_ID
from caprl_ray.output.fingerprint import short
from caprl_ray.output.ledger import Ledger
from caprl_ray.output.numbering import NUMBERING
from caprl_ray.recipe.engine_arguments import recorded
from caprl_ray.recipe.input import Input
from caprl_ray.storage import Storage, join
from caprl_ray.storage.local import is_local, local_path

RUN = "run.json"
PATHS = "input.paths"  # compared like a field of the fingerprint, and adopted like one; --extend adds to it
SHOWN_PATHS = 3
EXTENDING = "extending"  # in `input`: the paths of an extension that is under way
OLDER_JOB = {"name": "caption", "done": "captioned", "noun": "image"}


def read_run(storage: Storage, path: str) -> dict[str, Any] | None:
    """The contents of an output's run.json; None if there is none."""
    name = join(path, RUN)
    try:
        content = json.loads(storage.read(name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict) or "fingerprint" not in content:
        raise RecipeError(f"{name}: is not the run.json of a run; give an empty or a new output.path.")
    return content


def plain(content: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(content, default=str))


def stored_job(run: Mapping[str, Any]) -> dict[str, str]:
    """The job of a run.json: its name, and its words for finished rows and for rows."""
    job = run.get("job")
    if isinstance(job, dict) and {"name", "done"} <= job.keys():
        return {key: str(job.get(key, word)) for key, word in OLDER_JOB.items()}
    return OLDER_JOB  # older outputs name no job


def content(
    job: Job, fingerprint: Mapping[str, Any], before: Mapping[str, Any], adopted: Mapping[str, Any], paths: list[str]
) -> dict[str, Any]:
    """The run.json of an output that this recipe writes from now on, `paths` being those of its whole plan."""
    ours = {"recipe": recorded(job.recipe.model_dump()), **job.record, "fingerprint": dict(fingerprint)}
    name = short(fingerprint)
    runs = dict(before.get("runs", {}))
    runs[name] = {"rows": runs.get(name, {}).get("rows", 0), **ours}
    found: dict[str, Any] = {
        "job": {"name": job.name, "done": job.done, "noun": job.noun},
        "input": {"paths": paths},
        "run": name,
        **ours,
        "runs": runs,
    }
    if adopted or before.get("adopted"):
        # The values of these fields for earlier rows, one object per run.
        found["adopted"] = [*before.get("adopted", ()), *([adopted] if adopted else ())]
    found |= {key: before[key] for key in ("accepted", "rows_of_older_versions") if key in before}
    return plain(found)  # type: ignore[no-any-return]


def counted(run: Mapping[str, Any], ledger: Ledger, *, accepted: bool) -> dict[str, Any]:
    """A run.json with the number of rows of every recipe that wrote some. `accepted`: the output is complete."""
    rows = ledger.counts.runs
    runs = {name: told | {"rows": rows[name]} for name, told in run.get("runs", {}).items()}
    found = {**run, "runs": {name: told for name, told in runs.items() if told["rows"] or name == run.get("run")}}
    older = ledger.finished + ledger.failed - rows.total()
    if older > 0:
        found["rows_of_older_versions"] = older
    if accepted:
        judged = ledger.failed - ledger.asked_for
        found["accepted"] = {"rows": ledger.finished + judged, "failed": judged}
    return found


def accepted(run: Mapping[str, Any] | None) -> tuple[int, int]:
    """The numbers of rows and of failed rows when the output was last complete, without rows that the user asked to
    fail."""
    told = (run or {}).get("accepted") or {}
    return told.get("rows", 0), told.get("failed", 0)


def named_paths(job: Job) -> list[str]:
    """The paths of the recipe's input, as run.json holds them."""
    return [_whole(path) for path in job.recipe.input.paths]


def stored_paths(run: Mapping[str, Any], which: str = "paths") -> list[str]:
    """The paths of the input that a run.json names: those of the plan, or of an extension that is under way."""
    told = run.get("input") or run.get("recipe", {}).get("input") or {}
    return [_whole(path) for path in told.get(which, ())]


def takes_alike(run: Mapping[str, Any], job: Job) -> bool:
    """Whether the recipe of a run.json and this one select the same files of a path."""
    stored = run.get("recipe", {}).get("input", {})
    return all(
        stored.get(name, Input.model_fields[name].default) == getattr(job.recipe.input, name)
        for name in ("kind", "hidden")
    )


def some(paths: list[str]) -> str:
    """Some of the paths, in words."""
    more = len(paths) - SHOWN_PATHS
    return ", ".join(paths[:SHOWN_PATHS]) + (f" and {more:,} more" if more > 0 else "")


def _whole(path: str) -> str:
    return (local_path(path) if is_local(path) else path).rstrip("/") or "/"


def compared(run: Mapping[str, Any] | None, job: Job, ours: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint of a run.json, without outdated fields."""
    stored: dict[str, Any] = run["fingerprint"] if run else {}
    return {field: value for field, value in stored.items() if field in ours or not job.outdated(field)}


def refuse_other_job(path: str, stored: Mapping[str, str], name: str) -> None:
    """Raise RecipeError if the output belongs to another job."""
    if stored["name"] != name:
        raise RecipeError(
            f"output.path: {path} holds the rows of the job {stored['name']}, not of {name}; give a new output.path."
        )


def refuse_other(path: str, stored: dict[str, Any], wanted: dict[str, Any], adopt: Collection[str]) -> None:
    """Raise RecipeError if the output belongs to another recipe. The numbering is compared in numbering.py."""
    differing = [
        f"{field} was {stored.get(field)!r} and is {wanted.get(field)!r}"
        for field in sorted((stored.keys() | wanted.keys()) - {*adopt, NUMBERING})
        if stored.get(field) != wanted.get(field)
    ]
    if differing:
        raise RecipeError(
            f"output.path: {path} belongs to another recipe: {'; '.join(differing)}. "
            f"Give the stored values{_moved(stored, wanted)} to resume it, or a new output.path; "
            "--adopt with the fields' names accepts them as they are now."
        )


def refuse_other_input(path: str, planned: list[str], named: list[str], extending: list[str]) -> None:
    """Raise RecipeError if the recipe names a path that the output's plan does not hold."""
    there = {*planned, *extending}
    new = [name for name in named if planned and name not in there]
    if new:
        raise RecipeError(
            f"{PATHS}: {path} holds the plan of {some(planned)}, and not of {new[0]}; --extend adds it, "
            f"a new output.path captions it apart, and --adopt={PATHS} goes on with the plan as it is."
        )


def _moved(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """How to pin the stored revision, if the model has the same name and another revision now."""
    name, _, was = str(stored.get("model.source")).rpartition("@")
    now = str(wanted.get("model.source"))
    if now == f"{name}@{was}" or not now.startswith(f"{name}@"):
        return ""
    return f" (pin model.revision={was})" if HUB_ID.fullmatch(name) else ""
