"""The wheel, which `pip install .` builds, holds the whole package with the embedded models, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.checkout import ROOT

PACKAGED = ("pyproject.toml", "README.md", "LICENSE", "caprl_ray", "tests", "jobs", "benchmarks")
# Run where only the wheel's files and the environment's packages are found. The modules left out import torch, which is
# the engine's.
IMPORT_ALL = """
import importlib, pkgutil, caprl_ray, caprl_ray.models.resolve as resolve
TRAINING = tuple(f"caprl_ray.embedded.{name}" for name in ("train", "architecture", "cosine", "packed"))
for module in pkgutil.walk_packages(caprl_ray.__path__, "caprl_ray."):
    if not module.name.endswith(("__main__", "engines.rendering")) and not module.name.startswith(TRAINING):
        importlib.import_module(module.name)
print(caprl_ray.__file__, *((folder / "model.safetensors").stat().st_size for folder in resolve.FOLDERS.values()))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")  # a build leaves files behind
    ignored = shutil.ignore_patterns("__pycache__", "corpus", "photographs")
    for name in PACKAGED:
        whole = ROOT / name
        (shutil.copytree(whole, folder / name, ignore=ignored) if whole.is_dir() else shutil.copy(whole, folder))
    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "out", "."]
    subprocess.run([sys.executable, "-m", *build], cwd=folder, check=True, timeout=120)
    (found,) = (folder / "out").glob("caprl_ray-*.whl")
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    packed = zipfile.ZipFile(wheel).namelist()
    code = {name for name in packed if ".dist-info/" not in name}
    files = {path for path in (ROOT / "caprl_ray").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert code == {str(path.relative_to(ROOT)) for path in files}
    assert {name.rpartition("/")[2] for name in packed} >= {"LICENSE", "entry_points.txt", "model.safetensors"}


def test_all_modules_are_imported_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    command = [sys.executable, "-c", f"import sys; sys.path[0] = {str(tmp_path)!r}\n{IMPORT_ALL}"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 0, said.stderr
    place, *sizes = said.stdout.split()
    assert place.startswith(str(tmp_path)) and all(1_000_000 < int(size) < 5_000_000 for size in sizes)
