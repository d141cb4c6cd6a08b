"""The disk is full: that of the output, in a real file system of its own, and that of Ray's spilled objects. Both
resume.

A file system is mounted without root in a user namespace, if the machine has them.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from caprl_ray import cli
from caprl_ray.cluster.failures import SPILL_FOLDER
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.recipe.load import parse
from tests.checkout import ROOT
from tests.expected import expected_caption

IMAGES = 120
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount() -> bool:
    try:
        command = [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"]
        return subprocess.run(command, check=False, capture_output=True, timeout=30).returncode == 0
    except OSError:
        return False


MOUNTS = can_mount()
needs_mount = pytest.mark.skipif(not MOUNTS, reason="this machine lets no user mount a file system (unshare)")


def write_recipe(folder: Path, images: int, side: int) -> dict[str, Any]:
    """A recipe in a file, for squares that are small as files and large as pixels."""
    (folder / "images").mkdir()
    for number in range(images):
        colour = (2 * number, 255 - number, number)
        Image.new("RGB", (side, side), colour).save(folder / "images" / f"{number:03d}.png")
    document = demo_recipe([folder / "images"], folder / "disk" / "out") | {"model": {"source": "stub"}}
    document |= {"prepare": {"max_pixels": side**2}}
    document["output"]["rows_per_object"] = 16
    (folder / "disk").mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    return document


def run(script: str, folder: Path, **environment: str) -> str:
    """The stdout and stderr of a shell script, with a private mount table if there is one."""
    caption = f"{sys.executable} -m caprl_ray caption {folder}/recipe.yaml"
    outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    done = subprocess.run(
        [*(NAMESPACE if MOUNTS else []), "bash", "-c", f"caption() {{ {caption} 2>&1; echo exit $?; }}\n{script}"],
        env=outer | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """The captioned rows by id. Every object must be complete, and nothing else may be there."""
    assert all(path.suffix == ".parquet" for path in (out / "data").glob("*")) and not list(out.rglob(".tmp-*"))
    rows = [row for path in (out / "data").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def check_finished(out: Path, document: dict[str, Any], before: dict[str, dict[str, Any]]) -> None:
    rows, recipe = rows_of(out), parse(document)
    assert len(rows) == len(list(Path(document["input"]["paths"][0]).iterdir()))
    assert {id_: rows[id_] for id_ in before} == before
    for row in list(rows.values())[::7]:
        assert row["caption"] == expected_caption(Path(row["source"]).read_bytes(), recipe)
    assert cli.main(["verify", str(out)]) == 0


@needs_mount
@pytest.mark.timeout(300)
@pytest.mark.slow
def test_an_output_without_room_ends_the_run_and_is_finished_when_there_is_some(tmp_path: Path) -> None:
    document = write_recipe(tmp_path, IMAGES, side=140)
    said = run(
        """
        mount -t tmpfs -o size=48k none disk && caption && cp -r disk/out full
        echo "-- more room"
        mount -o remount,size=100m disk && caption && cp -r disk/out .
        """,
        tmp_path,
    )
    first, second = said.split("-- more room")
    sentence = next(line for line in first.splitlines() if line.startswith("caprl-ray: output.path: "))
    assert f"{tmp_path}/disk/out/data/" in sentence and "No space left on device" in sentence, first
    assert "exit 1" in first and "Traceback" not in first and "exit 0" in second, said
    before = rows_of(tmp_path / "full")
    assert 0 < len(before) < IMAGES, "the disk was full too early or too late to show anything"
    check_finished(tmp_path / "out", document, before)


@needs_mount
def test_a_write_without_room_names_its_path_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    script = """
from caprl_ray.storage import Storage
Storage().put("disk/a", b"old")
for write in (Storage().put, Storage().create):
    for name in ("disk/a", "disk/b", "disk/new/c"):
        try:
            write(name, bytes(2**20))
        except OSError as error:
            print(error.filename, error.strerror)
"""
    (tmp_path / "write.py").write_text(script)
    said = run(
        f"mount -t tmpfs -o size=64k none disk && {sys.executable} write.py; find disk -type f; cat disk/a", tmp_path
    )
    named = [f"{tmp_path}/disk/{name} No space left on device" for name in ("a", "b", "new/c")]
    assert said.splitlines() == [*named, *named, "disk/a", "old"]


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_a_disk_full_of_rays_own_objects_ends_the_run_in_a_sentence(tmp_path: Path) -> None:
    """Really full if the machine lets a user mount a disk. Otherwise Ray takes it for full."""
    document = write_recipe(tmp_path, IMAGES, side=1000)  # a block has 30 MB of pixels
    (tmp_path / "spilled").mkdir()
    environment = {"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "80000000", SPILL_FOLDER: str(tmp_path / "spilled")}
    if MOUNTS:
        said = run("mount -t tmpfs -o size=20m none spilled && caption", tmp_path, **environment)
    else:
        said = run("caption", tmp_path, RAY_local_fs_capacity_threshold="0.01", **environment)
    *_, sentence, code = said.splitlines()
    assert sentence.startswith("caprl-ray: Ray: its object store is full, and so is the disk that it spills to"), said
    assert f"({tmp_path}/spilled)" in sentence and code == "exit 1" and "Traceback" not in said, said
    before = rows_of(tmp_path / "disk" / "out")
    assert len(before) < IMAGES
    assert "exit 0" in run("caption", tmp_path)
    check_finished(tmp_path / "disk" / "out", document, before)
