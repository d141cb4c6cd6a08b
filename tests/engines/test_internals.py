"""vLLM's internals stand in one module and are not needed for captions."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from caprl_ray.cluster.optional import PLAIN
from tests.checkout import ROOT

PUBLIC = {"vllm", "vllm.sampling_params", "vllm.exceptions", "vllm.v1.engine.async_llm"}
HOME = ROOT / "caprl_ray" / "engines" / "internals.py"


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    named = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    named |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name for name in named if name.partition(".")[0] == "vllm"}


def test_internals_of_vllm_stand_in_one_module() -> None:
    modules = [path for path in (ROOT / "caprl_ray").rglob("*.py") if path != HOME]
    assert not {str(path): names for path in modules if (names := imported(path) - PUBLIC)}
    assert imported(HOME) - PUBLIC, "the test sees none where there are some"


def test_no_module_imports_vllm_before_it_is_used() -> None:
    for path in (ROOT / "caprl_ray").rglob("*.py"):
        top = ast.parse(path.read_text(encoding="utf-8")).body
        assert not [node for node in top if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vllm")]


@pytest.mark.slow
@pytest.mark.engine
def test_captions_are_right_without_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "caprl_ray", "demo", "--images", "40", "--out", str(tmp_path / "demo")]
    environment = os.environ | {PLAIN: "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0 and "40 captioned, 0 failed" in run.stdout, run.stderr
    right = re.search(r"^(\d+) of 40 captions are exactly right", run.stdout, re.MULTILINE)
    assert right and int(right[1]) >= 38
