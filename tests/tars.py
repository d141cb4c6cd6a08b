"""Tar archives for tests."""

import io
import tarfile
from collections.abc import Mapping


def tar_of(contents: Mapping[str, bytes]) -> bytes:
    """An archive of files by their names, as the standard library writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
