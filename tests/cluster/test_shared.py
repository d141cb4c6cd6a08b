"""The output of a driver whose workers have another working folder, or another disk."""

import errno
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from caprl_ray.cluster.shared import PROBE, READS, _seen
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.recipe.load import parse
from caprl_ray.storage import SourceChanged
from tests.ray_head import Head, new_head

IMAGES = 12
pytestmark = pytest.mark.timeout(300)
# An absolute path that is another folder in each process with another working folder, as on a node with another disk.
ELSEWHERE = "/proc/self/cwd/out"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with new_head(cpus=2, cwd=tmp_path_factory.mktemp("head")) as head:
        yield head


def caprl_ray(head: Head, folder: Path, command: str, **sections: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder that holds images, with relative paths, on the head."""
    folder.mkdir(exist_ok=True)
    render_dataset(folder / "images", 2 * IMAGES)
    document = demo_recipe([Path("images/files")], Path("out")) | {"model": {"source": "stub"}} | sections
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    return subprocess.run(
        [sys.executable, "-m", "caprl_ray", command, "recipe.yaml"],
        cwd=folder,
        env=head.client | {"RAY_ADDRESS": head.address},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_a_relative_output_is_the_drivers_and_a_probe_of_a_killed_run_goes(head: Head, tmp_path: Path) -> None:
    assert head.cwd
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PROBE).write_text("left by a run that was killed")
    run = caprl_ray(head, tmp_path, "caption")
    assert run.returncode == 0, run.stderr
    assert f"{tmp_path}/out: {IMAGES} images: {IMAGES} captioned" in run.stdout
    assert pq.read_table(tmp_path / "out" / "data").num_rows == IMAGES
    assert not list(head.cwd.iterdir())
    assert (tmp_path / "out" / "_SUCCESS").exists() and not (tmp_path / "out" / PROBE).exists()


@pytest.mark.parametrize("command", ["caption", "preflight"])
def test_nodes_with_another_disk_are_refused_before_an_engine_starts(head: Head, tmp_path: Path, command: str) -> None:
    assert head.cwd
    run = caprl_ray(head, tmp_path, command, output={"path": ELSEWHERE})
    assert run.returncode == 1, run.stdout + run.stderr
    said = rf"caprl-ray: output\.path: {ELSEWHERE} on the node [\d.]+ is not the {ELSEWHERE} of this driver; .*\n"
    before = r"(caprl-ray [\d.]+: caption .*\n)?" if command == "caption" else r"(caprl-ray: .*\n)+"
    assert re.fullmatch(f"{before}{said}", run.stderr)
    assert "started in" not in run.stdout
    assert not list(head.cwd.iterdir())
    assert not (tmp_path / "out" / PROBE).exists() and not (tmp_path / "out" / "data").exists()


def test_an_input_that_only_the_driver_has_is_refused(head: Head, tmp_path: Path) -> None:
    run = caprl_ray(head, tmp_path, "caption", input={"paths": ["/proc/self/cwd/images/files"]})
    assert run.returncode == 1, run.stdout + run.stderr
    said = r"caprl-ray: input\.paths: /proc/self/cwd/images/files is not on the node [\d.]+; give a path .*\n"
    assert re.fullmatch(rf"caprl-ray [\d.]+: caption .*\n{said}", run.stderr)
    assert not (tmp_path / "out" / "data").exists()


def test_local_paths_are_absolute_in_the_recipe_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")

    def path_of(path: str) -> str:
        return parse({"input": {"paths": ["-"]}, "output": {"path": path}}).output.path

    assert path_of("out") == f"{tmp_path}/out" and path_of("~/out") == "/home/somebody/out"
    assert path_of("/data/out") == "/data/out" and path_of("s3://bucket/out") == "s3://bucket/out"


def test_a_probe_that_another_node_answers_in_is_read_again() -> None:
    class Answered:
        def __init__(self, changes: int) -> None:
            self.changes = changes

        def read(self, path: str) -> bytes:
            self.changes -= 1
            if self.changes >= 0:
                raise SourceChanged(errno.ESTALE, "changed since it was planned", path)
            return b"token node"

    assert _seen(Answered(READS - 1), "out/probe", "token", None, []) == ""  # type: ignore[arg-type]
    assert "(changed since it was planned)" in _seen(Answered(READS), "out/probe", "token", None, [])  # type: ignore[arg-type]
