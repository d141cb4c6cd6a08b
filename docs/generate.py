"""Pages made from the code (recipe, output, failure codes, commands) or copied from elsewhere in the repository.

An mkdocs hook (see mkdocs.yml). Nothing that it makes is stored in the repository.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

ROOT = Path(__file__).parent.parent

# What a user does about a failed row.
REMEDIES = {
    "source_missing": "Put the file back and use `--retry-failed`, or leave the row failed.",
    "source_changed": "Use `--retry-failed=source_changed`: a file is captioned as it is now, a shard if its finished "
    "rows are still in it. See [resume and failures](../resume.md).",
    "source_unreadable": "Give read permission, or repair the file, and use `--retry-failed`.",
    "source_refused": "Add the folder that the detail names to `input.image_roots` and use `--retry-failed`. Download "
    "images from the web first.",
    "truncated_unit": "Replace the shard or file by a whole one and use `--retry-failed=truncated_unit`.",
    "unit_format": "Download the shard or file again, or fetch it from Git LFS, into the input of the next dataset.",
    "empty_unit": "Nothing, or remove the shard from the input of the next dataset.",
    "read_crash": "Write the shard or file again, and caption it into a new output; report it to Arrow's authors.",
    "no_image": "Nothing if the sample has text only. Pack a sample's members together; set `input.image_key` to "
    "a member that the samples have.",
    "ambiguous_image": "Set `input.image_key`, and caption into a new output.",
    "duplicate_member": "Repack the shard.",
    "metadata_too_large": "Raise `input.max_metadata_bytes`, or set `input.long_metadata` to `drop`. Repack a shard "
    "whose samples have that many members.",
    "metadata_invalid": "Repair the value at its source.",
    "placeholder": "Nothing; or take its SHA-256 out of the list and use `--retry-failed=placeholder`.",
    "image_empty": "Download the image again.",
    "image_too_large": "Raise `prepare.max_bytes` and use `--retry-failed`.",
    "image_too_many_pixels": "Reduce the image; the limit is Pillow's own.",
    "image_format": "Convert the file, or download it again. HEIC and JPEG XL need `pip install 'caprl_ray[formats]'`.",
    "image_mode": "Convert the image to RGB.",
    "image_truncated": "Download the image again.",
    "image_corrupt": "Download the image again.",
    "image_aspect": "Crop the image: its sides differ more than the model's processor accepts.",
    "decode_crash": "Leave it failed; the file crashes its decoder.",
    "decode_timeout": "Raise `prepare.timeout_s`, or leave it failed.",
    "prompt_column": "Use a column that every row has, or fill the gaps.",
    "prompt_too_long": "Shorten the prompt, lower `prepare.max_pixels`, or raise `model.engine.max_model_len`.",
    "engine_rejected": "See the detail; `preflight --debug` shows the engine's log.",
    "engine_error": "See the service's log; use `--retry-failed` when its fault is mended.",
    "engine_timeout": "Raise `model.timeout_s`, or lower `sampling.max_tokens`, and use `--retry-failed`.",
    "engine_crash": "Leave it failed; report the image to the engine's authors.",
    "caption_empty": "Use `--retry-failed` with other sampling and `--adopt`.",
    "quality": "See the detail; use `--retry-failed` with another `quality` section and `--adopt`.",
    "check_error": "Mend the check, and use `--retry-failed=check_error` with `--adopt`.",
}

# What a user does about a failed row of a scoring run, beside those.
SCORING_REMEDIES = {
    "no_questions": "Nothing, or add questions about the image and use `--retry-failed=no_questions`.",
    "no_key": "Fill the column that joins captions and questions, or leave the row failed.",
    "no_caption": "Nothing: there is nothing to score.",
    "answer_unclear": "See `raw` in the rows of other answers; take another reader, or `score.mode=deterministic`.",
    "answer_unjudged": "Leave it failed; the answer is no answer of that kind.",
}

# When a check runs that is no standard one.
NOT_STANDARD = {
    "language": ", runs if a language is given",
    "json": ", runs if a schema is given",
    "opener": ", runs if it is named",
}


def recipe_page() -> str:
    """All sections and fields of the recipe."""
    from caprl_ray.recipe.sections import Recipe

    lines = ["# Recipe", "", "`caprl-ray schema` prints the same as a JSON schema.", ""]
    definitions = Recipe.model_json_schema()["$defs"]
    for name, section in Recipe.model_fields.items():
        kind = section.annotation
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            lines += [f"## {name}", "", str(section.description), ""]
            continue
        lines += [f"## {name}", "", *_fields(kind, definitions)]
        lines += ["", *(_more_sampling() if name == "sampling" else ())]
    return "\n".join(lines)


def _fields(kind: type[BaseModel], definitions: dict[str, Any]) -> list[str]:
    """A section's summary and the table of its fields."""
    properties = definitions[kind.__name__]["properties"]
    lines = [str(kind.__doc__).partition("\n")[0], "", "| field | type | default | meaning |", "|---|---|---|---|"]
    for field, facts in kind.model_fields.items():
        default = "required" if facts.is_required() else f"`{json.dumps(_plain(facts.default), default=dict)}`"
        meaning = _cell(facts.description or "")
        lines.append(f"| `{field}` | {_cell(_type(properties[field]))} | {default} | {meaning} |")
    return lines


def scoring_page() -> str:
    """The recipe's section, the columns and the codes of scoring."""
    from caprl_ray.answer.columns import CODES, SCORE
    from caprl_ray.recipe.score import QuestionFile, Score, ScoreRecipe

    definitions = ScoreRecipe.model_json_schema()["$defs"]
    lines = ["# Scoring", "", "[Scoring captions](../score.md) says how it works.", "", "## score", ""]
    lines += [*_fields(Score, definitions), "", "### score.questions", "", *_fields(QuestionFile, definitions), ""]
    lines += ["## Columns", "", "Beside those of every output and the captions' own:", "", *_columns(SCORE)]
    lines += ["## Failure codes", "", "Beside those of reading and of engines:", ""]
    lines += ["| code | meaning | what to do |", "|---|---|---|"]
    return "\n".join(
        [*lines, *(f"| `{code}` | {CODES[code]} | {told} |" for code, told in SCORING_REMEDIES.items()), ""]
    )


def _more_sampling() -> list[str]:
    """The sampling fields that have no default here."""
    from caprl_ray.recipe.sampling_fields import FIELDS, REFUSED

    given, refused = (", ".join(f"`{field}`" for field in fields) for fields in (FIELDS, REFUSED))
    return [f"More fields, with vLLM's meaning: {given}. Others are refused, such as {refused}.", ""]


def _plain(default: Any) -> Any:
    return default.model_dump() if isinstance(default, BaseModel) else default


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema's type and limits in a few words."""
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "$ref" in schema:
        return "section"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return "mapping"
    limits = [
        f"{sign} {schema[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
        if key in schema
    ]
    return " ".join([str(schema.get("type", "any")), *limits])


def output_page() -> str:
    """The folder and the columns of an output."""
    from caprl_ray.caption.columns import CAPTION, CAPTIONS
    from caprl_ray.rows.schema import ATTEMPTS, FAILURE, IDENTITY, RUN

    return "\n".join(
        [
            "# Output",
            "",
            "```text",
            "OUT/run.json              job, recipe, model with its commit, fingerprint",
            "OUT/plan/*.parquet        work units",
            "OUT/data/*.parquet        captioned rows (zstd)",
            "OUT/failed/*.parquet      failed rows with stage, code and detail",
            "OUT/lease.json            the run that writes, or the last one that wrote",
            "OUT/fence/*.json          after a run was lost: which objects of earlier runs count",
            "OUT/summary.json          counters of the whole output: rows, flags, repairs, tokens, lengths",
            "OUT/_SUCCESS              written when every planned image is there once",
            "```",
            "",
            "The parquet schema describes every column. The source's own columns follow under their own names.",
            "",
            "## Columns of data",
            "",
            *_columns((*IDENTITY, *CAPTION, RUN)),
            "With several captions an image (`prompts`, or `sampling.n` above 1) also:",
            "",
            *_columns([CAPTIONS]),
            "## Columns of failed",
            "",
            *_columns((*IDENTITY, *FAILURE, ATTEMPTS, RUN)),
        ]
    )


def _columns(fields: Iterable[Any]) -> list[str]:
    rows = [f"| `{f.name}` | {f.type} | {_cell(f.metadata[b'description'].decode())} |" for f in fields]
    return ["| column | type | meaning |", "|---|---|---|", *rows, ""]


def codes_page() -> str:
    """Every failure code, what it means and what to do."""
    from caprl_ray.caption.columns import CODES

    rows = [f"| `{code}` | {_cell(meaning)} | {REMEDIES[code]} |" for code, meaning in CODES.items()]
    head = ["# Failure codes", "", "A row in `failed/` has one of these codes.", ""]
    return "\n".join([*head, "| code | meaning | what to do |", "|---|---|---|", *rows, ""])


def checks_page() -> str:
    """Every check on captions: what it finds, what it spares, and its thresholds."""
    from caprl_ray.quality.registry import CHECKS

    lines = ["# Checks", "", "The worst fault first. [Quality](../quality.md) says how they are used.", ""]
    for name, check in CHECKS.items():
        kind = "severe" if check.severe else "mild"
        use = "" if check.standard else NOT_STANDARD.get(name, ", not a standard check")
        lines += [f"## {name}", "", f"{_cell(str(check.__doc__))} ({kind}, version {check.version}{use})", ""]
        lines += [f"**Not flagged:** {_cell(check.spares)}", ""]
        if check.thresholds():
            lines += ["| threshold | default | range | meaning | source |", "|---|---|---|---|---|"]
        for key, t in check.thresholds().items():
            cells = (f"`{name}.{key}`", f"{t.default:g}", f"{t.least:g} to {t.most:g}", t.meaning, t.source)
            lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def commands_page() -> str:
    """The help of every command."""
    from caprl_ray.cli import parser

    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    lines = ["# Commands", ""]
    for name, command in commands.choices.items():
        lines += [f"## caprl-ray {name}", "", "```text", command.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def copied(path: str) -> str:
    """A page of the repository; its links to the repository's files become plain text."""
    return (ROOT / path).read_text(encoding="utf-8")


def left_out_page() -> str:
    """Every reason for which something of the input is not captioned."""
    from caprl_ray.plan.left_out import REASONS

    lines = ["# What is left out", "", "The reasons in `caprl-ray plan --json`, and what each counts.", ""]
    lines += ["| reason | what is counted |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{reason}` | {_cell(many)} |" for reason, (_, many) in REASONS.items()), ""])


PAGES = {
    "reference/recipe.md": recipe_page,
    "reference/output.md": output_page,
    "reference/checks.md": checks_page,
    "reference/scoring.md": scoring_page,
    "reference/failure-codes.md": codes_page,
    "reference/left-out.md": left_out_page,
    "reference/commands.md": commands_page,
    "security.md": lambda: copied("SECURITY.md"),
    "benchmarks.md": lambda: copied("benchmarks/results.md"),
}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages (an mkdocs event)."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files
