"""The sums of a whole scoring output, written to scores.json at the end of every run."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq

from caprl_ray.answer.columns import NO_CAPTION
from caprl_ray.answer.scorer import prompt_name
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA, FAILED
from caprl_ray.output.record import plain, read_run, stored_job
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.rows.codes import NO_QUESTIONS
from caprl_ray.score.questions import Questions
from caprl_ray.score.summary import summary
from caprl_ray.score.tally import Tally
from caprl_ray.storage import Storage, join

SCORES = "scores.json"
SCHEMA = 1
ROWS_AT_ONCE = 256
LARGE = (".question", ".raw", ".options.list.element", ".logprobs.list.element")  # of an answer; no sum needs them
LISTED = 1000  # images without captions, by their keys
# Fields for the place of the captions, or for repeated questions: outputs that differ in them are comparable.
CAPTIONS_ONLY = ("score.caption", "score.column", "score.blind", "score.twice")
SAME_KIND = "CapRL's reward asks in the same way, so a captioner that was trained by it is expected to score well here."


def summed(storage: Storage, path: str, recipe: ScoreRecipe, questions: Questions) -> dict[str, Any]:
    """The sums of an output's rows, with the prompt that they belong to. Raises SystemFailure if storage fails."""
    tally, seen, answerers = Tally(), set(), set()
    for row in _rows(storage, path, DATA, ["answers", "image_questions", "answerer"]):
        tally.add(row["image_questions"], row["answers"])
        seen.add(row["image_questions"])
        answerers.add(row["answerer"])
    failed: dict[str, int] = {}
    for row in _rows(storage, path, FAILED, ["code"]):
        failed[row["code"]] = failed.get(row["code"], 0) + 1
    without = [image for image in questions.images() if image not in seen]
    return {
        "schema": SCHEMA,
        "mode": recipe.score.mode,
        "prompt": prompt_name(recipe.score),
        "answerers": sorted(answerers),
        "questions": questions.name,
        "note": SAME_KIND,
        "captions": [_captioner(storage, path) for path in recipe.input.paths],
        **summary(tally),
        "captions_without_questions": failed.get(NO_QUESTIONS, 0),
        "rows_without_caption": failed.get(NO_CAPTION, 0),
        "failed": failed,
        "images_without_scores": {"count": len(without), "first": without[:LISTED]},
    }


def _captioner(storage: Storage, path: str) -> dict[str, Any]:
    """The model and the prompt of an output's captions, as far as it says so."""
    run = read_run(storage, path) or {}
    recipe = run.get("recipe") or {}
    return {"path": path, "model": run.get("model"), "prompt": recipe.get("prompts") or recipe.get("prompt")}


def asked(storage: Storage, path: str) -> Mapping[str, Any]:
    """The stored fingerprint of a scoring run. Raises RecipeError for what is not the output of one."""
    try:
        run = read_run(storage, path)
    except OSError as error:
        raise SystemFailure(f"--against: {path} cannot be read ({error.strerror}).") from None
    if run is None:
        raise RecipeError(f"--against: {path} is not the output of a scoring run: it has no run.json.")
    if (name := stored_job(run)["name"]) != "score":
        raise RecipeError(f"--against: {path} is not the output of a scoring run: it holds the rows of the job {name}.")
    fields: Mapping[str, Any] = run.get("fingerprint") or {}
    return fields


def refuse_asked_otherwise(path: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise RecipeError if the other output's scores come from another reader, prompt, mode or other questions, because
    then scores differ even for equal captions. Fields that an older version did not store are not compared."""
    wanted = {name: value for name, value in plain(dict(ours)).items() if name.startswith(("score.", "model."))}
    unlike = [
        name
        for name in sorted(wanted)
        if name not in CAPTIONS_ONLY and theirs.get(name, ...) not in (..., wanted[name])
    ]
    if unlike:
        raise RecipeError(
            f"--against: {path} was scored with another {', '.join(unlike)}; only scores of the same reader and the "
            "same questions, asked in the same way, can be compared."
        )


def write(storage: Storage, path: str, found: dict[str, Any]) -> None:
    """Store the sums beside the rows."""
    name = join(path, SCORES)
    try:
        storage.put(name, json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise SystemFailure(f"output.path: {name} cannot be written ({error.strerror}).") from None


def tallied(storage: Storage, path: str) -> Tally:
    """The answers of an output, to compare it with another one."""
    tally = Tally()
    for row in _rows(storage, path, DATA, ["answers", "image_questions"]):
        tally.add(row["image_questions"], row["answers"])
    return tally


def _rows(storage: Storage, path: str, folder: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    try:
        for stored in committed_objects(storage, path, (folder,))[folder]:
            with storage.open(stored) as stream:
                file = pq.ParquetFile(stream)
                leaves = [file.schema.column(number).path for number in range(len(file.schema))]
                wanted = [leaf for leaf in leaves if leaf.partition(".")[0] in columns and not leaf.endswith(LARGE)]
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=wanted):
                    yield from batch.to_pylist()
    except OSError as error:
        raise SystemFailure(f"{path}: cannot be read ({error.strerror}).") from None
