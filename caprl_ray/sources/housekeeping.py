"""Names that tools and systems leave beside people's files. They are nobody's image.

Sources: AppleDouble files and folders of macOS ("Apple Single and AppleDouble Formats"), of Synology's and QNAP's
storage, of Windows, of Linux desktops, of editors' and version control's folders.
"""

import re

# Folders and files that count wherever they stand in a path.
_NAMES = frozenset(
    {
        "__macosx",
        ".appledouble",
        ".ds_store",
        ".fseventsd",
        ".spotlight-v100",
        ".temporaryitems",
        ".trashes",
        ".documentrevisions-v100",
        "@eadir",
        ".@__thumb",
        "#recycle",
        "@recycle",
        "#snapshot",
        "@tmp",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "$recycle.bin",
        "system volume information",
        ".thumbnails",
        ".git",
        ".ipynb_checkpoints",
        "lost+found",
        "_success",
    }
)
# Beginnings: AppleDouble companions; files that NFS and FUSE keep of removed ones; trash of Linux desktops.
_BEGINNINGS = ("._", ".nfs", ".fuse_hidden", ".trash-")

_WHOLE, _BEGIN = ("|".join(map(re.escape, sorted(names))) for names in (_NAMES, _BEGINNINGS))
_PART = re.compile(rf"(?:\A|/)(?:(?:{_WHOLE})(?:/|\Z)|{_BEGIN})", re.IGNORECASE)


def housekeeping(name: str) -> bool:
    """Whether a path, of a file or of an archive's member, names a tool's or a system's own file."""
    return _PART.search(name) is not None
