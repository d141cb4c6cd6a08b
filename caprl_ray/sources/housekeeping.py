"""Names of files that tools and operating systems leave in folders and archives. They are not images of the dataset.

Sources: AppleDouble files and folders of macOS ("Apple Single and AppleDouble Formats"), of Synology's and QNAP's
storage, of Windows, of Linux desktops, of NFS and FUSE, of Hadoop's checksums, of editors and version control.
"""

import re
from collections.abc import Iterable

# Files and folders. `*` is any text. Case is ignored, because many of these systems ignore it.
NAMES = (
    "._*",
    ".AppleDouble",
    ".DS_Store",
    ".DocumentRevisions-V100",
    ".fseventsd",
    ".Spotlight-V100",
    ".TemporaryItems",
    ".Trash",
    ".Trash-*",
    ".Trashes",
    "__MACOSX",
    "@eaDir",
    "@Recycle",
    "@tmp",
    ".@__thumb",
    "#recycle",
    "#snapshot",
    "$RECYCLE.BIN",
    "System Volume Information",
    "Thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "lost+found",
    ".thumbnails",
    ".nfs*",
    ".fuse_hidden*",
    ".*.crc",
    ".git",
    ".ipynb_checkpoints",
    "__pycache__",
)
# Names that Spark, Delta and Databricks write beside the files of a table. They never write archives: in an archive, a
# folder of such a name belongs to the dataset, and its images are wanted.
TABLE_NAMES = (
    "_SUCCESS",
    "_committed_*",
    "_started_*",
    "_temporary",
    "_spark_metadata",
    "_delta_log",
    "_metadata",
    "_common_metadata",
)


def _any(names: Iterable[str]) -> str:
    return "|".join(re.escape(name).replace(r"\*", "[^/]*") for name in names)


_RULE = re.IGNORECASE | re.ASCII
_LISTED = re.compile(_any((*NAMES, *TABLE_NAMES)), _RULE)
_PART = re.compile(rf"(?:\A|/)(?:{_any(NAMES)})(?:/|\Z)", _RULE)


def listed_housekeeping(name: str) -> bool:
    """Whether a file or folder of this name, without its path, was left by a tool or a system."""
    return _LISTED.fullmatch(name) is not None


def housekeeping(member: str) -> bool:
    """Whether an archive's member, or a folder around it, was left by a tool or a system."""
    return _PART.search(member) is not None
