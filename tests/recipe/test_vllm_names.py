"""Names are read from the source of any vLLM; where it cannot be read, every name is left to the engine."""

import importlib.util
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from caprl_ray.recipe import vllm_names

NAMES = "class EngineArgs:\n    max_model_len: int = 1\n    dtype: str = 'auto'\n    _own: int = 0\n"
MORE = "class AsyncEngineArgs(EngineArgs):\n    enable_log_requests: bool = False\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file with vLLM's engine arguments, of a vLLM that has only it."""
    spec = ModuleSpec("vllm", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    (tmp_path / "engine").mkdir()
    vllm_names._class_fields.cache_clear()
    yield tmp_path / "engine" / "arg_utils.py"
    vllm_names._class_fields.cache_clear()


def test_fields_of_both_classes_are_names(source: Path) -> None:
    source.write_text(NAMES + MORE)
    assert vllm_names.engine_arguments() == {"max_model_len", "dtype", "enable_log_requests"}


@pytest.mark.parametrize(
    "text",
    [None, "", MORE, NAMES.replace("class EngineArgs", "class Arguments"), "type X[ = 1"],
    ids=["no file", "no class", "half of them elsewhere", "renamed", "later syntax"],
)
def test_no_name_is_refused_where_they_stand_elsewhere(source: Path, text: str | None) -> None:
    if text is not None:
        source.write_text(text)
    assert not vllm_names.engine_arguments() and not vllm_names.sampling_parameters()
    vllm_names.check("model.engine", ["anything"], vllm_names.engine_arguments())
