"""A whole export on one page: output -> which rows -> parts -> files -> balance."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caprl_ray.errors import LedgerUnbalanced
from caprl_ray.export.aligned import Aligned
from caprl_ray.export.form import Form
from caprl_ray.export.huggingface import Folder
from caprl_ray.export.lines import DPO, Lines
from caprl_ray.export.pairs import Pairs
from caprl_ray.export.rows import UnitRows
from caprl_ray.export.settings import Settings
from caprl_ray.export.source import Source
from caprl_ray.export.target import Target, Written
from caprl_ray.export.webdataset import Shards
from caprl_ray.export.work import write_parts
from caprl_ray.output.scan import Tell, silent
from caprl_ray.output.where import Condition
from caprl_ray.storage import Storage


def export(storage: Storage, settings: Settings, tell: Tell = silent) -> "Summary":
    """Export the finished rows of an output. The same command continues a stopped export, and adds new rows.

    Raises:
        RecipeError: the options are wrong, or the output or the target is not fit; nothing was written.
        SystemFailure: something cannot be read or written. The same command resumes it.
        MissingRows: sources of rows are gone or changed; all other rows are exported.
    """
    source = Source.open(storage, settings.output)
    form = form_of(source, settings)
    condition = Condition(text=settings.where, schema=source.schema) if settings.where else None
    target = Target.open(storage, settings)
    units = source.units(condition, settings.without, tell)
    parts = list(form.parts(units))
    allow = settings.allow_missing
    written = {
        part.name: target.done[part.name] for part in parts if target.has(part.name, part.same, allow_missing=allow)
    }
    todo = [part for part in parts if part.name not in written]
    if todo:
        target.begin()
    for one in write_parts(form.write, todo, target, tell):
        written[one.part] = one
    form.finish(written)
    summary = Summary.of(settings.target, source, units, written)
    if summary.lost and not allow:  # what an earlier run has written of these rows stays until that is decided
        raise MissingRows(summary.sentence())
    target.sweep(written)
    target.finish(summary.report())
    return summary


def form_of(source: Source, settings: Settings) -> Form:
    """The form that the settings name."""
    if settings.form == DPO:
        return Pairs.of(source, settings.target, settings.shard_rows, settings.margin)
    if settings.to == "jsonl":
        return Lines.of(source, settings.target, settings.form, settings.shard_rows)
    if settings.to == "webdataset":
        return Shards.of(source, settings.target, settings.shard_rows, settings.member, settings.sidecars)
    if settings.to == "hf":
        assert settings.license, "the settings have refused an export without one"
        return Folder.of(source, settings.target, settings.shard_rows, settings.license, images=settings.images)
    return Aligned.of(source, settings.target)


class MissingRows(LedgerUnbalanced):
    """Rows are not exported, because their sources are gone or changed."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The number of rows of the output by their fate."""

    target: str
    exported: int
    left_out: int
    failed: int
    missing: Mapping[str, int]
    files: int
    unfinished: bool

    @classmethod
    def of(cls, target: str, source: Source, units: list[UnitRows], written: Mapping[str, Written]) -> "Summary":
        """Count rows. Selected and written rows are counted independently, so that the sum is a check."""
        missing: Counter[str] = Counter()
        for part in written.values():
            missing.update(part.missing)
        summary = cls(
            target=target,
            exported=sum(part.exported for part in written.values()),
            left_out=sum(unit.finished - len(unit.kept) for unit in units) + sum(p.left_out for p in written.values()),
            failed=sum(unit.failed for unit in units),
            missing=dict(missing),
            files=sum(len(part.objects) for part in written.values()),
            unfinished=not source.plan.complete or any(u.finished + u.failed < max(u.rows, 1) for u in units),
        )
        rows = sum(unit.finished + unit.failed for unit in units)
        if summary.rows != rows:
            raise LedgerUnbalanced(f"{target}: {summary.line()}, but the output has {rows:,} rows; run again.")
        return summary

    @property
    def lost(self) -> int:
        """Rows whose sources are gone or changed."""
        return sum(self.missing.values())

    @property
    def rows(self) -> int:
        """All rows of the output."""
        return self.exported + self.left_out + self.failed + self.lost

    def report(self) -> dict[str, Any]:
        """The counts as plain data."""
        return {
            "rows": self.rows,
            "exported": self.exported,
            "left_out": self.left_out,
            "failed": self.failed,
            "missing": dict(self.missing),
            "files": self.files,
        }

    def line(self) -> str:
        """One line for people, whose numbers add up."""
        codes = ", ".join(f"{code} {count:,}" for code, count in sorted(self.missing.items()))
        missing = f"{self.lost:,} missing" + (f" ({codes})" if codes else "")
        files = f"{self.files:,} file{'' if self.files == 1 else 's'}"
        return (
            f"{self.exported:,} rows exported to {files}, {self.left_out:,} left out, {self.failed:,} failed, "
            f"{missing}: {self.rows:,} rows"
        )

    def sentence(self) -> str:
        """Why the export is not complete, and what to do."""
        return (
            f"{self.target}: {self.line()}; bring the missing sources back and run the same command again, or leave "
            "their rows out with --allow-missing."
        )
