"""`caprl-ray init`: look at the files at some paths and write a commented recipe for them."""

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from caprl_ray.commands.survey import Survey, survey
from caprl_ray.errors import RecipeError
from caprl_ray.recipe.commented import Comments, described, flow, section, whole
from caprl_ray.recipe.load import apply_override, parse
from caprl_ray.recipe.prompts import Prompt

STDOUT = "-"
DEVICES = Path("/dev")
RENAME = ("The output needs these names for itself.",)


def init(paths: Sequence[str], overrides: Sequence[str], out: str, *, force: bool) -> int:
    """Write a recipe for the paths to the file `out`, or to standard output for `-`. Returns the exit code 0.

    Without paths it has every field with its description. Raises RecipeError if the file exists, unless `force`, or
    for an input that no recipe would take.
    """
    if out != STDOUT and Path(out).exists() and not force:
        raise RecipeError(f"--out: {out} exists; give another name, or --force to replace it.")
    if not paths and overrides:
        raise RecipeError(
            "init: name the input before overrides, such as caprl-ray init photos storage.region=us-east-1."
        )
    text = recipe_for(paths, overrides) if paths else whole()
    if out == STDOUT:
        sys.stdout.write(text)
        return 0
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(text, encoding="utf-8")
    print(f"{out}: written; next: caprl-ray plan {shlex.quote(out)}")
    return 0


def recipe_for(paths: Sequence[str], overrides: Sequence[str]) -> str:
    """The text of a recipe for the files at the paths."""
    document: dict[str, Any] = {"input": {"paths": list(paths)}}
    for override in overrides:
        apply_override(document, override)
    found = survey(document)
    parse(found.document)
    recipe = dict(found.document)
    model = recipe.pop("model", {"source": "internlm/CapRL-3B"})
    comments: dict[str, Comments] = {
        "input": {"paths": _sizes(found), "image_column": _chosen(found), "rename": RENAME, "": _others(found)},
        "model": {"source": [described("model", "source")], "": _engines(overrides)},
        "replicas": {"gpus": [described("replicas", "gpus")]},
        "prompt": {"user": [described("prompt", "user")], "": _alt(found)},
        "output": {"path": [described("output", "path")]},
    }
    sections = {
        "input": recipe.pop("input"),
        "model": model,
        "replicas": _replicas(model) | recipe.pop("replicas", {}),
        "prompt": recipe.pop("prompt", {} if "prompts" in recipe else {"user": Prompt().user}),
        **recipe,
    }
    lines = ["# A recipe for caprl-ray. `caprl-ray init` without a path writes one with every field."]
    for name, values in sections.items():
        lines += ["", *section(name, values, comments.get(name, {}))] if values else []
    return "\n".join([*lines, ""])


def _replicas(model: dict[str, Any]) -> dict[str, Any]:
    if "endpoint" in model:
        return {}
    return {"gpus": 0 if model.get("source") == "embedded" else 1}


def _sizes(found: Survey) -> Iterator[str]:
    """The number and size of the files at each path."""
    for number, path in enumerate(found.document["input"]["paths"]):
        for kind, totals in found.found.get(number, {}).items():
            yield f"{path}: {totals.said(kind)}{'' if found.whole else ' so far; the listing was stopped'}"


def _chosen(found: Survey) -> Iterator[str]:
    yield "The column of the images; name[*] makes each image of a list a row."
    if found.others:
        yield "Others may hold the images, too:"
    for name in found.others:
        yield f"#image_column: {flow(name)}"


def _others(found: Survey) -> Iterable[str]:
    """Other columns that might hold the images, instead of the one that is chosen by default."""
    chosen = "image_column" in found.document["input"]
    return () if chosen else (f"#image_column: {flow(name)}" for name in found.others)


def gpus() -> int:
    """The GPUs of this machine."""
    return len(list(DEVICES.glob("nvidia[0-9]*")))


def _engines(overrides: Sequence[str]) -> Iterator[str]:
    if any(override.startswith("model.") for override in overrides):
        return
    found = gpus()
    yield f"This machine has {found or 'no'} GPU{'' if found == 1 else 's'}."
    if not found:
        yield "Run the recipe on a cluster with GPUs, or name a service that speaks OpenAI's protocol:"
        yield '#endpoint: "http://localhost:8000/v1"'
        yield "The embedded model needs no GPU. It describes only its own rendered scenes, for a try:"
        yield "#source: embedded   # with replicas.gpus: 0"


def _alt(found: Survey) -> Iterator[str]:
    if found.alt:
        yield "With the text that an image had before:"
        yield f"#user: {flow(f'The alt text says: {{{found.alt}|nothing}}. {Prompt().user}')}"
