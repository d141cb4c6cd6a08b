"""Thirty seconds of fuzzing, and every input of the corpus; `make fuzz` does it for ten minutes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 15


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_of_the_corpus_breaks_a_property(target: str) -> None:
    inputs = sorted((CORPUS / target).iterdir())
    assert len(inputs) >= 10
    for path in inputs:
        TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.slow
def test_no_property_breaks_in_some_seconds_of_fuzzing(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="there is no build of atheris for this platform")
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        target,
        f"-max_total_time={SECONDS}",
        "-seed=1",
        f"-artifact_prefix={tmp_path}/",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, (run.stderr[-4000:], [path.read_bytes().hex() for path in tmp_path.iterdir()])
    assert "Done " in run.stderr and " runs in " in run.stderr, run.stderr[-2000:]
