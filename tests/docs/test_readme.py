"""The README says of codes and columns what the schema says."""

import re

from caprl_ray.caption.columns import CAPTION, CODES
from caprl_ray.rows.schema import IDENTITY
from tests.checkout import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_failure_code_is_listed_with_its_meaning() -> None:
    listed = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", README, re.MULTILINE))
    assert {code: listed.get(code) for code in CODES} == CODES


def test_every_column_of_the_output_is_listed() -> None:
    assert all(f"`{field.name}`" in README for field in (*IDENTITY, *CAPTION))
