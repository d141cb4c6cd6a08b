"""Folders and archives pass over the same names, in upper and lower case."""

import pytest

from caprl_ray.sources.housekeeping import NAMES, TABLE_NAMES, housekeeping
from caprl_ray.sources.passed_over import reason, reason_unless_hidden

SAID = ["@Recycle", "@tmp", "Thumbs.DB", ".git", ".nfs0001", ".thumbnails", ".@__thumb", "__pycache__", ".a.jpg.crc"]


@pytest.mark.parametrize("name", [*SAID, *(name.replace("*", "1") for name in NAMES)])
def test_folders_and_archives_pass_the_same_names_over(name: str) -> None:
    for written in (name, name.lower(), name.upper()):
        assert reason(written, False) == reason_unless_hidden(written, True) == "housekeeping"
        assert housekeeping(written) and housekeeping(f"x/{written}/a.jpg")
        assert not housekeeping(f"x/y{written}/a.jpg") and reason(f"y{written}", False) is None


@pytest.mark.parametrize("name", [name.replace("*", "1") for name in TABLE_NAMES])
def test_files_that_stand_beside_tables_are_passed_over_in_folders_only(name: str) -> None:
    for written in (name, name.lower(), name.upper()):
        assert reason(written, True) == "housekeeping"
        assert not housekeeping(f"x/{written}/a.jpg")


@pytest.mark.parametrize("name", ["a.jpg", "_a.jpg", "desktop.ini.jpg", ".crc", "lost", "git", "_metadata.jpg"])
def test_other_names_are_no_housekeeping(name: str) -> None:
    assert reason_unless_hidden(name, False) is None and not housekeeping(name)
