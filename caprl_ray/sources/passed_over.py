"""Names that are never input: hidden files, and files that tools keep beside their data."""

from caprl_ray.sources.housekeeping import listed_housekeeping


def reason(name: str, folder: bool) -> str | None:
    """Why a file or folder of this name is passed over; None if it is not."""
    if listed_housekeeping(name):
        return "housekeeping"
    return "hidden" if name.startswith(".") else None


def reason_unless_hidden(name: str, folder: bool) -> str | None:
    """As `reason`, but takes hidden files (input.hidden)."""
    return "housekeeping" if listed_housekeeping(name) else None


def underscored(path: str) -> bool:
    """Whether a name of a path begins with an underscore, as Spark hides files. `_year=2026` is a partition."""
    if "_" not in path:
        return False
    return any(name.startswith("_") and "=" not in name for name in path.split("/"))
