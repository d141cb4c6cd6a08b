"""Names of files that tools and systems leave beside people's own, in folders and in archives. They are no images.

Sources: AppleDouble files and folders of macOS ("Apple Single and AppleDouble Formats"), of Synology's and QNAP's
storage, of Windows, of Linux desktops, of NFS and FUSE, of Hadoop's checksums, of editors and version control.
"""

import re
from collections.abc import Iterable

# Files and folders. `*` is any text. Case does not matter: many of these systems do not tell it.
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
# What Spark, Delta and Databricks keep beside the files of a table. They write folders, and no archives: in an archive
# a folder of such a name is the dataset's own, and its images are wanted.
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
    """Whether a file or folder of this name, without its path, is a tool's or a system's own."""
    return _LISTED.fullmatch(name) is not None


def housekeeping(member: str) -> bool:
    """Whether an archive's member is a tool's or a system's own file, or lies in such a folder."""
    return _PART.search(member) is not None
