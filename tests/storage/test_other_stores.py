"""Google's and Azure's stores, with servers on loopback: listing, ranges, versions, conditional writes, refusals."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from caprl_ray.errors import RecipeError, RowFailure, SystemFailure
from caprl_ray.read.unit import unit_rows
from caprl_ray.recipe.storage import Storage as Settings
from caprl_ray.rows.schema import row_schema
from caprl_ray.sources.image_path import resolve
from caprl_ray.storage import Folder, SourceChanged, Storage, Stored, azure_blobs, gcs
from tests import azure_server, gcs_server
from tests.azure_server import AzureServer
from tests.gcs_server import GoogleServer
from tests.sources.tables import access_to, content, planned, rows_of

STORAGE = Storage(Settings(timeout_s=5))
SECRETS = (azure_server.KEY,)


@dataclass
class Bucket:
    """A bucket and its server."""

    root: str
    server: GoogleServer | AzureServer

    def __truediv__(self, name: str) -> str:
        return f"{self.root}/{name}"

    def fill(self, *names: str) -> list[str]:
        for number, name in enumerate(sorted(names)):
            STORAGE.put(self / name, content(number))
        self.server.requests.clear()
        return [self / name for name in sorted(names)]


@pytest.fixture(params=["gs", "az"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    server: GoogleServer | AzureServer
    if request.param == "gs":
        server = GoogleServer()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        root = f"gs://{gcs_server.BUCKET}"
    else:
        server = AzureServer()
        monkeypatch.setenv(azure_blobs.CONNECTION, server.connection)
        root = f"az://{azure_server.CONTAINER}"
    for module in (gcs, azure_blobs):
        module._client.cache_clear()
    yield Bucket(root, server)
    server.stop()


def there(path: str) -> Stored:
    found = STORAGE.lookup(path)
    assert isinstance(found, Stored)
    return found


def test_listed_objects_are_found_and_read_as_they_are(bucket: Bucket) -> None:
    paths = bucket.fill("in/a.jpg", "in/b/c.jpg", "in/b/ü é+%20.jpg", "in/b.jpg", "in/d.txt", "other.jpg")
    assert [stored.path for stored in STORAGE.walk(bucket / "in")] == paths[:-1]
    assert [stored.path for stored in STORAGE.walk(bucket / "in/", paths[2])] == paths[3:-1]
    assert [there(path) for path in paths] == [*STORAGE.walk(bucket.root)]
    assert [stored.path for stored in STORAGE.objects(bucket / "in", ".jpg")] == [paths[0], bucket / "in/b.jpg"]
    assert STORAGE.lookup(bucket / "in/b") == Folder(path=bucket / "in/b/") and STORAGE.lookup(bucket / "no") is None
    for pattern, number in (
        (bucket / "in", 4),
        (bucket / "in/*.jpg", 2),
        (bucket / "**/c.jpg", 1),
        (bucket / "in/b", 2),
    ):
        assert len(planned(access_to(pattern, storage=STORAGE))[0][0].entries) == number
    rows = rows_of(access_to(bucket.root, storage=STORAGE))
    assert [row["encoded"] for row in rows] == [content(paths.index(row["source"])) for row in rows] and len(rows) == 5


def test_a_part_of_an_object_is_one_request_for_its_bytes(bucket: Bucket) -> None:
    (path,) = bucket.fill("a.tar")
    stored = there(path)
    bucket.server.requests.clear()
    with STORAGE.open(stored, piece=8) as stream:
        stream.seek(6)
        assert stream.read(3) == content(0)[6:9]
    ((_, asked),) = bucket.server.requests
    assert asked == "bytes=6-13"


def test_another_version_is_noticed_and_never_read(bucket: Bucket) -> None:
    path, gone = bucket.fill("a.jpg", "b.jpg")
    access = access_to(bucket.root, storage=STORAGE)
    (unit,), _ = planned(access)
    STORAGE.put(path, content(7))
    STORAGE.delete(gone)
    STORAGE.delete(gone)
    rows = unit_rows(0, unit, schema=row_schema(planned(access)[1]), access=access)
    assert [row["code"] for row in rows] == ["source_changed", "source_missing"]


def test_an_object_is_created_once_and_replaced_only_in_the_version_that_was_seen(bucket: Bucket) -> None:
    first = STORAGE.create(bucket / "lease", b"one")
    assert first == there(bucket / "lease")
    with pytest.raises(FileExistsError):
        STORAGE.create(bucket / "lease", b"two")
    second = STORAGE.replace(first, b"three")
    assert second == there(bucket / "lease") and second != first
    with pytest.raises(SourceChanged):
        STORAGE.replace(first, b"four")
    STORAGE.delete(bucket / "lease")
    with pytest.raises((SourceChanged, FileNotFoundError)):
        STORAGE.replace(second, b"five")
    assert STORAGE.lookup(bucket / "lease") is None


def test_a_file_of_several_parts_becomes_an_object_whole_or_not_at_all(bucket: Bucket) -> None:
    content = os.urandom(9 * 2**20)
    with suppress(InterruptedError), STORAGE.written(bucket / "shard.tar") as file:
        file.write(content)
        raise InterruptedError
    assert STORAGE.lookup(bucket / "shard.tar") is None
    with STORAGE.written(bucket / "shard.tar") as file:
        file.write(content)
    assert STORAGE.read(bucket / "shard.tar") == content


def test_a_refusal_of_one_object_is_its_row_and_one_of_the_bucket_ends_the_run(bucket: Bucket) -> None:
    bucket.fill("a.jpg", "b.jpg")
    access = access_to(bucket.root, storage=STORAGE)
    bucket.server.denied = "b.jpg?" if bucket.root.startswith("gs") else f"{azure_server.CONTAINER}/b.jpg"
    assert [row["code"] for row in rows_of(access)] == [None, "source_unreadable"]
    bucket.server.denied = azure_server.CONTAINER
    with pytest.raises(SystemFailure) as error:
        planned(access)
    assert "denie" in str(error.value) and not any(secret in str(error.value) for secret in SECRETS)


def test_a_bucket_that_is_none_is_one_sentence(bucket: Bucket) -> None:
    with pytest.raises(SystemFailure, match="does not exist"):
        planned(access_to(f"{bucket.root}-absent/in", storage=STORAGE))


def test_rows_of_a_list_name_objects_below_its_folder(bucket: Bucket) -> None:
    (path,) = bucket.fill("set/photos/a.jpg")
    lines = ["photos/a.jpg", path, "../x.jpg", "../../../x.jpg", bucket / "set/../set/photos/a.jpg"]
    STORAGE.put(bucket / "set/list.csv", "\n".join(["path", *lines]).encode())
    rows = rows_of(access_to(bucket / "set/list.csv", storage=STORAGE))
    assert [row["encoded"] or row["code"] for row in rows] == [content(0)] * 2 + ["source_refused"] * 3
    with pytest.raises(RowFailure, match="leaves the bucket"):
        resolve("../../x.jpg", bucket / "set/list.csv")


def test_folders_of_a_hierarchical_account_are_no_objects_and_their_order_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = AzureServer()
    monkeypatch.setenv(azure_blobs.CONNECTION, server.connection)
    azure_blobs._client.cache_clear()
    server.put("in/a.jpg", b"a")
    server.folders = {"in", "in/empty.jpg"}
    assert [stored.path for stored in STORAGE.walk("az://photos")] == ["az://photos/in/a.jpg"]
    server.put("in/b.jpg", b"b")
    server.backwards = True  # an account with folders promises no order of its names
    with pytest.raises(SystemFailure, match="does not list its objects sorted by name"):
        planned(access_to("az://photos/in", storage=STORAGE))
    server.stop()


@pytest.mark.parametrize(("scheme", "client"), [("gs", "google.cloud"), ("az", "azure.storage.blob")])
def test_without_a_client_an_account_or_a_bucket_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, scheme: str, client: str
) -> None:
    for name in ("STORAGE_EMULATOR_HOST", azure_blobs.CONNECTION, azure_blobs.ACCOUNT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/absent.json")
    path = f"{scheme}://photos/a"

    def refusal(path: str) -> str:
        for module in (gcs, azure_blobs):
            module._client.cache_clear()
        with pytest.raises((RecipeError, SystemFailure)) as error:
            planned(access_to(path, storage=STORAGE))
        return str(error.value)

    said = refusal(path)
    assert "no Google credentials were found" in said or "AZURE_STORAGE_CONNECTION_STRING" in said
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    monkeypatch.setenv(azure_blobs.CONNECTION, "nonsense=SECRET")
    assert "SECRET" not in refusal(f"{scheme}:///a")
    monkeypatch.setitem(sys.modules, client, None)
    assert "pip install 'caprl_ray[" in refusal(path)
