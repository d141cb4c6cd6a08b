"""The report of an extension, or of `caprl-ray plan`, about planned sources that have changed."""

from collections.abc import Iterator

from caprl_ray.plan.known import Example, PlannedVersions

MOST_LOOKED_UP = 1000  # paths that were planned and are not listed: gone, or not named by the recipe
# The code of rows whose source is gone. An extension knows of them: they are no sign of a broken system.
GONE = frozenset({"source_missing"})


def changes(known: PlannedVersions) -> Iterator[str]:
    """One sentence each about missing, touched and changed sources."""
    gone, touched, changed = known.removed(MOST_LOOKED_UP), known.touched, known.changed
    if gone.count:
        yield (
            f"{_said(gone, 'is', 'are')} gone: rows that are there stay; the others fail as source_missing, which does "
            "not count for failures.max_fraction with --extend"
        )
    if touched.count:
        yield (
            f"{_said(touched, 'has', 'have')} another time or ETag and the planned size: rows that are there stay; "
            "--accept-touched reads the others"
        )
    if changed.count:
        yield (
            f"{_said(changed, 'has', 'have')} another size: rows that are there stay; "
            "--retry-failed=source_changed reads the others as they are now"
        )


def _said(found: Example, one: str, several: str) -> str:
    least = "at least " if found.count >= MOST_LOOKED_UP else ""
    noun, verb = ("file or shard", one) if found.count == 1 else ("files or shards", several)
    return f"{least}{found.count:,} planned {noun} (such as {found.path}) {verb}"
