"""Every failure code and every flag is explained, in the same words wherever a user meets them."""

import pytest

from caprl_ray.answer import columns as scoring
from caprl_ray.caption.columns import ADVICE, CODES
from caprl_ray.caption.redecode import TRIMMED
from caprl_ray.cli import main
from caprl_ray.curate import columns as curation
from caprl_ray.explain import CODE, FLAG, explanations, flag
from caprl_ray.prepare.blank import BLANK
from caprl_ray.quality.registry import CHECKS
from caprl_ray.rows.advice import FLAG_ADVICE
from caprl_ray.sources import texts
from docs.generate import PAGES


def test_every_code_and_every_flag_has_a_meaning_usual_causes_and_what_to_do() -> None:
    assert ADVICE.keys() == CODES.keys()
    assert scoring.ADVICE.keys() == scoring.CODES.keys() - CODES.keys()
    assert curation.ADVICE.keys() == curation.CODES.keys() - CODES.keys()
    assert FLAG_ADVICE.keys() == {BLANK, TRIMMED, texts.UNDECODED, texts.RECODED, texts.INVALID, texts.TOO_LARGE}
    named = {(e.name, e.kind) for e in explanations()}
    assert named == {(name, CODE) for name in {*CODES, *scoring.CODES, *curation.CODES}} | {
        (name, FLAG) for name in {*CHECKS, *FLAG_ADVICE}
    }
    for e in explanations():
        assert e.meaning and e.causes and e.remedy, e.name
        page = PAGES["reference/failure-codes.md" if e.kind == CODE else "reference/checks.md"]()
        assert e.remedy in page and e.causes in page


def test_a_word_is_explained_as_it_stands_in_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "image_corrupt"]) == 0
    assert "image_corrupt (failure code)" in (said := capsys.readouterr().out) and "what to do: Download" in said
    assert main(["explain", "metadata_too_large:alt.txt"]) == 0  # a code and a flag
    assert capsys.readouterr().out.count("metadata_too_large (") == 2
    assert main(["explain", "image_corupt"]) == 2
    assert "do you mean image_corrupt" in capsys.readouterr().err
    assert main(["explain", "xyzzy"]) == 2
    assert "they are source_missing" in capsys.readouterr().err


def test_a_check_of_the_users_own_has_no_explanation() -> None:
    assert flag("no_colour") is None and flag("loop") is not None
