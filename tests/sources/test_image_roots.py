"""Rows that name their image by a path. No path stops a run or leads out of the roots."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from caprl_ray import pipeline
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.sources.image_path import resolve
from caprl_ray.sources.image_roots import proposed
from caprl_ray.sources.source import Access
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.local import LocalStore, mount_point
from tests.checkout import ROOT
from tests.s3_server import BUCKET, Request, S3Server
from tests.sources.tables import HF_IMAGE, access_to, content, planned, rows_of, write
from tests.test_pipeline import rows_of as written


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A table's folder `set`, images beside it in `elsewhere`, and links from one to the other."""
    for name in ("set/a.jpg", "elsewhere/b.jpg", "elsewhere/deep/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "set/link.jpg").symlink_to("../elsewhere/b.jpg")
    (tmp_path / "set/folder").symlink_to("../elsewhere")
    (tmp_path / "set/loop.jpg").symlink_to("loop.jpg")
    return tmp_path


def outcomes(access: Access) -> list[bytes | str]:
    return [row["code"] or row["encoded"] for row in rows_of(access)]


def listed(folder: Path, *paths: str) -> Path:
    return write(folder / "list.parquet", {"path": list(paths)})


def test_links_and_dots_lead_nowhere_but_below_a_root(tree: Path) -> None:
    names = ["a.jpg", "link.jpg", "folder/deep/c.jpg", "../elsewhere/b.jpg", "folder/../a.jpg", "../set2/a.jpg", "."]
    path = listed(tree / "set", *names)
    inside, refused = [b"set/a.jpg"], ["source_refused"]
    assert outcomes(access_to(path)) == [*inside, *refused * 3, *inside, *refused * 2]
    both = access_to(path, image_roots=[str(tree / "elsewhere")])
    read = [b"elsewhere/b.jpg", b"elsewhere/deep/c.jpg", b"elsewhere/b.jpg"]
    assert outcomes(both) == [*inside, *read, *inside, *refused * 2]
    part = access_to(path, image_roots=[(tree / "elsewhere/deep").as_uri()])
    assert outcomes(part) == [*inside, *refused, b"elsewhere/deep/c.jpg", *refused, *inside, *refused * 2]
    linked = access_to(path, image_roots=[str(tree / "set/folder")])
    assert outcomes(linked) == outcomes(both)


def test_the_detail_of_a_refused_row_says_which_root_would_read_it(tree: Path) -> None:
    path = listed(tree / "set", "a.jpg", "folder/deep/c.jpg", "/" + "x" * 900 + "/a.jpg")
    _, row, long = rows_of(access_to(path))
    assert row["detail"] == f"outside of the table's folder; to read it, add {tree}/elsewhere/deep to input.image_roots"
    assert row["source"] == str(path) and row["key"] == "folder/deep/c.jpg"
    assert long["detail"] == "outside of the table's folder; to read it, add its folder to input.image_roots"
    (root,) = re.findall(r"add (.*) to", row["detail"])
    assert outcomes(access_to(path, image_roots=[root]))[1] == b"elsewhere/deep/c.jpg"


def test_a_table_whose_images_all_lie_elsewhere_is_told_its_roots_before_anything_starts(tree: Path) -> None:
    names = ["/nowhere/x.jpg", *(f"{tree}/elsewhere/{name}" for name in ("b.jpg", "deep/c.jpg")), "https://host/a.jpg"]
    path = listed(tree / "set", *names)
    with pytest.raises(
        RecipeError, match=r"^input\.image_roots: .*list\.parquet names images outside .*x\.jpg"
    ) as error:
        planned(access_to(path))
    (wanted,) = re.findall(r"set input\.image_roots=(\[.*\])\.$", str(error.value))
    assert json.loads(wanted) == ["/nowhere", str(tree / "elsewhere")]
    given = access_to(path, image_roots=[str(tree / "elsewhere")])
    assert outcomes(given)[1:3] == [b"elsewhere/b.jpg", b"elsewhere/deep/c.jpg"]


def test_a_table_of_structs_without_bytes_is_told_its_roots_too(tree: Path) -> None:
    inside, outside = {"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": f"{tree}/elsewhere/b.jpg"}
    path = write(tree / "set" / "a.parquet", {"image": pa.array([outside] * 3, HF_IMAGE)})
    with pytest.raises(RecipeError, match=rf'set input\.image_roots=\["{tree}/elsewhere"\]\.$'):
        planned(access_to(path))
    write(path, {"image": pa.array([outside, inside], HF_IMAGE)})
    assert outcomes(access_to(path)) == ["source_refused", b"set/a.jpg"]
    write(path, {"image": pa.array([outside, outside | {"bytes": b"own"}], HF_IMAGE)})
    assert outcomes(access_to(path)) == ["source_refused", b"own"]


def test_one_image_that_may_be_read_is_enough_to_begin(tree: Path) -> None:
    path = listed(tree / "set", *["/nowhere/x.jpg"] * 500, "a.jpg")
    assert outcomes(access_to(path)) == ["source_refused"] * 500 + [b"set/a.jpg"]


def test_proposed_roots_are_few_and_hold_everything() -> None:
    folders = ["/mnt/a/1", "/mnt/a/2/x", "/data/z", "s3://one/p/q", "s3://one/p/r/s", "s3://two", "/"]
    assert proposed(folders) == ["/", "/data/z", "/mnt/a", "s3://one/p"]
    assert proposed(["s3://two", "/mnt/a", "/mnt/ab"]) == ["/mnt", "s3://two"]


@pytest.mark.parametrize("root", ["https://host/a", "s3:///key", "ftp://bucket/a", "a\0b", ""])
def test_roots_that_are_no_folder_are_refused(root: str, tmp_path: Path) -> None:
    document = demo_recipe([tmp_path], tmp_path / "out")
    with pytest.raises(RecipeError, match=r"^input\.image_roots\.0: .*\.$"):
        parse(document | {"input": document["input"] | {"image_roots": [root]}})


def test_a_relative_root_is_that_of_the_process_which_read_the_recipe(tmp_path: Path) -> None:
    document = demo_recipe([tmp_path], tmp_path / "out")
    recipe = parse(document | {"input": document["input"] | {"image_roots": "images"}})
    assert recipe.input.image_roots == [os.path.abspath("images")]


# Files that are not images


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Ends the test run instead of letting it hang."""
    timer = threading.Timer(seconds, os._exit, [70])
    timer.start()
    yield
    timer.cancel()


def test_special_files_are_never_opened_and_kernel_files_never_read(tree: Path) -> None:
    folder = tree / "set"
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket.jpg"))
    kernel = ["/proc/self/mem", "/proc/self/pagemap", "file:///proc/self/environ", "/sys/kernel/uevent_seqnum"]
    kernel += ["file:///proc/%73elf/mem"]
    odd = ["pipe.jpg", "socket.jpg", "/dev/zero", "/dev/tty", "loop.jpg", "a.jpg/b.jpg"]
    nul = ["nul\0.jpg", "file:///a%00b.png", (folder / "a%00.jpg").as_uri().replace("%25", "%")]
    path = listed(folder, "a.jpg", *kernel, *odd, *nul)
    with within(60):
        found = outcomes(access_to(path, image_roots=["/"]))
    refused, missing = "source_refused", "source_missing"
    assert found == [b"set/a.jpg", *[refused] * len(kernel), *[missing] * len(odd), *[refused] * len(nul)]


MOUNTED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.sources.test_image_roots import outcomes
from tests.sources.tables import access_to
print(outcomes(access_to(sys.argv[1])))
"""


def in_own_mounts(script: str, *arguments: str) -> str:
    """The output of a shell script that may mount file systems, as root of its own user namespace."""
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-ec", script, "script", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
def test_files_of_the_kernel_that_are_mounted_elsewhere_are_empty_images(tree: Path) -> None:
    """Reading them would be refused or never end. They state a size of 0."""
    (tree / "set/mem.jpg").touch()
    path = listed(tree / "set", "mem.jpg", "a.jpg")
    script = f'mount --bind /proc/self/mem "{tree}/set/mem.jpg"; exec "$1" -c "$2" "$3" "$4"'
    said = in_own_mounts(script, sys.executable, MOUNTED, str(path), str(ROOT))
    assert said.strip() == "[b'', b'set/a.jpg']"


def test_a_file_that_grows_while_it_is_read_is_read_no_further(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = listed(tree / "set", "a.jpg"), LocalStore.open

    def grows(self: LocalStore, stored: Stored, piece: int | None) -> Any:
        stream = opened(self, stored, piece)
        if stored.path.endswith(".jpg"):
            os.truncate(stored.path, 10**8)
        return stream

    monkeypatch.setattr(LocalStore, "open", grows)
    assert outcomes(access_to(path)) == ["source_changed"]


# Errors of the row, and errors of the storage


def one_row(access: Access) -> dict[str, Any]:
    (row,) = rows_of(access)
    return row


@pytest.mark.parametrize("lost", ["removed", "empty"])
def test_a_root_that_is_lost_ends_the_run_and_fails_no_row(tree: Path, lost: str) -> None:
    root = tree / "elsewhere"
    access = access_to(listed(tree / "set", str(root / "b.jpg"), str(root / "gone.jpg")), image_roots=[str(root)])
    assert outcomes(access) == [b"elsewhere/b.jpg", "source_missing"]
    shutil.rmtree(root)
    if lost == "empty":
        root.mkdir()
    with pytest.raises(SystemFailure, match=rf"^{re.escape(str(root))}: no image below it can be read .*resume\.$"):
        outcomes(access)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux")
def test_a_mount_that_goes_away_is_noticed(tree: Path) -> None:
    path = listed(tree / "set", str(tree / "disk/a.jpg"))
    script = f"""
        mkdir {tree}/disk; mount -t tmpfs none {tree}/disk; echo image > {tree}/disk/a.jpg
        cat > {tree}/run.py <<'END'
import subprocess, sys
sys.path.insert(0, sys.argv[3])
from caprl_ray.errors import SystemFailure
from tests.sources.test_image_roots import outcomes
from tests.sources.tables import access_to
access = access_to(sys.argv[1], image_roots=[sys.argv[2]])
print(outcomes(access))
subprocess.run(["umount", sys.argv[2]], check=True)
try:
    print(outcomes(access))
except SystemFailure as failure:
    print("lost:", failure)
END
        exec "$1" {tree}/run.py {path} {tree}/disk {ROOT}
    """
    before, after = in_own_mounts(script, sys.executable).splitlines()
    assert before == "[b'image\\n']"
    assert after.startswith(f"lost: {tree}/disk: no image below it can be read (the folder is empty)")


def test_a_mount_point_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"{n} 1 0:{n} / {place} rw - nfs host:/x rw" for n, place in enumerate(["/", "/mnt", r"/mnt/my\040disk"])]
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "\n".join(lines))
    asked = ["/mnt/my disk/a/b.jpg", "/mnt/my disks/b.jpg", "/a"]
    assert [mount_point(path) for path in asked] == ["/mnt/my disk", "/mnt", "/"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_failed_row(tree: Path) -> None:
    (tree / "set/a.jpg").chmod(0)
    assert outcomes(access_to(listed(tree / "set", "a.jpg"))) == ["source_unreadable"]


def test_a_process_without_file_handles_blames_no_row(tree: Path) -> None:
    path = listed(tree / "set", *["a.jpg"] * 8)
    code = (
        "import resource, sys; from tests.sources.test_parquet import access_to, planned, rows_of; "
        "access = access_to(sys.argv[1]); rows_of(access); "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')), 4096)); rows_of(access)"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import os; " + code, path],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert "SystemFailure" in done.stderr and "Too many open files" in done.stderr, done.stderr


def s3_access(s3: S3Server, tmp_path: Path, *names: str, **settings: Any) -> Access:
    s3.put("set/list.parquet", listed(tmp_path, *names).read_bytes())
    storage = Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1", timeout_s=1))
    return access_to(f"s3://{BUCKET}/set/list.parquet", storage=storage, **settings)


def failing(key: str, kind: str) -> Callable[[Request], str | None]:
    return lambda request: kind if request.key == key else None


@pytest.mark.parametrize("kind", ["slow_down", "reset", "short"])
def test_an_object_that_its_store_cannot_give_is_a_failed_row(s3: S3Server, tmp_path: Path, kind: str) -> None:
    for number in range(2):
        s3.put(f"set/{number}.jpg", content(number))
    access = s3_access(s3, tmp_path, "0.jpg", "1.jpg")
    s3.fault = failing("set/0.jpg", kind)
    first, second = rows_of(access)
    assert (first["code"], second["encoded"]) == ("source_unreadable", content(1))
    assert "S3" in first["detail"] and s3.fired[kind] > 1


def test_a_store_that_gives_nothing_ends_the_run(s3: S3Server, tmp_path: Path) -> None:
    s3.put("photos/0.jpg", content(0))
    access = s3_access(s3, tmp_path, f"s3://{BUCKET}/photos/0.jpg", image_roots=[f"s3://{BUCKET}/photos"])
    assert outcomes(access) == [content(0)]
    s3.fault = lambda request: "slow_down" if "photos" in request.key + request.query else None
    with pytest.raises(SystemFailure, match=rf"^s3://{BUCKET}/photos: no image below it can be read \(S3 answers Slow"):
        outcomes(access)
    s3.fault = None
    s3.client.delete_object(Bucket=BUCKET, Key="photos/0.jpg")
    with pytest.raises(SystemFailure, match="nothing is below the prefix"):
        outcomes(access)


def test_keys_are_taken_as_they_are(s3: S3Server, tmp_path: Path) -> None:
    s3.put("set/img//a.jpg", b"two")
    s3.put("set/img/a.jpg", b"one")
    s3.put("settings/a.jpg", b"beside")
    names = ["img//a.jpg", "img/a.jpg", "./img/../img//a.jpg", f"s3://{BUCKET}/set/img//a.jpg", "../settings/a.jpg"]
    names += [f"s3://{BUCKET}/settings/a.jpg", f"s3://{BUCKET}/set/../settings/a.jpg", "../../x", "/etc/hostname"]
    access = s3_access(s3, tmp_path, *names)
    assert outcomes(access) == [b"two", b"one", b"two", b"two", *["source_refused"] * 5]


# Whole runs


@pytest.mark.usefixtures("ray_cluster")
def test_odd_rows_cost_no_run_and_a_root_brings_them_back(tmp_path: Path) -> None:
    render_dataset(tmp_path / "scenes", 80)
    images = shutil.copytree(tmp_path / "scenes" / "files", tmp_path / "set" / "images")
    moved = shutil.copytree(images, tmp_path / "moved")
    names = sorted(path.name for path in images.iterdir())
    hostile = ["file:///a%00b.png", "/proc/self/mem", "/proc/self/pagemap", "/dev/zero", "gone.png"]
    paths = [*(f"images/{name}" for name in names[:20]), *hostile, *(str(moved / name) for name in names[20:40])]
    table = listed(tmp_path / "set", *paths)
    document = demo_recipe([table], tmp_path / "out") | {"model": {"source": "stub"}, "prepare": {"max_pixels": 20_000}}
    document["failures"] = {"max_fraction": 1}
    balance = pipeline.run(caption_job(parse(document)))
    assert balance.balanced and (balance.finished, balance.failed) == (20, len(hostile) + 20)
    codes = {row["key"]: row["code"] for row in written(tmp_path / "out", "failed")}
    assert [codes[key] for key in hostile] == ["source_refused"] * 4 + ["source_missing"]
    document["input"]["image_roots"] = [str(moved)]
    left = tmp_path / "out" / "data" / ".tmp-of-a-writer-that-was-killed"
    left.touch()
    os.utime(left, (1, 1))
    balance = pipeline.run(caption_job(parse(document)), retry=["source_refused"])
    assert balance.balanced and (balance.finished, balance.failed) == (40, len(hostile))
    assert not left.exists()


def test_the_key_of_an_image_on_s3_is_no_local_path() -> None:
    for path, key in {"img//a.jpg": "t//img//a.jpg", "./a/b.jpg": "t//a/b.jpg", "../a//b.jpg": "t/a//b.jpg"}.items():
        assert resolve(path, "s3://bucket/t//t.parquet") == f"s3://bucket/{key}"
    assert resolve("s3://bucket//a//b.jpg", "/local/t.parquet") == "s3://bucket//a//b.jpg"
    assert resolve("a//b.jpg", "/local/t.parquet") == "/local/a/b.jpg"
