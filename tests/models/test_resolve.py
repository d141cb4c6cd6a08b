"""Models from a folder, from a bucket that each node fetches from once, and from the hub; faulty ones are refused."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caprl_ray.caption.job import caption_job
from caprl_ray.engines import launch
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.models import weights
from caprl_ray.models.resolve import EMBEDDED_FOLDER, ModelRef, resolve
from caprl_ray.output.folder import Output
from caprl_ray.recipe.load import apply_override, parse
from caprl_ray.storage import Storage, Stored, s3_stream

REVISION = "0123456789abcdef0123456789abcdef01234567"
MOVED = "fedcba9876543210fedcba9876543210fedcba98"
TOKEN = "hf_secretsecretsecret"


def resolved(source: str, storage: dict[str, Any] | None = None, **model: Any) -> ModelRef:
    document = {"input": {"paths": "a"}, "output": {"path": "o"}, "storage": storage or {}}
    return resolve(parse(document | {"model": {"source": source, **model}, "replicas": {"gpus": 0}}))


def shards(folder: Path, count: int = 2, numbers: int = 1000) -> Path:
    """The embedded model's folder with its weights in several files and an index, as large models have them."""
    import numpy as np
    from safetensors.numpy import save_file

    shutil.copytree(EMBEDDED_FOLDER, folder)
    (folder / "model.safetensors").unlink()
    names = [f"model-{n}-of-{count}.safetensors" for n in range(count)]
    for n, name in enumerate(names):
        save_file({f"tensor{n}": np.full(numbers, n, np.float32)}, folder / name)
    index = {"weight_map": {f"tensor{n}": name for n, name in enumerate(names)}}
    (folder / weights.INDEX).write_text(json.dumps(index))
    return folder


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 4)


def lengthen(file: Path) -> None:
    with open(file, "ab") as stream:
        stream.write(b"\0\0\0\0")


def widen_header(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 2**40) + file.read_bytes()[8:])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def point(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


@pytest.mark.parametrize("harm", [truncate, lengthen, widen_header, empty, point, Path.unlink])
def test_a_folder_whose_weights_are_not_whole_is_refused_by_the_files_name(tmp_path: Path, harm: Any) -> None:
    folder = shards(tmp_path / "model")
    assert resolved(str(folder)).label.startswith(f"{folder}@")
    harm(folder / "model-1-of-2.safetensors")
    with pytest.raises(RecipeError, match=r"model-1-of-2\.safetensors") as error:
        resolved(str(folder))
    assert "\n" not in str(error.value)
    assert ("git lfs pull" in str(error.value)) == (harm is point)


def described(folder: Path, **config: Any) -> str:
    """The embedded model's folder with another config.json."""
    shutil.copytree(EMBEDDED_FOLDER, folder)
    (folder / "config.json").write_text(json.dumps({"vision_config": {}, "text_config": {}} | config))
    return str(folder)


def test_a_qwen3_vl_on_a_cpu_needs_a_word_more_and_the_refusal_says_it(tmp_path: Path) -> None:
    """vLLM 0.29 fails there after minutes, with an IndexError."""
    source = described(tmp_path / "model", architectures=["Qwen3VLForConditionalGeneration"], model_type="qwen3_vl")
    document: dict[str, Any] = {"input": {"paths": "a"}, "output": {"path": "o"}, "model": {"source": source}}
    on_cpu = document | {"replicas": {"gpus": 0}}
    with pytest.raises(RecipeError, match=r"add 'model\.engine\..*', or give replicas\.gpus\.$") as refused:
        caption_job(parse(on_cpu))
    (told,) = re.findall(r"add '(.*)'", str(refused.value))
    caption_job(parse(document | {"replicas": {"gpus": 1}}))
    apply_override(on_cpu, told)
    assert caption_job(parse(on_cpu)).fingerprint["model.engine.hf_overrides"]["text_config"]


def test_an_internvl_with_code_of_its_own_runs_only_at_an_endpoint(tmp_path: Path) -> None:
    config = {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "dynamic_image_size": True}
    source = described(tmp_path / "model", **config)
    with pytest.raises(RecipeError, match=r"with code of its own, which is not run here; give .* or serve it"):
        resolved(source)
    rule = resolved(source, endpoint="http://127.0.0.1:9/v1").size_rule
    assert (rule.factor, rule.max_pixels) == (448, 5 * 448**2)


def retrain(folder: Path) -> None:
    """Change one number in the middle of one tensor; names, shapes, sizes and the time stay."""
    file = folder / "model-1-of-2.safetensors"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def retemplate(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def test_other_contents_of_the_same_folder_are_another_model_and_a_copy_is_the_same(tmp_path: Path) -> None:
    folder = shards(tmp_path / "model", numbers=100_000)
    label = resolved(str(folder)).label
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert resolved(str(copy)).label.rpartition("@")[2] == label.rpartition("@")[2]
    (folder / "README.md").write_text("Notes.")
    assert resolved(str(folder)).label == label
    for change in (retrain, retemplate):
        change(folder)
        assert resolved(str(folder)).label != label
        label = resolved(str(folder)).label


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": 1}', '{"weight_map": {"a": ["b"]}}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    folder = shards(tmp_path / "model")
    (folder / weights.INDEX).write_text(text)
    with pytest.raises(RecipeError, match=weights.INDEX):
        resolved(str(folder))


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    folder = shutil.copytree(EMBEDDED_FOLDER, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(RecipeError, match=r"pickled weights, .* convert them to safetensors"):
        resolved(str(folder))
    with pytest.raises(RecipeError, match=r"model\.engine\.load_format: pt"):
        resolved("embedded", engine={"load_format": "pt"})


# A bucket: fetched once to each node.


@dataclass
class Bucket:
    """A real S3 server on loopback, the requests that reached it, and a client of its own."""

    client: Any
    settings: dict[str, Any]
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    delay: float = 0.0

    def upload(self, folder: Path, prefix: str) -> str:
        for file in folder.rglob("*"):
            if file.is_file():
                self.client.upload_file(str(file), "models", f"{prefix}/{file.relative_to(folder)}")
        return f"s3://models/{prefix}"

    def listed(self, source: str) -> weights.StoredModel:
        return weights.list_model(source, Storage(parse(minimal(storage=self.settings)).storage))

    def fetched(self) -> Counter[tuple[str, str]]:
        """How often each range of each object was asked for."""
        return Counter((path, part) for method, path, part in self.requests if method == "GET" and "?" not in path)


def minimal(**sections: Any) -> dict[str, Any]:
    return {"input": {"paths": "a"}, "output": {"path": "o"}, **sections}


@pytest.fixture(scope="module")
def model_bucket() -> Iterator[Bucket]:
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    with pytest.MonkeyPatch.context() as environment:
        for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}.items():
            environment.setenv(name, value)
        s3 = DomainDispatcherApplication(create_backend_app)

        def application(environ: dict[str, Any], start: Any) -> Any:
            query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
            bucket.requests.append(
                (environ["REQUEST_METHOD"], environ["PATH_INFO"] + query, environ.get("HTTP_RANGE", ""))
            )
            time.sleep(bucket.delay)
            return s3(environ, start)

        server = make_server("127.0.0.1", 0, application, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.port}"
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        bucket = Bucket(client=client, settings={"endpoint": endpoint, "region": "us-east-1"})
        client.create_bucket(Bucket="models")
        yield bucket
        server.shutdown()


FETCH = """
import sys
from pathlib import Path
from types import SimpleNamespace
from caprl_ray.models import weights
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.storage import Storage, Stored, s3_stream
source, endpoint, cache = sys.argv[1:]
weights.PIECE_BYTES, weights.READ_BYTES, s3_stream.RANGE_BYTES = 2**19, 2**18, 2**18
model = weights.list_model(source, Storage(StorageSettings(endpoint=endpoint, region="us-east-1")))
print(weights.fetch(model, Path(cache)))
"""


def start_fetch(bucket: Bucket, source: str, cache: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", FETCH, source, bucket.settings["endpoint"], str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_model_in_a_bucket_is_described_without_its_weights(model_bucket: Bucket) -> None:
    source = model_bucket.upload(EMBEDDED_FOLDER, "described")
    model_bucket.requests.clear()
    model = resolved(source + "/", model_bucket.settings)
    assert (model.size_rule, model.config) == (resolved("embedded").size_rule, resolved("embedded").config)
    assert model.stored and model.label == f"{source}@{model.stored.digest[:12]}"
    assert not any("safetensors" in path for path, _ in model_bucket.fetched())


def test_replicas_that_start_together_fetch_a_model_once(model_bucket: Bucket, tmp_path: Path) -> None:
    folder = shards(tmp_path / "model", numbers=500_000)
    (folder / "deep").mkdir()
    (folder / "deep" / "empty.txt").touch()
    (folder / "training_args.bin").write_bytes(b"a pickle")
    source = model_bucket.upload(folder, "together")
    model_bucket.requests.clear()
    replicas = [start_fetch(model_bucket, source, tmp_path / "cache") for _ in range(3)]
    said = [replica.communicate(timeout=120) for replica in replicas]
    assert [replica.returncode for replica in replicas] == [0, 0, 0], said
    places = {out.split()[-1] for out, _ in said}
    assert len(places) == 1
    assert contents(Path(places.pop())) == {k: v for k, v in contents(folder).items() if k != "training_args.bin"}
    fetched = model_bucket.fetched()
    assert set(fetched.values()) == {1}
    sizes = Counter[str]()
    for path, part in fetched:
        first, last = part.removeprefix("bytes=").split("-")
        sizes[path.removeprefix("/models/together/")] += int(last) - int(first) + 1
    wanted = {name: len(content) for name, content in contents(folder).items()}
    assert sizes == {name: size for name, size in wanted.items() if size and name != "training_args.bin"}
    assert len(fetched) > 2 * len(sizes)  # large files came in pieces
    # The pieces of the real sizes do not overlap either.
    assert weights.READ_BYTES == s3_stream.RANGE_BYTES and weights.PIECE_BYTES % weights.READ_BYTES == 0


def test_a_replica_that_is_killed_while_it_fetches_leaves_nothing_that_looks_complete(
    model_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards(tmp_path / "model", numbers=1_000_000)
    source = model_bucket.upload(folder, "killed")
    digest = model_bucket.listed(source).digest
    monkeypatch.setattr(model_bucket, "delay", 0.3)
    model_bucket.requests.clear()
    first = start_fetch(model_bucket, source, tmp_path / "cache")
    second = start_fetch(model_bucket, source, tmp_path / "cache")  # waits for the first, or the first for it
    deadline = time.monotonic() + 60
    while len(model_bucket.fetched()) < 10 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "cache" / f"{digest}.partial").is_dir()
    assert not (tmp_path / "cache" / digest).exists()
    lock_holder, survivor = (first, second) if holds_lock(first, tmp_path / "cache") else (second, first)
    os.kill(lock_holder.pid, signal.SIGKILL)
    assert lock_holder.wait(timeout=10) == -signal.SIGKILL
    lock_holder.communicate()
    monkeypatch.setattr(model_bucket, "delay", 0.0)
    out, err = survivor.communicate(timeout=120)
    assert survivor.returncode == 0, err
    assert contents(Path(out.split()[-1])) == contents(folder)
    assert [entry.name for entry in (tmp_path / "cache").iterdir() if entry.is_dir()] == [digest]


def holds_lock(process: "subprocess.Popen[str]", cache: Path) -> bool:
    """Whether it is the one that writes, by the system's own list of what it has locked."""
    (lock,) = cache.glob("*.lock")
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" not in line]
    return (str(process.pid), str(lock.stat().st_ino)) in {(words[4], words[5].split(":")[-1]) for words in held}


def test_cached_files_are_fetched_again_only_if_they_are_damaged(model_bucket: Bucket, tmp_path: Path) -> None:
    model = model_bucket.listed(model_bucket.upload(shards(tmp_path / "model"), "spoilt"))
    folder = weights.fetch(model, tmp_path / "cache")
    model_bucket.requests.clear()
    assert weights.fetch(model, tmp_path / "cache") == folder
    assert not model_bucket.requests
    truncate(folder / "model-0-of-2.safetensors")
    assert weights.fetch(model, tmp_path / "cache") == folder
    assert contents(folder) == contents(tmp_path / "model") and model_bucket.requests


def test_a_changed_model_has_another_name_and_folder_and_the_old_one_is_no_longer_given(
    model_bucket: Bucket, tmp_path: Path
) -> None:
    source = model_bucket.upload(shards(tmp_path / "model"), "changed")
    before = model_bucket.listed(source)
    old = weights.fetch(before, tmp_path / "cache")
    model_bucket.client.put_object(
        Bucket="models", Key="changed/config.json", Body=b"x" * before.files["config.json"].size
    )
    after = model_bucket.listed(source)
    assert before.label != after.label and before.label.startswith(f"{source}@")
    assert weights.fetch(after, tmp_path / "cache") != old
    with pytest.raises(SystemFailure, match=r"config\.json cannot be fetched to .* \(changed since"):
        weights.fetch(before, tmp_path / "other")
    assert not [entry for entry in (tmp_path / "other").iterdir() if not entry.name.endswith((".lock", ".partial"))]


def test_a_changed_model_is_refused_on_resume(model_bucket: Bucket, tmp_path: Path) -> None:
    source = model_bucket.upload(EMBEDDED_FOLDER, "resumed")
    recipe = started_run(source, tmp_path, model_bucket.settings)
    Output.open(caption_job(recipe))
    model_bucket.client.put_object(Bucket="models", Key="resumed/tokenizer_config.json", Body=b"{}")
    with pytest.raises(RecipeError, match=rf"model\.source was '{source}@\w{{12}}' and is '{source}@\w{{12}}'"):
        Output.open(caption_job(recipe))


def started_run(source: str, folder: Path, storage: dict[str, Any]) -> Any:
    (folder / "image.jpg").write_bytes(b"not looked at")
    document = {"input": {"paths": str(folder / "image.jpg")}, "output": {"path": str(folder / "out")}}
    recipe = parse(document | {"model": {"source": source}, "storage": storage, "replicas": {"gpus": 0}})
    Output.open(caption_job(recipe)).plan()
    return recipe


def test_a_damaged_shard_in_the_bucket_is_caught_before_an_engine_opens_it(
    model_bucket: Bucket, tmp_path: Path
) -> None:
    folder = shards(tmp_path / "model")
    truncate(folder / "model-0-of-2.safetensors")
    model = model_bucket.listed(model_bucket.upload(folder, "damaged"))
    with pytest.raises(SystemFailure, match=r"s3://models/damaged has a model-0-of-2\.safetensors .* cut short"):
        weights.fetch(model, tmp_path / "cache")
    assert not [entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]


def test_a_shard_that_the_bucket_lacks_is_seen_in_the_driver(model_bucket: Bucket, tmp_path: Path) -> None:
    folder = shards(tmp_path / "model")
    (folder / "model-1-of-2.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"has no model-1-of-2\.safetensors"):
        resolved(model_bucket.upload(folder, "lacking"), model_bucket.settings)


@pytest.mark.parametrize("key", ["../escaped.json", "a/../../escaped.json", "a//b.json", "./config.json"])
def test_no_key_of_a_bucket_leads_out_of_the_folder(key: str) -> None:
    with pytest.raises(RecipeError, match="cannot be a file of a model's folder"):
        weights._name(f"s3://models/prefix/{key}", "s3://models/prefix")


def test_a_bucket_without_a_model_is_one_sentence(model_bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    for source, said in [
        ("s3://models/absent", "holds no files"),
        ("s3:///models", "names no bucket"),
        ("s3://no-such-bucket/model", "bucket does not exist"),
        (model_bucket.upload(tmp_path, "pickled"), "pickled weights"),
    ]:
        with pytest.raises((RecipeError, SystemFailure), match=said):
            resolved(source, model_bucket.settings)


def test_a_file_that_is_no_configuration_is_not_read_into_memory() -> None:
    large = Stored(path="s3://models/tiny/config.json", size=2**40, version="etag:0")
    model = weights.StoredModel(source="s3://models/tiny", storage=Storage(), files={"config.json": large})
    with pytest.raises(RecipeError, match=r"config\.json is too large"):
        model.read("config.json")


def test_a_node_with_a_damaged_copy_says_so_before_its_engine_starts(tmp_path: Path) -> None:
    model = resolved(str(shards(tmp_path / "model")))
    truncate(tmp_path / "model" / "model-0-of-2.safetensors")
    recipe = parse(minimal(model={"source": str(tmp_path / "model")}, replicas={"gpus": 0}))
    with pytest.raises(SystemFailure, match=rf"on the node {os.uname().nodename} has a model-0-of-2\.safetensors"):
        asyncio.run(launch.start(recipe, model))


def test_a_model_that_is_larger_than_the_disk_is_refused_at_once(
    model_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_bucket.listed(model_bucket.upload(EMBEDDED_FOLDER, "large"))
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(SystemFailure, match=r"model\.cache_dir: .* has room for 0\.0 GB"):
        weights.fetch(model, tmp_path / "cache")


def test_the_recipe_goes_before_the_environment_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(weights.CACHE, raising=False)
    assert weights.cache_folder(None) == Path.home() / ".cache/caprl_ray/models"
    monkeypatch.setenv(weights.CACHE, "/scratch")
    assert weights.cache_folder(None) == Path("/scratch/models")
    assert weights.cache_folder("/mine") == Path("/mine")


# The hub: a server on loopback that answers as the hub does for one model.


class Hub(ThreadingHTTPServer):
    """`head` is the commit that main is now; the files of every commit are the embedded model's."""

    head = REVISION


class HubRequests(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked = re.fullmatch(r"/org/tiny/resolve/([^/]+)/([^/]+)", self.path)
        if not asked:
            return self._answer(404, b"", error="RepoNotFound")
        revision, name = asked.groups()
        commit = self.server.head if revision == "main" else revision
        if commit not in (REVISION, MOVED):
            return self._answer(404, b"", error="RevisionNotFound")
        file = EMBEDDED_FOLDER / name
        if not file.is_file():
            return self._answer(404, b"", commit, error="EntryNotFound")
        return self._answer(200, file.read_bytes(), commit)

    def _answer(self, status: int, body: bytes, commit: str | None = None, error: str | None = None) -> None:
        self.send_response(status)
        headers = {"X-Repo-Commit": commit, "X-Error-Code": error, "ETag": f'"{hash(body):x}"' if commit else None}
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), HubRequests)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


RESOLVE = """
import json, sys
from caprl_ray import cli
from caprl_ray.caption import job
from caprl_ray.output import folder
from caprl_ray.recipe import load
def command(args):
    parsed = load.load(args.recipe, args.overrides)
    found = []
    job.resolve = lambda recipe, resolve=job.resolve: found.append(resolve(recipe)) or found[0]
    folder.Output.open(job.caption_job(parsed)).plan()
    (found,) = found
    print(json.dumps([found.path, found.revision, found.label]))
    return 0
cli.caption._run = command
sys.exit(cli.main(["caption", *sys.argv[1:]]))
"""


def on_the_hub(server: Hub, folder: Path, *overrides: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The driver up to its plan, in a process of its own: the hub's client reads its settings at import."""
    (folder / "image.jpg").write_bytes(b"not looked at")
    document = {"input": {"paths": str(folder / "image.jpg")}, "output": {"path": str(folder / "out")}}
    document["model"] = {"source": "org/tiny"}
    (folder / "recipe.yaml").write_text(json.dumps(document))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(folder / "hub"), "HF_TOKEN": TOKEN}
    return subprocess.run(
        [sys.executable, "-c", RESOLVE, str(folder / "recipe.yaml"), *overrides],
        env=clean | own | {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_branch_is_resolved_once_and_said_and_stored(hub: Hub, tmp_path: Path) -> None:
    run = on_the_hub(hub, tmp_path)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == ["org/tiny", REVISION, f"org/tiny@{REVISION}"]
    assert run.stderr.splitlines() == [
        f"caprl-ray: model.revision: main of org/tiny is not pinned; this run uses its commit {REVISION}. Give "
        f"model.revision={REVISION} to keep using it."
    ]
    stored = json.loads((tmp_path / "out" / "run.json").read_text())
    assert stored["model"] == {"source": "org/tiny", "revision": "main", "commit": REVISION}


def test_a_branch_that_moved_is_refused_until_its_commit_is_pinned(hub: Hub, tmp_path: Path) -> None:
    on_the_hub(hub, tmp_path)
    hub.head = MOVED
    run = on_the_hub(hub, tmp_path)
    refusal = run.stderr.splitlines()[-1]
    assert run.returncode == 2 and REVISION in refusal and MOVED in refusal
    assert f"pin model.revision={REVISION}" in refusal
    pinned = on_the_hub(hub, tmp_path, f"model.revision={REVISION}")
    assert pinned.returncode == 0 and not pinned.stderr, pinned.stderr


def test_a_hub_that_is_away_is_not_needed_twice(hub: Hub, tmp_path: Path) -> None:
    assert on_the_hub(hub, tmp_path).returncode == 0
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}):
        run = on_the_hub(hub, tmp_path, **environment)
        assert run.returncode == 0 and f"its commit {REVISION}" in run.stderr, run.stderr


@pytest.mark.parametrize(
    ("overrides", "offline", "said", "code"),
    [
        (["model.source=org/absent"], "0", "the hub gives no such model", 2),
        (["model.revision=absent"], "0", "has no branch, tag or commit absent", 2),
        ([], "1", "the hub did not give config.json at revision main", 1),
    ],
)
def test_a_refusal_of_the_hub_is_one_sentence_without_the_token(
    hub: Hub, tmp_path: Path, overrides: list[str], offline: str, said: str, code: int
) -> None:
    run = on_the_hub(hub, tmp_path, *overrides, HF_HUB_OFFLINE=offline)
    assert (run.returncode, run.stderr.count("\n")) == (code, 1), run.stderr
    assert said in run.stderr and TOKEN not in run.stderr + run.stdout


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
