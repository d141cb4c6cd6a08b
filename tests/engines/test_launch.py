"""A machine without vLLM is told what to install, before anything starts."""

import asyncio
from pathlib import Path

import pytest
import ray
import yaml

from caprl_ray import cli
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.engines import launch
from caprl_ray.errors import SystemFailure
from caprl_ray.models.resolve import resolve
from caprl_ray.recipe.load import parse

INSTALL = "vLLM is not installed here; install it with pip install 'caprl_ray[gpu]', or 'caprl_ray[cpu]'"


@pytest.fixture
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "has_engine", lambda: False)


@pytest.mark.usefixtures("_no_engine")
@pytest.mark.parametrize("command", ["caption", "preflight", "demo"])
def test_without_an_engine_nothing_starts(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(demo_recipe([Path("images")], tmp_path / "out")))
    before = ray.is_initialized()
    assert cli.main([command] + ([] if command == "demo" else ["recipe.yaml"])) == 2
    said = capsys.readouterr().err
    assert INSTALL in said and len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"] and ray.is_initialized() == before


@pytest.mark.usefixtures("_no_engine")
def test_on_a_cluster_a_node_without_an_engine_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    recipe = parse(demo_recipe([tmp_path], tmp_path / "out"))
    launch.check_engine(recipe)  # the driver needs none
    with pytest.raises(SystemFailure, match="on every node, and vLLM is not installed here"):
        asyncio.run(launch.start(recipe, resolve(recipe)))
