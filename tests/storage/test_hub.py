"""Datasets on the hub, with a server on loopback that answers like the hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from caprl_ray import plan, sources
from caprl_ray.errors import CaprlError, RecipeError, SystemFailure
from caprl_ray.output.extension import changes
from caprl_ray.plan.known import PlannedPaths, PlannedVersions
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.storage import Storage as Settings
from caprl_ray.storage import Folder, Storage, Stored, hub
from tests.hub_server import GATED, HANGS, REPOSITORY, HubServer
from tests.sources.tables import access_to, content, planned, rows_of

TOKEN = "hf_secretsecretsecret"
ROOT = f"hf://datasets/{REPOSITORY}"
FILES = {
    "README.md": b"photos",
    ".gitattributes": b"",
    "large/b.jpg": content(1, 5000),
    "large/a é+.jpg": content(0),
    "large/deep/c.jpg": content(2),
    "lists/list.csv": b"path,id\n../large/b.jpg,007\n/etc/passwd,2\n../large/no.jpg,\n"
    b"hf://datasets/evil/x/a.jpg,\nhf://datasets/org/photos@dev/large/b.jpg,\ngs://evil/a.jpg,\naz://evil/a.jpg,\n",
    "x.jpg": content(3),
}
STORAGE = Storage(Settings(timeout_s=2))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub._known_commit.cache_clear()
    yield server
    server.stop()


def at(commit: str, *names: str) -> list[str]:
    return [f"{ROOT}@{commit}/{name}" for name in names]


def test_a_branch_becomes_its_commit_and_is_read_at_it(server: HubServer) -> None:
    first = server.push(FILES)
    access = access_to(ROOT, storage=STORAGE)
    units, _ = planned(access)
    names = ["large/a é+.jpg", "large/b.jpg", "large/deep/c.jpg", "x.jpg"]
    assert [entry.stored.path for unit in units for entry in unit.entries] == at(first, *names)
    server.push({"x.jpg": b"other"})
    rows = list(sources.read_unit(units[0], sources.BitMap(), access, plan.LeftOut()))
    assert [sample and sample.image for sample in rows] == [content(0), content(1, 5000), content(2), content(3)]
    assert server.tokens == {f"Bearer {TOKEN}"}
    assert rows_of(access_to(f"{ROOT}@{first}/x.jpg", storage=STORAGE))[0]["encoded"] == content(3)
    assert rows_of(access_to(f"{ROOT}/x.jpg", storage=STORAGE))[0]["encoded"] == b"other"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("large", ["large/a é+.jpg", "large/b.jpg", "large/deep/c.jpg"]),
        ("large/*.jpg", ["large/a é+.jpg", "large/b.jpg"]),
        ("**/c.jpg", ["large/deep/c.jpg"]),
        ("lar", ["large/a é+.jpg", "large/b.jpg", "large/deep/c.jpg"]),
        ("large/{b,deep/c}.jpg", ["large/b.jpg", "large/deep/c.jpg"]),
    ],
)
def test_folders_patterns_and_beginnings_are_those_of_every_store(
    server: HubServer, path: str, found: list[str]
) -> None:
    first = server.push(FILES, "refs/convert/parquet")
    access = access_to(f"{ROOT}@refs/convert/parquet/{path}", storage=STORAGE)
    assert [e.stored.path for unit in planned(access)[0] for e in unit.entries] == at(first, *found)


def test_a_part_of_a_file_is_one_request_for_its_bytes(server: HubServer) -> None:
    (path,) = at(server.push(FILES), "large/b.jpg")
    stored = STORAGE.lookup(path)
    assert isinstance(stored, Stored) and isinstance(STORAGE.lookup(at(server.branches["main"], "large")[0]), Folder)
    server.requests.clear()
    with STORAGE.open(stored, piece=64) as stream:
        stream.seek(4000)
        assert stream.read(10) == FILES["large/b.jpg"][4000:4010]
    assert {asked for _, asked in server.requests} == {"bytes=4000-4063"}


def test_rows_of_a_list_name_files_of_the_same_commit(server: HubServer) -> None:
    first = server.push(FILES)
    rows = rows_of(access_to(f"{ROOT}/lists/list.csv", storage=STORAGE, image_roots=[f"{ROOT}/large"]))
    assert [row["code"] for row in rows] == [None, "source_refused", "source_missing", *["source_refused"] * 4]
    assert not [asked for asked, _ in server.requests if "evil" in asked or "dev" in asked]
    assert rows[0]["encoded"] == content(1, 5000) and not [asked for asked, _ in server.requests if "/tree/" in asked]
    assert rows[0]["source"] == at(first, "large/b.jpg")[0] and rows[0]["meta:id"] == "007"


def test_rows_ask_for_a_commit_once_and_again_if_the_answer_is_lost(server: HubServer, tmp_path: Path) -> None:
    server.push(FILES)
    listed = tmp_path / "list.csv"
    names = ["x.jpg", "large/b.jpg", "large/deep/c.jpg"]
    listed.write_text("\n".join(["path", *(f"{ROOT}/{name}" for name in names)]))
    server.lost = 1
    access = access_to(listed, storage=STORAGE, image_roots=[ROOT])
    assert [row["encoded"] for row in rows_of(access)] == [FILES[name] for name in names]
    server.push({"x.jpg": b"other"})  # the branch moves while the run reads
    assert [row["encoded"] for row in rows_of(access)] == [FILES[name] for name in names]
    assert len([asked for asked, _ in server.requests if "/revision/" in asked]) == 2


def test_an_extension_takes_what_a_newer_commit_adds_and_keeps_the_rest(server: HubServer, tmp_path: Path) -> None:
    access, out = access_to(ROOT, storage=STORAGE), str(tmp_path)
    first = server.push(FILES)
    plan.store(Storage(), out, sources.plan_units(access))
    second = server.push(FILES | {"y.jpg": b"new", "x.jpg": b"another size"})
    known = PlannedVersions(Storage(), out)
    (unit,) = sources.plan_units(access, known)
    assert [entry.stored.path for entry in unit.entries] == at(second, "y.jpg")
    assert [said.partition(": ")[0] for said in changes(known)] == [
        f"1 planned file or shard (such as {at(second, 'x.jpg')[0]}) has another size"
    ]
    assert at(first, "x.jpg")[0] in PlannedPaths(Storage(), out)


def test_a_planning_that_was_stopped_goes_on_in_its_commit(server: HubServer, tmp_path: Path) -> None:
    other, _ = server.push({"x.jpg": b"other"}, "dev"), server.push(FILES)
    access = access_to(f"{ROOT}/large", f"{ROOT}@dev", storage=STORAGE)
    (begun, _) = sources.plan_units(access)
    plan.store(Storage(), str(tmp_path), iter([begun]))
    server.push(FILES | {"large/z.jpg": b"new"})
    rest = sources.plan_units(access, PlannedPaths(Storage(), str(tmp_path)), begun.position)
    assert [e.stored.path for u in rest for e in u.entries] == at(other, "x.jpg")


@pytest.mark.parametrize(
    ("path", "kind", "sentence"),
    [
        (f"hf://datasets/{GATED}", RecipeError, "is gated; accept its terms on the hub and set HF_TOKEN"),
        ("hf://datasets/org/absent", RecipeError, "the hub has no such dataset"),
        (f"{ROOT}@absent", RecipeError, "has no branch, tag or commit absent"),
        (f"hf://datasets/{HANGS}", SystemFailure, "the hub gave no answer"),
        ("hf://org/model", RecipeError, "hf://datasets/ORG/NAME@REVISION/path"),
        (f"{ROOT}/absent.jpg", RecipeError, "nothing was found"),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, path: str, kind: type[CaprlError], sentence: str
) -> None:
    monkeypatch.setattr(hub, "ANSWER_S", 0.5)
    server.push(FILES)
    with pytest.raises(kind) as error:
        planned(access_to(path, storage=STORAGE))
    assert sentence in str(error.value) and "\n" not in str(error.value) and TOKEN not in str(error.value)


def test_without_the_hub_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemFailure, match="HF_HUB_OFFLINE is set"):
        planned(access_to(ROOT))


def test_nothing_is_written_to_the_hub() -> None:
    with pytest.raises(RecipeError, match=r"output\.path: .*hf://datasets/org/out is read-only"):
        parse({"input": {"paths": "a"}, "output": {"path": "hf://datasets/org/out"}})
