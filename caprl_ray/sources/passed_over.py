"""The names that nobody means as input: hidden files, and what tools keep beside their data."""

from fnmatch import fnmatchcase

# Files and folders of file systems, cloud tools and table formats: never images, though some look like them.
HOUSEKEEPING = (
    "._*",
    ".AppleDouble",
    ".DS_Store",
    ".DocumentRevisions-V100",
    ".Spotlight-V100",
    ".TemporaryItems",
    ".Trash*",
    ".fseventsd",
    ".ipynb_checkpoints",
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "_SUCCESS",
    "_committed_*",
    "_started_*",
    "_temporary",
    "_spark_metadata",
    "_delta_log",
    "_metadata",
    "_common_metadata",
    "__pycache__",
    ".*.crc",
)
_NAMES = frozenset(name for name in HOUSEKEEPING if "*" not in name)
_PATTERNS = tuple(name for name in HOUSEKEEPING if "*" in name)
_FIRST = frozenset(name[0] for name in HOUSEKEEPING)


def housekeeping(name: str) -> bool:
    """Whether a file or folder of this name is a tool's housekeeping."""
    if name[:1] not in _FIRST:
        return False
    return name in _NAMES or any(fnmatchcase(name, pattern) for pattern in _PATTERNS)


def reason(name: str, folder: bool) -> str | None:
    """Why a file or folder of this name is passed over; None if it is not."""
    if housekeeping(name):
        return "housekeeping"
    return "hidden" if name.startswith(".") else None


def reason_unless_hidden(name: str, folder: bool) -> str | None:
    """As `reason`, with input.hidden: hidden files are taken."""
    return "housekeeping" if housekeeping(name) else None


def underscored(path: str) -> bool:
    """Whether a name of a path begins with an underscore, as Spark hides files. `_year=2026` is a partition."""
    if "_" not in path:
        return False
    return any(name.startswith("_") and "=" not in name for name in path.split("/"))
