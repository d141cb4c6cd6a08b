"""The dataset card of an exported dataset folder: what is in it, and how it was made."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import yaml

from caprl_ray.export.source import Source
from caprl_ray.text import plain
from caprl_ray.version import __version__

# Sections of the recipe that say how captions were made. Others hold paths and addresses.
TOLD = ("prompt", "prompts", "prepare", "sampling", "quality")
SIZES = {
    10**3: "n<1K",
    10**4: "1K<n<10K",
    10**5: "10K<n<100K",
    10**6: "100K<n<1M",
    10**7: "1M<n<10M",
    10**8: "10M<n<100M",
    10**9: "100M<n<1B",
}
ORDER = ("train", "validation", "test")


def card(source: Source, schema: pa.Schema, license: str, tallies: Mapping[str, int]) -> str:
    """The card as Markdown with a YAML header. `tallies` are sums over the rows (huggingface.py)."""
    splits = {name: tallies[f"split {name}"] for name in ORDER if tallies.get(f"split {name}")}
    rows = sum(splits.values())
    header = {
        "license": license,
        "task_categories": ["image-to-text"],
        "size_categories": [next((name for limit, name in SIZES.items() if rows < limit), "n>1B")],
        "tags": ["image", "captions", "synthetic"],
        "configs": [{"config_name": "default", "data_files": [_files(name) for name in splits]}],
    }
    lines = [
        *("---", yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip(), "---", ""),
        *("# Image captions", "", f"{rows:,} captions, written by caprl_ray {__version__}.", ""),
        *("| split | rows |", "|---|---|", *(f"| {name} | {count:,} |" for name, count in splits.items()), ""),
        *("## Columns", "", "| column | type | meaning |", "|---|---|---|", *map(_column, schema), ""),
        *("## How the captions were made", "", *_models(tallies), "", *_recipe(source), ""),
        *("## Statistics", "", *_statistics(tallies, rows), ""),
    ]
    return "\n".join(lines)


def _files(split: str) -> dict[str, str]:
    return {"split": split, "path": f"data/{split}-*.parquet"}


def _column(field: pa.Field) -> str:
    said = (field.metadata or {}).get(b"description", b"").decode("utf-8", "replace")
    said = said or ("The image as it is stored." if field.name == "image" else "")
    return f"| `{_cell(field.name)}` | {_cell(str(field.type))} | {_cell(said)} |"


def _cell(text: str) -> str:
    return plain(text).replace("\n", " ").replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _models(tallies: Mapping[str, int]) -> Iterator[str]:
    for name, count in sorted(tallies.items()):
        if name.startswith("model "):
            yield f"- model `{_cell(name.removeprefix('model '))}`: {count:,} captions"


def _recipe(source: Source) -> Iterator[str]:
    """The recipe that wrote the newest rows, indented, so that no text in it ends the block."""
    told: dict[str, Any] = {name: source.recipe[name] for name in TOLD if source.recipe.get(name)}
    yield from (f"    {line}" for line in yaml.safe_dump(told, sort_keys=False, allow_unicode=True).splitlines())
    others = len(source.run.get("runs") or {}) - 1
    if others > 0:
        yield from (
            "",
            f"Earlier rows may come from {others} other recipe{'s' if others > 1 else ''} of the same output.",
        )


def _statistics(tallies: Mapping[str, int], rows: int) -> Iterator[str]:
    if not rows:
        yield "No rows."
        return
    yield "| measure | value |"
    yield "|---|---|"
    yield f"| tokens of a caption, mean | {tallies.get('tokens', 0) / rows:.1f} |"
    yield f"| characters of a caption, mean | {tallies.get('characters', 0) / rows:.1f} |"
    yield f"| captions with a flag | {tallies.get('flagged', 0):,} |"
