"""S3 storage against a real S3 server on loopback: names, listings, versions and faults."""

import random
import threading
import time
from collections import Counter
from itertools import islice
from urllib.parse import parse_qs

import pytest

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.plan import Unit
from caprl_ray.recipe import load
from caprl_ray.recipe.input import Input
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.sources import plan_units
from caprl_ray.sources.source import Access
from caprl_ray.storage import Folder, SourceChanged, Storage, Stored, listing, s3_client, s3_stream
from tests.s3_server import BUCKET, HANG_S, Request, S3Server

ODD_NAMES = [
    "a b.jpg",
    "ü/é 写真.jpg",
    "plus+plus.jpg",
    "per%20cent%.jpg",
    "#hash?query=1&x.jpg",
    "quote'\"<>.jpg",
    "~!*().jpg",
]


@pytest.fixture
def storage(s3: S3Server) -> Storage:
    return Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1"))


def planned(storage: Storage, path: str) -> Stored:
    found = storage.lookup(path)
    assert isinstance(found, Stored)
    return found


def units_of(storage: Storage, *paths: str) -> list[Unit]:
    return list(plan_units(Access(storage=storage, input=Input(paths=list(paths)), max_bytes=1000)))


def keys(units: list[Unit]) -> list[str]:
    return [entry.key for unit in units for entry in unit.entries]


def test_odd_names_are_listed_found_read_and_written_as_they_are(s3: S3Server, storage: Storage) -> None:
    paths = [s3.put(f"odd/{name}", name.encode()) for name in ODD_NAMES]
    walked = list(storage.walk(f"s3://{BUCKET}/odd/"))
    assert [stored.path for stored in walked] == sorted(paths)
    for stored in walked:
        assert planned(storage, stored.path) == stored
        with storage.open(stored) as stream:
            assert stream.read().decode() == stored.path.removeprefix(f"s3://{BUCKET}/odd/")
        storage.put(stored.path + ".copy", b"copy")
        assert s3.client.get_object(Bucket=BUCKET, Key=stored.path.removeprefix(f"s3://{BUCKET}/") + ".copy")
    assert keys(units_of(storage, f"s3://{BUCKET}/odd")) == sorted(ODD_NAMES)
    assert keys(units_of(storage, *paths)) == [path.rpartition("/")[2] for path in paths]


def test_thousands_of_keys_in_folders_come_in_order_and_are_asked_for_once(s3: S3Server, storage: Storage) -> None:
    rng = random.Random(1)
    names = [f"data/train/{rng.choice('abcdefgh')}{n % 40:02d}/{n:05d}.jpg" for n in range(2_700)]
    names += [f"data/train/{n:05d}.jpg" for n in range(300)]
    s3.fill([*names, "data/", "data/train/", "data/train/a00/", "data-other/x.jpg"])
    assert [s.path for s in storage.walk(f"s3://{BUCKET}/data")] == [f"s3://{BUCKET}/{name}" for name in sorted(names)]
    assert not s3.of("HEAD")
    folders = len({name.rpartition("/")[0] for name in names})
    assert len(s3.of("GET")) <= folders + 10
    units = units_of(storage, f"s3://{BUCKET}/data/")
    assert [unit.rows for unit in units] == [1000] * 3
    assert keys(units) == [name.removeprefix("data/") for name in sorted(names)]


def test_a_walk_goes_on_after_any_object_without_listing_what_is_before_it(s3: S3Server, storage: Storage) -> None:
    names = [
        "a.jpg",
        "a/1.jpg",
        "a/b/2.jpg",
        "a/b//3.jpg",
        "a/b.jpg",
        "a-/4.jpg",
        "b/c/5.jpg",
        "b/6.jpg",
        "ü/7.jpg",
        "~",
    ]
    s3.fill([f"in/{name}" for name in names] + ["in/b/", "other"])
    walked = list(storage.walk(f"s3://{BUCKET}/in/"))
    assert len(walked) == len(names)
    for number, stored in enumerate(walked):
        s3.requests.clear()
        assert list(storage.walk(f"s3://{BUCKET}/in", stored.path)) == walked[number + 1 :]
        listed = [parse_qs(request.query) for request in s3.of("GET")]
        for prefix in (f"s3://{BUCKET}/{query['prefix'][0]}" for query in listed if "start-after" not in query):
            assert prefix > stored.path or prefix == f"s3://{BUCKET}/in/"  # the request for a lone folder


def test_a_flat_prefix_of_many_pages_is_listed_whole_and_lazily(s3: S3Server, storage: Storage) -> None:
    names = [f"flat/{n:05d}.jpg" for n in range(3_500)]
    s3.fill(names)
    first = list(islice(storage.walk(f"s3://{BUCKET}/flat"), 5))
    assert [s.path.rpartition("/")[2] for s in first] == [f"{n:05d}.jpg" for n in range(5)]
    assert len(s3.of("GET")) <= 4  # for a lone folder, for a page, and for the next one
    assert len(list(storage.walk(f"s3://{BUCKET}/flat"))) == 3_500


@pytest.mark.parametrize("name", ["{:09d}.jpg", "{}.jpg", "~{:x} ü写.png"])
def test_a_long_flat_prefix_is_listed_from_several_keys_on(
    s3: S3Server, storage: Storage, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(listing, "FIRST_PAGES", 1)
    monkeypatch.setattr(listing, "AIMED_KEYS", 1500)
    names = [f"long/images/{name.format(n)}" for n in range(9_000)]
    names += [f"long/images/{folder}/{n}.jpg" for folder in ("000005000", "5", "~5") for n in range(3)]
    s3.fill([*names, "long/images/5/"])
    found = [stored.path for stored in storage.walk(f"s3://{BUCKET}/long")]
    assert found == [f"s3://{BUCKET}/{name}" for name in sorted(names)]
    starts = [request for request in s3.of("GET") if "start-after" in request.query]
    assert 2 <= len(starts) <= len(s3.of("GET")) <= 50


def test_times_are_what_botocore_reads() -> None:
    from botocore.utils import parse_timestamp

    for text in (
        "2026-01-02T03:04:05.678Z",
        "2026-01-02T03:04:05Z",
        "Fri, 02 Jan 2026 03:04:05 GMT",
        "1767323045",
        "20260102",
    ):
        assert s3_client._moment(text) == parse_timestamp(text)


def test_folders_are_listed_at_the_same_time(s3: S3Server, storage: Storage) -> None:
    for n in range(8):
        s3.put(f"d/{n:02d}/a.jpg", b"")
    four = threading.Barrier(4)

    def wait_for_four(request: Request) -> None:
        if "prefix=d%2F0" in request.query:
            four.wait(10)  # raises unless four requests run at the same time

    s3.fault = wait_for_four
    assert len(list(storage.walk(f"s3://{BUCKET}/d"))) == 8


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("g/a*.tar", ["a1.tar", "a10.tar", "a2.tar"]),
        ("g/?2.tar", ["a2.tar", "b2.tar"]),
        ("g/**/a3.tar", ["a3.tar"]),
        ("g/*/er/*.tar", ["a3.tar"]),
        ("g/[b-c]*.tar", ["b2.tar"]),
        ("g/a1", ["a1.tar", "a10.tar"]),
        ("g/de", ["er/a3.tar"]),
        ("g/d*", ["er/a3.tar"]),
        ("g/**", ["a1.tar", "a10.tar", "a2.tar", "b2.tar", "deep/er/a3.tar"]),
        ("g/{a1,b2}.tar", ["a1.tar", "b2.tar"]),
        ("g/{a,b}*.tar", ["a1.tar", "a10.tar", "a2.tar", "b2.tar"]),
    ],
)
def test_globs_prefixes_and_braces_mean_what_they_mean_locally(
    s3: S3Server, storage: Storage, pattern: str, found: list[str]
) -> None:
    for name in ("b2.tar", "a1.tar", "a10.tar", "a2.tar", "deep/er/a3.tar", "notes.txt"):
        s3.put(f"g/{name}", b"x")
    assert keys(units_of(storage, f"s3://{BUCKET}/{pattern}")) == found


def test_a_missing_object_or_bucket_is_one_sentence(s3: S3Server, storage: Storage) -> None:
    s3.put("here/0.tar", b"x")
    with pytest.raises(RecipeError, match=r"names 2 paths, of which s3://bucket/here/1\.tar does not exist"):
        units_of(storage, f"s3://{BUCKET}/here/{{0..1}}.tar")
    with pytest.raises(RecipeError, match=r"nothing was found at s3://bucket/gone"):
        units_of(storage, f"s3://{BUCKET}/gone")
    with pytest.raises(SystemFailure, match=r"s3://elsewhere/x cannot be listed \(the bucket does not exist\)\.$"):
        units_of(storage, "s3://elsewhere/x")
    assert storage.lookup(f"s3://{BUCKET}/here") == Folder(path=f"s3://{BUCKET}/here/")
    assert storage.objects(f"s3://{BUCKET}/nowhere", ".tar") == []


@pytest.mark.parametrize("path", ["in/", "in/*.jpg", "in/a"])
def test_a_directory_bucket_is_no_input(storage: Storage, path: str) -> None:
    with pytest.raises(SystemFailure, match=r"cannot be listed \(an S3 directory bucket lists its keys in no order"):
        units_of(storage, f"s3://photos--usw2-az1--x-s3/{path}")


def test_an_object_that_changed_is_noticed_also_in_the_middle(
    s3: S3Server, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_stream, "RANGE_BYTES", 1000)
    path = s3.put("shard.tar", b"a" * 5000)
    stored = planned(storage, path)
    with storage.open(stored) as stream:
        assert stream.read(1500) == b"a" * 1500
        s3.put("shard.tar", b"b" * 5000)
        with pytest.raises(SourceChanged):
            stream.read()
    with pytest.raises(SourceChanged), storage.open(stored) as stream:
        stream.read(1)
    reads = s3.of("GET", "shard.tar")
    assert len(reads) > 2 and all(read.if_match == stored.version.removeprefix("etag:") for read in reads)
    empty = planned(storage, s3.put("empty.jpg", b""))
    s3.put("empty.jpg", b"not any more")
    with pytest.raises(SourceChanged):
        storage.open(empty)
    s3.client.delete_object(Bucket=BUCKET, Key="shard.tar")
    with pytest.raises(FileNotFoundError), storage.open(stored) as stream:
        stream.read(1)


def test_a_stream_reads_and_seeks_as_a_file_does(
    s3: S3Server, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_stream, "RANGE_BYTES", 512)
    content = random.Random(2).randbytes(5000)
    with storage.open(planned(storage, s3.put("object", content))) as stream:
        assert stream.read(10) == content[:10]
        assert stream.seek(-100, 2) == 4900 and stream.read() == content[4900:]
        assert stream.seek(3000) == 3000 and stream.read(1000) == content[3000:4000]
        assert stream.read(10_000) == content[4000:] and stream.read(1) == b""
    s3.requests.clear()
    with storage.open(planned(storage, s3.put("object", content))) as stream:
        assert b"".join(iter(lambda: stream.read(100), b"")) == content
    ranges = [request.range for request in s3.of("GET", "object")]
    assert len(ranges) == -(-5000 // 512) and len(set(ranges)) == len(ranges)


@pytest.mark.parametrize("fault", ["short", "reset", "slow_down"])
def test_a_passing_fault_is_tried_again_and_never_taken_for_the_end(
    s3: S3Server, storage: Storage, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(s3_stream, "RANGE_BYTES", 1000)
    content = random.Random(3).randbytes(4500)
    stored = planned(storage, s3.put("object", content))
    asked: Counter[str | None] = Counter()

    def first_time(request: Request) -> str | None:
        asked[request.range] += 1
        return fault if request.method == "GET" and asked[request.range] == 1 else None

    s3.fault = first_time
    with storage.open(stored) as stream:
        assert stream.read() == content
    assert len(s3.faulted) >= 1


def test_a_fault_that_stays_is_the_systems_and_says_no_secret(
    s3: S3Server, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_stream, "BODY_ATTEMPTS", 2)
    stored = planned(storage, s3.put("object", b"x" * 100))
    for fault, said in (("short", "S3's answer broke off"), ("expired", "S3 answers ExpiredToken")):
        s3.fault = lambda request, fault=fault: fault
        with pytest.raises(OSError, match=said) as caught, storage.open(stored) as stream:
            stream.read()
        assert not isinstance(caught.value, FileNotFoundError | PermissionError | SourceChanged)
        assert "AKID" not in str(caught.value) and "Signature" not in str(caught.value)


def test_the_user_sets_the_number_of_tries_and_the_timeouts(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = s3.put("object", b"x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    storage = Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1", timeout_s=0.3))
    s3.fault = lambda request: "hang"
    began = time.monotonic()
    with pytest.raises(OSError, match="S3 gave no answer: ReadTimeoutError"):
        storage.lookup(path)
    assert s3.fired["hang"] == 2 and time.monotonic() - began < HANG_S


def test_a_store_that_refuses_everything_for_a_while_is_waited_for(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call waits, for the whole time that the store may take."""
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    monkeypatch.setattr(s3_client, "ATTEMPTS", 1)  # without botocore's own retries, whose pauses are long
    storage = Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1", timeout_s=0.7))
    stored = planned(storage, s3.put("in/object", b"x" * 100))
    outages = {
        "PUT": lambda: storage.put(f"s3://{BUCKET}/out", b"y"),
        "GET": lambda: storage.open(stored).read(),
        "HEAD": lambda: storage.lookup(stored.path),
    }
    for method, call in outages.items():
        until = time.monotonic() + 1.5
        s3.faulted.clear()
        s3.fault = lambda request, until=until: "slow_down" if time.monotonic() < until else None
        call()
        assert time.monotonic() >= until and {request.method for request in s3.faulted} == {method}
    monkeypatch.setattr(s3_client, "OUTAGE_S", 0.3)
    s3.fault = lambda request: "slow_down"
    with pytest.raises(OSError, match="S3 answers SlowDown"):
        storage.open(stored).read()


def test_one_denied_object_is_its_own_fault_and_a_denied_bucket_the_systems(s3: S3Server, storage: Storage) -> None:
    stored = planned(storage, s3.put("object", b"x" * 100))
    s3.fault = lambda request: "denied" if request.key == "object" else None
    with pytest.raises(PermissionError), storage.open(stored) as stream:
        stream.read()
    s3.fault = lambda request: "denied"
    with pytest.raises(OSError, match="denies access to the bucket") as caught, storage.open(stored) as stream:
        stream.read()
    assert not isinstance(caught.value, PermissionError)


def test_an_object_is_one_put(s3: S3Server, storage: Storage) -> None:
    s3.requests.clear()
    storage.put(f"s3://{BUCKET}/out/object", b"x" * 20_000_000)
    assert [(request.method, request.key) for request in s3.requests] == [("PUT", "out/object")]
    assert storage.read(f"s3://{BUCKET}/out/object") == b"x" * 20_000_000
    storage.delete(f"s3://{BUCKET}/out/object")
    storage.delete(f"s3://{BUCKET}/out/object")
    assert storage.objects(f"s3://{BUCKET}/out", "") == []


def test_settings_reach_the_client(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    path = s3.put("public.jpg", b"x")
    s3.client.put_object_acl(Bucket=BUCKET, Key="public.jpg", ACL="public-read")
    with pytest.raises(OSError, match="no S3 credentials were found"):
        Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-2")).lookup(path)
    assert planned(Storage(StorageSettings(endpoint=s3.endpoint, anonymous=True)), path).size == 1
    with pytest.raises(OSError, match=r"storage\.profile names no profile"):
        Storage(StorageSettings(profile="nobody")).lookup(path)


@pytest.mark.parametrize(
    "endpoint", ["ftp://host", "https://user:canary@host", "https://host/?key=canary", "host:9000"]
)
def test_an_endpoint_that_is_none_or_holds_a_secret_is_refused(endpoint: str) -> None:
    with pytest.raises(RecipeError, match=r"storage\.endpoint") as caught:
        load.parse_storage([f"storage.endpoint={endpoint}"])
    assert "canary" not in str(caught.value)


def test_a_large_object_is_there_when_all_of_it_is(s3: S3Server, storage: Storage) -> None:
    path, content = f"s3://{BUCKET}/large", random.Random(1).randbytes(20 << 20)
    with storage.written(path) as file:
        file.write(content)
        assert storage.lookup(path) is None
    assert storage.read(path) == content and len(s3.of("PUT", "large")) > 1  # in parts
    with pytest.raises(TypeError), storage.written(path + "-2") as file:
        file.write("no bytes")  # type: ignore[arg-type]
    s3.fault = lambda request: "denied" if request.method == "PUT" and "partNumber=2" in request.query else None
    with pytest.raises(PermissionError), storage.written(path + "-3") as file:
        file.write(content)
    assert [stored.path for stored in storage.walk(f"s3://{BUCKET}/")] == [path]
