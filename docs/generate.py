"""Pages made from the code (recipe, output, failure codes, commands) or copied from elsewhere in the repository, and
the signatures on written pages.

An mkdocs hook (see mkdocs.yml). Nothing that it makes is stored in the repository.
"""

import argparse
import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

ROOT = Path(__file__).parent.parent
# The place of a signature on a written page. A page that is read as it is shows nothing there.
SIGNATURE = re.compile(r"^<!-- signature: ([\w.]+) -->$", re.MULTILINE)
SIGNATURE_WIDTH = 80  # characters of a code block that a page shows without scrolling

# For checks that do not run by default: when they run.
NOT_STANDARD = {
    "language": ", runs only with `quality.language`",
    "json": ", runs only with a JSON schema in `sampling.structured_outputs`",
    "opener": ", runs only if `quality.checks` names it",
}


def recipe_page() -> str:
    """All sections and fields of the recipe."""
    from caprl_ray.recipe.sections import Recipe

    lines = [
        "# Recipe",
        "",
        "A recipe is a YAML file with these sections. A field that it leaves out has its default. `caprl-ray schema`",
        "prints the same as a JSON schema, and `caprl-ray init` without a path writes a recipe with every field.",
        "",
    ]
    definitions = Recipe.model_json_schema()["$defs"]
    top = {kind for section in Recipe.model_fields.values() for kind in _sections(section.annotation)}
    for name, section in Recipe.model_fields.items():
        kinds = _sections(section.annotation)
        lines += [f"## {name}", "", *(() if kinds else [str(section.description)])]
        for kind in kinds:
            lines += _fields(kind, definitions)
            lines += ["", *(_more_sampling() if name == "sampling" else ())]
            lines += _nested(name, kind, definitions, top)
        lines.append("")
    return "\n".join(lines)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections in the type of a field, such as `Score | None` or `list[QuestionFile]`."""
    kinds = get_args(annotation) or (annotation,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _nested(name: str, kind: type[BaseModel], definitions: dict[str, Any], top: Iterable[type[BaseModel]]) -> list[str]:
    """The tables of the sections within a section, without those that are also sections of the recipe."""
    lines = []
    for field, facts in kind.model_fields.items():
        for inner in _sections(facts.annotation):
            if not issubclass(inner, tuple(top)):
                lines += [f"### {name}.{field}", "", *_fields(inner, definitions), ""]
    return lines


def _fields(kind: type[BaseModel], definitions: dict[str, Any]) -> list[str]:
    """A section's docstring and the table of its fields."""
    properties = definitions[kind.__name__]["properties"]
    lines = [inspect.cleandoc(str(kind.__doc__)), "", "| field | type | default | meaning |", "|---|---|---|---|"]
    for field, facts in kind.model_fields.items():
        default = "required" if facts.is_required() else f"`{json.dumps(_plain(facts.default), default=dict)}`"
        meaning = _cell(facts.description or "")
        lines.append(f"| `{field}` | {_cell(_type(properties[field]))} | {default} | {meaning} |")
    return lines


def scoring_page() -> str:
    """The recipe's section, the columns and the codes of scoring."""
    from caprl_ray.answer.columns import ADVICE, CODES, SCORE
    from caprl_ray.recipe.score import QuestionFile, Score
    from caprl_ray.recipe.score_recipe import ScoreRecipe

    definitions = ScoreRecipe.model_json_schema()["$defs"]
    lines = ["# Scoring", "", "[Scoring captions](../score.md) says how it works.", "", "## score", ""]
    lines += [*_fields(Score, definitions), "", "### score.questions", "", *_fields(QuestionFile, definitions), ""]
    lines += ["## Columns", "", "In addition to the columns of every output and of the captions:", "", *_columns(SCORE)]
    lines += ["## Failure codes", "", "In addition to the codes of reading and of engines:", "", *_own(CODES, ADVICE)]
    return "\n".join([*lines, ""])


def curating_page() -> str:
    """The recipe's section, the columns, the reasons and the code of curation."""
    from caprl_ray.curate.columns import ADVICE, CODES, CURATED, REASONS
    from caprl_ray.recipe.curate import Curate, CurateRecipe

    definitions = CurateRecipe.model_json_schema()["$defs"]
    lines = [
        "# Curating",
        "",
        "[Questions about your own images](../curate.md) says how it works.",
        "",
        "## curate",
        "",
    ]
    lines += [*_fields(Curate, definitions), ""]
    lines += ["## Columns", "", "In addition to the columns of every output and of the source:", "", *_columns(CURATED)]
    lines += ["## Why a question is not kept", "", "| reason | meaning |", "|---|---|"]
    lines += [f"| `{reason}` | {_cell(meaning)} |" for reason, meaning in REASONS.items()]
    lines += [
        "",
        "## Failure codes",
        "",
        "In addition to the codes of reading, of images and of engines:",
        "",
        *_own(CODES, ADVICE),
    ]
    return "\n".join([*lines, ""])


def _own(codes: Mapping[str, str], advice: Mapping[str, Any]) -> list[str]:
    """The table of a job's own codes."""
    lines = ["| code | meaning | usual causes | what to do |", "|---|---|---|---|"]
    return lines + [
        f"| `{code}` | {codes[code]} | {_cell(told.causes)} | {_cell(told.remedy)} |" for code, told in advice.items()
    ]


def _more_sampling() -> list[str]:
    """The sampling fields of vLLM that a recipe may have too."""
    from caprl_ray.recipe.sampling_fields import FIELDS, REFUSED

    given, refused = (", ".join(f"`{field}`" for field in fields) for fields in (FIELDS, REFUSED))
    return [f"Also allowed, with vLLM's meaning and defaults: {given}. Others are refused, such as {refused}.", ""]


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
    signs = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    limits = [f"{sign} {_number(schema[key])}" for key, sign in signs if key in schema]
    return " ".join(filter(None, [str(schema.get("type", "any")), " and ".join(limits)]))


def _number(value: float) -> str:
    return f"{value:,.15g}"


def output_page() -> str:
    """The folder and the columns of an output."""
    from caprl_ray.caption.columns import AGAIN, CAPTION, CAPTIONS, FIRST_SCORE, SCORES
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
            "OUT/lease.json            the run that is writing, or the last run that wrote",
            "OUT/parts/*.json          leases and statuses of the parts, if several drivers write (--part K/N)",
            "OUT/fence/*.json          after a run was lost: the list of earlier objects that count",
            "OUT/status.json           progress of the current or last run (caprl-ray status), and its history",
            "OUT/summary.json          counters of the whole output: rows, flags, repairs, tokens, lengths",
            "OUT/evaluation.json       results of caprl-ray evaluate; its intermediate results are in OUT/evaluations",
            "OUT/report/index.html     the page of caprl-ray report",
            "OUT/_SUCCESS              written when every planned image has exactly one row",
            "```",
            "",
            "The parquet schema has these descriptions of the columns, too. The source's own columns follow, under",
            "their own names.",
            "",
            "## Columns of data",
            "",
            *_columns((*IDENTITY, *CAPTION, AGAIN, RUN)),
            "With several captions per image (`prompts`, or `sampling.n` above 1), there is also:",
            "",
            *_columns([CAPTIONS]),
            "With the section `score`, there are also these columns (`first_score` only with several captions):",
            "",
            *_columns([*SCORES, FIRST_SCORE]),
            "## Columns of failed",
            "",
            *_columns((*IDENTITY, *FAILURE, ATTEMPTS, RUN)),
        ]
    )


def _columns(fields: Iterable[Any]) -> list[str]:
    rows = [f"| `{f.name}` | {f.type} | {_cell(f.metadata[b'description'].decode())} |" for f in fields]
    return ["| column | type | meaning |", "|---|---|---|", *rows, ""]


def codes_page() -> str:
    """Every failure code, what it means, its usual causes and what to do."""
    from caprl_ray.explain import CODE, explanations

    head = [
        "# Failure codes",
        "",
        "A row in `failed/` has one of these codes. `caprl-ray explain CODE` prints the same texts.",
        "",
    ]
    lines = [*head, "| code | meaning | usual causes | what to do |", "|---|---|---|---|"]
    found = (e for e in explanations() if e.kind == CODE)
    lines += [f"| `{e.name}` | {_cell(e.meaning)} | {_cell(e.causes)} | {_cell(e.remedy)} |" for e in found]
    return "\n".join([*lines, ""])


def checks_page() -> str:
    """Every check on captions: what it finds, what it spares, and its thresholds."""
    from caprl_ray.explain import FLAG, explanations
    from caprl_ray.quality.registry import CHECKS

    lines = ["# Checks", "", "Ordered by severity. [Checks on captions](../quality.md) explains their use.", ""]
    for name, check in CHECKS.items():
        kind = "severe" if check.severe else "mild"
        use = "" if check.standard else NOT_STANDARD.get(name, ", not a standard check")
        lines += [f"## {name}", "", f"{_cell(str(check.__doc__))} ({kind}, version {check.version}{use})", ""]
        for word, text in (("Not flagged", check.spares), ("Usual causes", check.causes), ("What to do", check.remedy)):
            lines += [f"**{word}:** {_cell(text)}", ""]
        if check.thresholds():
            lines += ["| threshold | default | range | meaning | source |", "|---|---|---|---|---|"]
        for key, t in check.thresholds().items():
            span = f"{_number(t.least)} to {_number(t.most)}"
            cells = (f"`{name}.{key}`", _number(t.default), span, t.meaning, t.source)
            lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
        lines.append("")
    lines += ["## Other flags", "", "| flag | meaning | usual causes | what to do |", "|---|---|---|---|"]
    other = (e for e in explanations() if e.kind == FLAG and e.name not in CHECKS)
    lines += [f"| `{e.name}` | {_cell(e.meaning)} | {_cell(e.causes)} | {_cell(e.remedy)} |" for e in other]
    return "\n".join([*lines, ""])


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

    lines = [
        "# What is left out",
        "",
        "`caprl-ray plan --json` counts the files that are not captioned, by reason. `caprl-ray verify --json` also",
        "counts members of shards, which are known only after a shard was read.",
        "",
        "| reason | what is counted |",
        "|---|---|",
    ]
    return "\n".join([*lines, *(f"| `{reason}` | {_cell(many)} |" for reason, (_, many) in REASONS.items()), ""])


def described(name: str) -> str:
    """The signature of a function or class, by its import path, and its docstring as Markdown."""
    module, _, own = name.rpartition(".")
    thing = getattr(importlib.import_module(module), own)
    if inspect.isclass(thing):
        head = f"class {own}{inspect.signature(thing)}".removesuffix(" -> None")
    else:
        head = inspect.getsource(thing).partition('    """')[0].rstrip().removesuffix(":")
    lines = (textwrap.fill(line, SIGNATURE_WIDTH, subsequent_indent=" " * 8) for line in head.splitlines())
    text = re.sub(r"^    (\w+): ", r"- `\1`: ", inspect.getdoc(thing) or "", flags=re.MULTILINE)
    text = re.sub(r"^(Args|Attributes|Raises):$", r"**\1:**\n", text, flags=re.MULTILINE)
    text = re.sub(r"^(Returns|Raises)(?=:? )", r"**\1**", text, flags=re.MULTILINE)
    return "\n".join(["```python", *lines, "```", "", text])


PAGES = {
    "reference/recipe.md": recipe_page,
    "reference/output.md": output_page,
    "reference/checks.md": checks_page,
    "reference/scoring.md": scoring_page,
    "reference/curating.md": curating_page,
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


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the signatures of a written page (an mkdocs event)."""
    return SIGNATURE.sub(lambda place: described(place[1]), markdown)
